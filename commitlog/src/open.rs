//! Opening a log: find its end, deliver what it holds, start a new incarnation.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bb_nvme::DeviceRef;
use bb_runtime::sync::{Notify, Semaphore};
use bb_runtime::{BufPool, Rt};

use crate::error::LogError;
use crate::format::{BLOCK, RING_OFFSET};
use crate::group::{GroupInfo, Link, Records};
use crate::ids::{LogIdentity, Lsn};
use crate::log::{Inner, Log, LogStats, State};
use crate::options::Options;
use crate::reader::{Look, RingReader, RingSource};
use crate::replay::{Delivery, Replay};
use crate::space::Space;
use crate::streams::Streams;
use crate::superblock::{self, Found, Superblock};
use crate::writer;

/// Room in the ring, beyond a group, that is never given away: each restart takes a block of it
/// before it can trim.
const RESTART_ROOM: u64 = 32 * BLOCK as u64;

/// What the pass over the ring found.
struct Recovered {
    streams: Streams,
    externals: BTreeMap<u64, u64>,
    /// Where the log ends.
    end: u64,
    link: Link,
}

impl Log {
    /// Opens the log on `dev` and delivers what it holds to `replay`. `pool` must be able to spare
    /// about ten buffers of 1 MiB.
    ///
    /// On return the log has a new incarnation and everything that was delivered is durable.
    ///
    /// # Errors
    /// Each variant of [`LogError`] says what is wrong; nothing on the device was changed unless it
    /// is [`LogError::Failed`]. [`LogError::Damaged`] and [`LogError::Unreadable`] come after a
    /// part may have been delivered, which is to be thrown away.
    pub async fn open(
        rt: &Rt,
        pool: &BufPool,
        dev: &DeviceRef,
        options: Options,
        replay: &mut dyn Replay,
    ) -> Result<Self, LogError> {
        let (superblock, recovered) = read_back(rt, pool, dev, &options, replay).await?;
        // What was read may sit in a volatile cache; it must not be claimed as durable before.
        dev.flush().await?;
        let log = start(rt, pool, dev, options, superblock, recovered).await?;
        let first = log.inner.state.borrow_mut().force_group(&log.inner);
        log.inner.wake_writer.notify_all();
        match first {
            Some(durable) => durable.await?,
            None => return Err(LogError::Full { needed_bytes: BLOCK as u64 }),
        }
        Ok(log)
    }
}

/// Does what [`Log::open`] does up to the point where it would write, with the same checks: what
/// an operator asks when a server does not start. Nothing on the device changes. Returns where the
/// log ends.
///
/// # Errors
/// As [`Log::open`].
pub async fn dry_replay(
    rt: &Rt,
    pool: &BufPool,
    dev: &DeviceRef,
    options: &Options,
    replay: &mut dyn Replay,
) -> Result<Lsn, LogError> {
    let (_, recovered) = read_back(rt, pool, dev, options, replay).await?;
    Ok(Lsn(recovered.end))
}

/// Everything of opening a log that only reads.
async fn read_back(
    rt: &Rt,
    pool: &BufPool,
    dev: &DeviceRef,
    options: &Options,
    replay: &mut dyn Replay,
) -> Result<(Superblock, Recovered), LogError> {
    let superblock = load_superblock(dev, pool).await?;
    check_identity(&superblock.identity, options)?;
    let source = source(rt, pool, dev, &superblock, options.reads_in_flight);
    let reader = RingReader::new(source, superblock.trim);
    let recovered = recover(reader, &superblock, options, replay).await?;
    Ok((superblock, recovered))
}

/// The newest superblock, if it can be used.
pub(crate) async fn load_superblock(
    dev: &DeviceRef,
    pool: &BufPool,
) -> Result<Superblock, LogError> {
    let device = dev.info().name.clone();
    let Found { newest, damaged, newer_version, .. } = superblock::find(&**dev, pool).await?;
    if let Some(found) = newer_version {
        return Err(LogError::NewerVersion { found, supported: crate::format::VERSION });
    }
    let superblock = match newest {
        Some(superblock) => superblock,
        None if damaged > 0 => return Err(LogError::SuperblockDamaged { device }),
        None => return Err(LogError::NotALog { device }),
    };
    superblock::check(&superblock, dev.info().capacity_bytes)?;
    Ok(superblock)
}

