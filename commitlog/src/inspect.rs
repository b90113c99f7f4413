//! Looking at a log without changing it: what an operator sees when something is wrong.

use bb_nvme::DeviceRef;
use bb_runtime::{BufPool, Rt};
use serde::Serialize;

use crate::error::LogError;
use crate::format::RecordType;
use crate::group::{GroupInfo, Link, NotAGroup, Records};
use crate::ids::{LogIdentity, Lsn, StreamId};
use crate::open::{load_superblock, source};
use crate::reader::{Look, RingReader};
use crate::superblock;

/// The newest superblock.
#[derive(Clone, Debug, Serialize)]
pub struct SuperblockReport {
    /// Who the log is.
    pub identity: LogIdentity,
    /// How often it was written.
    pub generation: u64,
    /// Process starts.
    pub incarnation: u64,
    /// Copies of any generation that are whole, of four.
    pub copies_whole: usize,
    /// Size of the ring.
    pub ring_bytes: u64,
    /// Largest group.
    pub group_bytes_max: usize,
    /// Where replay begins.
    pub trim: Lsn,
    /// All below was durable when it was written.
    pub durable_through: Lsn,
    /// When the log was formatted, in nanoseconds since 1970.
    pub formatted_at_ns: u64,
    /// Where each stream starts.
    pub streams: Vec<StreamReport>,
}

/// A line of the superblock's table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StreamReport {
    /// The stream.
    pub stream: StreamId,
    /// Its first record that counts.
    pub start: Lsn,
    /// That record begins a whole snapshot.
    pub snapshot: bool,
}

/// A group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    /// Its position.
    pub lsn: Lsn,
    /// Its number.
    pub sequence: u64,
    /// Process start that wrote it.
    pub incarnation: u64,
    /// What it knew to be durable.
    pub durable_through: Lsn,
    /// The tail when it was written.
    pub trim: Lsn,
    /// Bytes on the device.
    pub written_bytes: usize,
    /// Distance to the next group.
    pub span_bytes: usize,
    /// "External durable through" pairs.
    pub externals: Vec<(u64, Lsn)>,
    /// Its records.
    pub records: Vec<RecordReport>,
}

/// A record.
#[derive(Clone, Debug, Serialize)]
pub struct RecordReport {
    /// Its position.
    pub lsn: Lsn,
    /// What it is.
    pub record_type: RecordType,
    /// Its stream.
    pub stream: StreamId,
    /// Bytes of payload.
    pub payload_bytes: usize,
    /// The payload: what it is only the log's user knows.
    #[serde(skip)]
    pub body: Vec<u8>,
}

/// Something after the place where the log ends.
#[derive(Clone, Debug, Serialize)]
pub struct StrayReport {
    /// Where it lies, as an LSN of the lap that was expected there.
    pub found_at: Lsn,
    /// What it says its LSN is.
    pub lsn: Lsn,
    /// Process start that wrote it.
    pub incarnation: u64,
    /// What it knew to be durable. Past the log's end: the log is damaged.
    pub durable_through: Lsn,
}

/// Why the log ends where it ends.
#[derive(Clone, Debug, Serialize)]
pub enum Ending {
    /// Nothing that was durable is missing.
    TornTail {
        /// What is at the end.
        why: String,
    },
    /// Something that was durable is missing.
    Damaged {
        /// What is at the end.
        why: String,
        /// What proves it.
        proof: String,
    },
    /// The device does not say.
    Unreadable {
        /// Its error.
        why: String,
    },
}

/// What there is to see, in the order of the log.
#[derive(Clone, Debug, Serialize)]
pub enum Finding {
    /// A group of the log.
    Group(GroupReport),
    /// The end of what can be replayed.
    End {
        /// Where.
        lsn: Lsn,
        /// Why.
        ending: Ending,
    },
    /// A group behind the end: of a crash, of an earlier lap, or proof of damage.
    Stray(StrayReport),
}

