//! What a commit log holds, and whether a start would get through it: for an administrator whose
//! server does not start. Reads only.

use std::collections::BTreeMap;
use std::fmt;

use bb_commitlog::format::RecordType;
use bb_commitlog::inspect::{Ending, Finding, GroupReport, StrayReport, SuperblockReport, inspect};
use bb_commitlog::{LogError, Lsn, Options, StreamId, dry_replay};
use bb_nvme::DeviceRef;
use bb_runtime::{BufPool, Rt};
use serde::Serialize;

use super::record_names;
use super::replay::Replayed;
use super::start::expecting;
use crate::blockstore::{self, DEVICE_PAGE};
use crate::context::Stream;

/// Whose a stream is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "owner", content = "number")]
pub enum Owner {
    /// Votes on the cluster map.
    Map,
    /// What the node knows of itself.
    Node,
    /// A device's block store.
    Device(u32),
    /// A partition.
    Partition(u32),
    /// Nothing that this version knows.
    Unknown(u64),
}

impl Owner {
    fn of(stream: StreamId) -> Self {
        match Stream::from_id(stream) {
            Some(Stream::Map) => Self::Map,
            Some(Stream::Node) => Self::Node,
            Some(Stream::Blocks { device, .. }) => Self::Device(device.0),
            Some(Stream::Partition(id)) => Self::Partition(id.0),
            None => Self::Unknown(stream.0),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map => f.write_str("votes on the map"),
            Self::Node => f.write_str("node"),
            Self::Device(id) => write!(f, "blocks of device {id}"),
            Self::Partition(id) => write!(f, "partition {id}"),
            Self::Unknown(id) => write!(f, "unknown stream {id:#x}"),
        }
    }
}

/// A record, for a listing.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RecordLine {
    /// Its position.
    pub lsn: Lsn,
    /// Whose it is.
    #[serde(flatten)]
    pub owner: Owner,
    /// Page of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
    /// What it is.
    pub kind: &'static str,
    /// Bytes of payload.
    pub payload_bytes: usize,
}

/// How many records of a kind there are between the tail and the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Kind {
    /// Records.
    pub records: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

impl Kind {
    fn add(&mut self, payload_bytes: usize) {
        self.records += 1;
        self.payload_bytes += payload_bytes as u64;
    }
}

/// What there is of one owner.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StreamSum {
    /// Streams in the superblock's table.
    pub streams: u64,
    /// Of these, how many begin with a whole snapshot.
    pub snapshots: u64,
    /// The oldest start: what keeps the tail.
    pub oldest_start: Option<Lsn>,
    /// Records between the tail and the end.
    pub records: Kind,
    /// Snapshots that were ended between the tail and the end.
    pub checkpoints: u64,
}

/// What a start would get out of the log.
#[derive(Clone, Debug, Serialize)]
pub enum ReplayVerdict {
    /// It would succeed.
    WouldSucceed {
        /// Where the log ends.
        end: Lsn,
        /// Epoch of the cluster map.
        map_epoch: u64,
        /// Process starts so far, as the node counts them.
        incarnation: u64,
        /// Partitions that have a state.
        partitions: usize,
    },
    /// It would be refused.
    WouldFail {
        /// Why.
        why: String,
    },
}

/// All that there is to say.
#[derive(Clone, Debug, Serialize)]
pub struct LogInspection {
    /// UUID of the log.
    pub log: String,
    /// UUID of its cluster.
    pub cluster: String,
    /// The superblock.
    pub superblock: SuperblockReport,
    /// Groups between the tail and the end.
    pub groups: u64,
    /// Bytes of ring between the tail and the end.
    pub used_bytes: u64,
    /// Process start of the last group.
    pub last_incarnation: Option<u64>,
    /// "External durable through" pairs of the last group that has some.
    pub externals: Vec<(u64, Lsn)>,
    /// By owner.
    #[serde(serialize_with = "as_list")]
    pub streams: BTreeMap<Owner, StreamSum>,
    /// By kind.
    pub kinds: BTreeMap<&'static str, Kind>,
    /// Where the walk over the groups ends.
    pub end: Lsn,
    /// Why it ends there.
    pub ending: Option<Ending>,
    /// Groups behind the end.
    pub strays: u64,
    /// The first of them.
    pub first_stray: Option<StrayReport>,
    /// Data devices that say who they are.
    pub devices: Vec<u32>,
    /// Data devices that do not, and why.
    pub unusable: Vec<(String, String)>,
    /// What a start would say.
    pub replay: ReplayVerdict,
}

impl LogInspection {
    /// True if the log would be replayed.
    pub const fn is_well(&self) -> bool {
        matches!(self.replay, ReplayVerdict::WouldSucceed { .. })
    }
}

fn as_list<S: serde::Serializer>(
    streams: &BTreeMap<Owner, StreamSum>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(flatten)]
        owner: &'a Owner,
        #[serde(flatten)]
        sum: &'a StreamSum,
    }
    serializer.collect_seq(streams.iter().map(|(owner, sum)| Line { owner, sum }))
}