/// How to read the ring that `superblock` describes.
pub(crate) fn source(
    rt: &Rt,
    pool: &BufPool,
    dev: &DeviceRef,
    superblock: &Superblock,
    reads_in_flight: usize,
) -> RingSource {
    RingSource {
        rt: rt.clone(),
        pool: pool.clone(),
        dev: dev.clone(),
        identity: superblock.identity,
        ring_bytes: superblock.ring_bytes,
        group_bytes_max: superblock.group_bytes_max,
        reads_in_flight,
    }
}

fn check_identity(found: &LogIdentity, options: &Options) -> Result<(), LogError> {
    let expect = &options.expect;
    if let Some(expected) = expect.cluster.filter(|cluster| *cluster != found.cluster) {
        return Err(LogError::WrongCluster { expected, found: found.cluster });
    }
    if let Some(expected) = expect.log.filter(|log| *log != found.log) {
        return Err(LogError::WrongLog { expected, found: found.log });
    }
    if let Some(expected) = expect.nonce.filter(|nonce| *nonce != found.nonce) {
        return Err(LogError::WrongNonce { expected, found: found.nonce });
    }
    Ok(())
}

/// One pass from the tail to the end of the log.
async fn recover(
    mut reader: RingReader,
    superblock: &Superblock,
    options: &Options,
    replay: &mut dyn Replay,
) -> Result<Recovered, LogError> {
    let mut delivery = Delivery::new(replay, &superblock.table, Lsn(superblock.durable_through));
    let mut externals = BTreeMap::new();
    let mut link: Option<Link> = None;
    let mut lsn = superblock.trim;
    let gap = loop {
        let (info, group) = match reader.group_at(lsn).await {
            Look::Group(info, group) => (info, group),
            Look::Not(crate::group::NotAGroup::Newer(found)) => {
                return Err(LogError::NewerVersion { found, supported: crate::format::VERSION });
            }
            Look::Not(why) => break why.describe(),
            Look::Unreadable(source) => return Err(LogError::Unreadable { lsn: Lsn(lsn), source }),
            Look::End => break "the ring is full".to_owned(),
        };
        if link.is_some_and(|link| !info.follows(&link)) {
            break crate::group::NotAGroup::Chain.describe();
        }
        check_trim(&info, superblock)?;
        let records = match info.payload(group) {
            Ok(payload) => Records::new(&info, payload),
            #[cfg(feature = "planted")]
            Err(_) if options.faults.trust_torn_record => {
                let end = info.header_bytes + info.payload_bytes;
                Records::unchecked(&info, &group[info.header_bytes..end])
            }
            Err(why) => break why.describe(),
        };
        delivery.group(info.incarnation)?;
        let mut count = 0;
        for record in records {
            match record {
                Ok(record) => {
                    count += 1;
                    delivery.record(Lsn(lsn), &record)?;
                }
                #[cfg(feature = "planted")]
                Err(_) if options.faults.trust_torn_record => break,
                // The group is what was written, so this was wrong when it was written.
                Err(what) => {
                    let detail = what.to_owned();
                    return Err(LogError::Damaged { lsn: Lsn(lsn), detail });
                }
            }
        }
        check_count(&info, count, options)?;
        for (tag, through) in &info.externals {
            let known = externals.entry(*tag).or_default();
            *known = (*through).max(*known);
        }
        link = Some(info.link());
        lsn = info.end();
    };
    look_past_the_end(&mut reader, superblock, options, lsn, &gap).await?;
    // LSNs past the end will be used again, for other records.
    for through in externals.values_mut() {
        *through = lsn.min(*through);
    }
    let link = link.unwrap_or(Link {
        crc: 0,
        // Nothing before it is known: a sequence that no earlier group can have reached.
        sequence: superblock.generation << 32,
        incarnation: superblock.incarnation,
    });
    Ok(Recovered { streams: delivery.finish()?, externals, end: lsn, link })
}

fn check_count(info: &GroupInfo, count: u32, options: &Options) -> Result<(), LogError> {
    #[cfg(feature = "planted")]
    if options.faults.trust_torn_record {
        return Ok(());
    }
    let _ = options;
    if count == info.record_count {
        return Ok(());
    }
    let detail = format!("a group of {} records holds {count}", info.record_count);
    Err(LogError::Damaged { lsn: Lsn(info.lsn), detail })
}