/// Walks over the log on `dev`, reading only. `visit` gets everything up to the end, then the
/// groups behind the end that bear on the verdict, then the end itself.
///
/// # Errors
/// As [`crate::Log::open`], for a device on which there is no log.
pub async fn inspect(
    rt: &Rt,
    pool: &BufPool,
    dev: &DeviceRef,
    visit: &mut dyn FnMut(Finding),
) -> Result<SuperblockReport, LogError> {
    let superblock = load_superblock(dev, pool).await?;
    let copies_whole = superblock::find(&**dev, pool).await?.whole;
    let mut reader = RingReader::new(source(rt, pool, dev, &superblock, 4), superblock.trim);
    let mut link: Option<Link> = None;
    let mut lsn = superblock.trim;
    let (why, readable) = loop {
        let (info, group) = match reader.group_at(lsn).await {
            Look::Group(info, group) => (info, group),
            Look::Not(why) => break (why.describe(), true),
            Look::Unreadable(error) => break (error.to_string(), false),
            Look::End => break ("the ring is full".to_owned(), true),
        };
        if link.is_some_and(|link| !info.follows(&link)) {
            break (NotAGroup::Chain.describe(), true);
        }
        match info.payload(group) {
            Ok(payload) => visit(Finding::Group(report(&info, payload))),
            Err(why) => break (why.describe(), true),
        }
        link = Some(info.link());
        lsn = info.end();
    };
    let mut proof = (superblock.durable_through > lsn)
        .then(|| format!("the superblock knew {} to be durable", superblock.durable_through));
    let mut at = lsn;
    while at < reader.end() {
        if let Some(other) = reader.header_at(at).await {
            if other.durable_through > lsn || other.trim > superblock.trim {
                let text =
                    format!("group {} knew {} to be durable", other.lsn, other.durable_through);
                proof.get_or_insert(text);
            }
            if other.lsn >= lsn {
                visit(Finding::Stray(stray(at, &other)));
            }
        }
        at += bb_nvme::BLOCK_BYTES;
    }
    let ending = match (proof, readable) {
        (Some(proof), _) => Ending::Damaged { why, proof },
        (None, true) => Ending::TornTail { why },
        (None, false) => Ending::Unreadable { why },
    };
    visit(Finding::End { lsn: Lsn(lsn), ending });
    Ok(SuperblockReport {
        identity: superblock.identity,
        generation: superblock.generation,
        incarnation: superblock.incarnation,
        copies_whole,
        ring_bytes: superblock.ring_bytes,
        group_bytes_max: superblock.group_bytes_max,
        trim: Lsn(superblock.trim),
        durable_through: Lsn(superblock.durable_through),
        formatted_at_ns: superblock.formatted_at_ns,
        streams: superblock
            .table
            .iter()
            .map(|(stream, start)| StreamReport {
                stream: *stream,
                start: start.lsn,
                snapshot: start.snapshot,
            })
            .collect(),
    })
}

fn report(info: &GroupInfo, payload: &[u8]) -> GroupReport {
    let records = Records::new(info, payload).filter_map(Result::ok);
    GroupReport {
        lsn: Lsn(info.lsn),
        sequence: info.sequence,
        incarnation: info.incarnation,
        durable_through: Lsn(info.durable_through),
        trim: Lsn(info.trim),
        written_bytes: info.written_bytes,
        span_bytes: info.span_bytes,
        externals: info.externals.iter().map(|(tag, lsn)| (*tag, Lsn(*lsn))).collect(),
        records: records
            .map(|record| RecordReport {
                lsn: record.lsn,
                record_type: record.record_type,
                stream: record.stream,
                payload_bytes: record.body.len(),
                body: record.body.to_vec(),
            })
            .collect(),
    }
}

fn stray(at: u64, other: &GroupInfo) -> StrayReport {
    StrayReport {
        found_at: Lsn(at),
        lsn: Lsn(other.lsn),
        incarnation: other.incarnation,
        durable_through: Lsn(other.durable_through),
    }
}