/// What the walk over the groups has added up.
#[derive(Default)]
struct Sums {
    groups: u64,
    last_incarnation: Option<u64>,
    externals: Vec<(u64, Lsn)>,
    streams: BTreeMap<Owner, StreamSum>,
    kinds: BTreeMap<&'static str, Kind>,
    end: Lsn,
    ending: Option<Ending>,
    strays: u64,
    first_stray: Option<StrayReport>,
}

impl Sums {
    fn see(&mut self, finding: Finding, visit: &mut dyn FnMut(&RecordLine)) {
        match finding {
            Finding::Group(group) => self.group(group, visit),
            Finding::End { lsn, ending } => {
                self.end = lsn;
                self.ending = Some(ending);
            }
            Finding::Stray(stray) => {
                self.strays += 1;
                self.first_stray.get_or_insert(stray);
            }
        }
    }

    fn group(&mut self, group: GroupReport, visit: &mut dyn FnMut(&RecordLine)) {
        self.groups += 1;
        self.last_incarnation = Some(group.incarnation);
        if !group.externals.is_empty() {
            self.externals = group.externals;
        }
        for record in &group.records {
            let owner = Owner::of(record.stream);
            let kind = match record.record_type {
                RecordType::Data => record_names::name(record.stream, &record.body),
                RecordType::SnapshotBegin => "snapshot begin",
                RecordType::SnapshotChunk => "snapshot chunk",
                RecordType::SnapshotEnd => "snapshot end",
                RecordType::Retire => "retire",
            };
            let page = match Stream::from_id(record.stream) {
                Some(Stream::Blocks { page, .. }) if page != DEVICE_PAGE => Some(page),
                _ => None,
            };
            let payload_bytes = record.payload_bytes;
            visit(&RecordLine { lsn: record.lsn, owner, page, kind, payload_bytes });
            self.kinds.entry(kind).or_default().add(payload_bytes);
            let sum = self.streams.entry(owner).or_default();
            sum.records.add(payload_bytes);
            sum.checkpoints += u64::from(record.record_type == RecordType::SnapshotEnd);
        }
    }
}

/// Walks over the log on `log`, then replays it as a start would, without writing anything.
/// `devices` are the data devices that could be opened, `unusable` the others: a log can be looked
/// at without them. `visit` gets each record.
///
/// # Errors
/// If there is no log that could be walked over.
pub async fn inspect_log(
    rt: &Rt,
    pool: &BufPool,
    log: &DeviceRef,
    devices: &[DeviceRef],
    mut unusable: Vec<(String, String)>,
    visit: &mut dyn FnMut(&RecordLine),
) -> Result<LogInspection, LogError> {
    let mut sums = Sums::default();
    let superblock = inspect(rt, pool, log, &mut |finding| sums.see(finding, visit)).await?;
    for stream in &superblock.streams {
        let sum = sums.streams.entry(Owner::of(stream.stream)).or_default();
        sum.streams += 1;
        sum.snapshots += u64::from(stream.snapshot);
        let oldest = sum.oldest_start.get_or_insert(stream.start);
        *oldest = stream.start.min(*oldest);
    }
    let (replay, known) = verdict(rt, pool, log, devices, &mut unusable).await;
    Ok(LogInspection {
        log: superblock.identity.log.to_string(),
        cluster: superblock.identity.cluster.to_string(),
        groups: sums.groups,
        used_bytes: sums.end.0.saturating_sub(superblock.trim.0),
        last_incarnation: sums.last_incarnation,
        externals: sums.externals,
        streams: sums.streams,
        kinds: sums.kinds,
        end: sums.end,
        ending: sums.ending,
        strays: sums.strays,
        first_stray: sums.first_stray,
        devices: known,
        unusable,
        replay,
        superblock,
    })
}

/// Replays as a start would. Also returns which data devices are there.
async fn verdict(
    rt: &Rt,
    pool: &BufPool,
    log: &DeviceRef,
    devices: &[DeviceRef],
    unusable: &mut Vec<(String, String)>,
) -> (ReplayVerdict, Vec<u32>) {
    let fail = |why: String| ReplayVerdict::WouldFail { why };
    let mut superblocks = Vec::new();
    for device in devices {
        match blockstore::peek_superblock(device, pool).await {
            Ok(superblock) => superblocks.push(superblock),
            Err(error) => unusable.push((device.info().name.clone(), error.to_string())),
        }
    }
    let known = superblocks.iter().map(|superblock| superblock.device.0).collect();
    let mut replayed = Replayed::new(&superblocks);
    let options = expecting(Options::default(), &superblocks);
    let end = match dry_replay(rt, pool, log, &options, &mut replayed).await {
        Ok(end) => end,
        Err(error) => return (fail(error.to_string()), known),
    };
    let map_epoch = match replayed.local.map() {
        Ok(map) => map.epoch,
        Err(error) => return (fail(error.to_string()), known),
    };
    let incarnation = replayed.local.incarnation().0;
    let partitions = replayed.partitions.finish().len();
    (ReplayVerdict::WouldSucceed { end, map_epoch, incarnation, partitions }, known)
}