/// A torn tail, or damage? A later group that knew the gap to be durable means damage, and so does
/// a superblock that did (DESIGN.md, rule 12).
async fn look_past_the_end(
    reader: &mut RingReader,
    superblock: &Superblock,
    options: &Options,
    gap: u64,
    why: &str,
) -> Result<(), LogError> {
    #[cfg(feature = "planted")]
    if options.faults.ignore_damage {
        return Ok(());
    }
    let _ = options;
    if superblock.durable_through > gap {
        let through = superblock.durable_through;
        let detail = format!("{why}; the superblock says that all below {through} was durable");
        return Err(LogError::Damaged { lsn: Lsn(gap), detail });
    }
    let mut lsn = gap;
    while lsn < reader.end() {
        if let Some(other) = reader.header_at(lsn).await {
            check_trim(&other, superblock)?;
            if other.durable_through > gap {
                let (at, through) = (other.lsn, other.durable_through);
                let detail = format!("{why}; group {at} says that all below {through} was durable");
                return Err(LogError::Damaged { lsn: Lsn(gap), detail });
            }
        }
        lsn += BLOCK as u64;
    }
    Ok(())
}

/// A group that was written after the tail had moved on proves that the newest superblock is
/// missing.
fn check_trim(group: &GroupInfo, superblock: &Superblock) -> Result<(), LogError> {
    if group.trim <= superblock.trim {
        return Ok(());
    }
    let (newer, older) = (group.trim, superblock.trim);
    let detail =
        format!("the newest superblock is missing: it had moved the tail from {older} to {newer}");
    Err(LogError::Damaged { lsn: Lsn(group.lsn), detail })
}

/// A log that appends after what was recovered, with a new incarnation that is on the device.
async fn start(
    rt: &Rt,
    pool: &BufPool,
    dev: &DeviceRef,
    options: Options,
    old: Superblock,
    recovered: Recovered,
) -> Result<Log, LogError> {
    let end = Lsn(recovered.end);
    let superblock = Superblock {
        generation: old.generation + 1,
        incarnation: old.incarnation + 1,
        trim: recovered.streams.trim_target(end).0,
        durable_through: end.0,
        table: recovered.streams.table(end),
        ..old
    };
    let written = superblock.write(&**dev, pool).await;
    written.map_err(|error| LogError::Failed(format!("writing the superblock: {error}")))?;
    let slack = superblock.group_bytes_max as u64 + RESTART_ROOM;
    let reserves = options.reserves_for(superblock.ring_bytes);
    let mut space = Space::new(superblock.ring_bytes, slack, &reserves);
    space.set_head(end.0);
    space.set_trim(superblock.trim);
    let mut idle_buffers = Vec::new();
    for _ in 0..options.groups_in_flight.max(1) {
        idle_buffers.push(pool.alloc(superblock.group_bytes_max).await);
    }
    let state = State {
        superblock_busy: false,
        next_lsn: end.0,
        next_sequence: recovered.link.sequence,
        forming: None,
        closed: VecDeque::new(),
        in_flight: VecDeque::new(),
        idle_buffers,
        idle_bytes: Vec::new(),
        previous_crc: recovered.link.crc,
        durable_through: end.0,
        streams: recovered.streams,
        externals: recovered.externals,
        failed: None,
        closing: false,
        stats: LogStats::default(),
        superblock,
    };
    let inner = Rc::new(Inner {
        rt: rt.clone(),
        pool: pool.clone(),
        dev: dev.clone(),
        identity: state.superblock.identity,
        ring_bytes: state.superblock.ring_bytes,
        group_bytes_max: state.superblock.group_bytes_max,
        options,
        state: RefCell::new(state),
        space: RefCell::new(space),
        wake_writer: Notify::new(),
        changed: Notify::new(),
        failing: Notify::new(),
        snapshot_turn: Semaphore::new(1),
    });
    rt.spawn(writer::run(Rc::downgrade(&inner)));
    debug_assert!(RING_OFFSET + inner.ring_bytes <= dev.info().capacity_bytes);
    Ok(Log { inner })
}
