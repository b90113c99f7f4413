//! What is remembered of devices between requests: load and space as reported, times as measured,
//! requests under way, refusals.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{Candidate, ClusterMap};
use bb_proto::{DeviceId, NodeId};
use bb_runtime::Instant;
use bb_transport::Vitals;

/// What one request of ours under way adds to a device's load: a reply that says "idle" is older
/// than what we sent since.
const LOAD_PER_REQUEST: u32 = 20;
/// Load of a device without free space, besides everything else: among devices that are equally
/// busy the emptier one wins, and a busy empty one does not win against an idle half-full one.
const LOAD_FULL: u64 = 300;
/// A put that takes so long here makes a device count as fully loaded, whatever it says itself: the
/// way to it counts, too.
const PUT_FULL: Duration = Duration::from_millis(100);
/// Load of the slowest device: one that takes ten times as long as others shall be told from them
/// also when these are fully loaded.
const LOAD_SLOWEST: u64 = 50_000;
/// What was reported or measured counts half after so long: who is avoided is not asked, and would
/// be avoided for ever.
const HALF_LIFE: Duration = Duration::from_secs(1);
/// Weight of a new time in the mean: the last eight or so count.
const MEAN_SHIFT: u32 = 3;
/// Refused again and again, a device is avoided for up to 2^4 times as long.
const STRIKES_MAX: u32 = 4;
/// A read is never late before this: below it, asking others costs more than it saves.
const READ_LATE_MIN: Duration = Duration::from_millis(20);
const READ_LATE_MAX: Duration = Duration::from_secs(1);
/// A put is never late before this: a device that flushes may take so long.
const PUT_LATE_MIN: Duration = Duration::from_secs(1);

/// From then on it is asked now and then whether another device would be clearly faster with a put.
/// Below it, writing a block twice costs more than it saves.
const PUT_SLOW_MIN: Duration = PUT_FULL;
/// Clearly: so many times.
const CLEARLY: u64 = 4;

/// Why new groups avoid a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// It has no room, or it failed: its node says so.
    Refuses,
    /// No answer.
    Silent,
}

impl Why {
    /// Long enough to spare each group the refusal or the wait, short enough to notice freed space
    /// and a restart.
    const fn first(self) -> Duration {
        match self {
            Self::Refuses => Duration::from_secs(2),
            Self::Silent => Duration::from_secs(1),
        }
    }
}

#[derive(Clone, Copy)]
struct Avoid {
    why: Why,
    until: Instant,
    strikes: u32,
    /// Process of the node: another one is asked at once.
    incarnation: u64,
}

#[derive(Default, Clone)]
struct Known {
    node: u32,
    load: u32,
    free_mib: Option<u32>,
    heard: Instant,
    under_way: u32,
    /// When the reads under way began.
    reads: Vec<Instant>,
    /// When the puts under way began.
    puts: Vec<Instant>,
    /// When it last answered a read.
    read_answered: Option<Instant>,
    read_ns: u64,
    put_ns: u64,
    avoid: Option<Avoid>,
}

/// Loads and times by device.
#[derive(Default)]
pub(crate) struct Devices {
    known: RefCell<BTreeMap<DeviceId, Known>>,
    /// Mean time of a put, over all devices.
    put_ns: Cell<u64>,
}

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Read,
    Put,
}

/// Counts a request under way until dropped.
pub(crate) struct UnderWay {
    devices: Rc<Devices>,
    device: DeviceId,
    work: Work,
    began: Instant,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.devices.change(self.device, |known| {
            known.under_way = known.under_way.saturating_sub(1);
            let began = known.began(self.work);
            if let Some(at) = began.iter().position(|began| *began == self.began) {
                began.swap_remove(at);
            }
        });
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The mean with one more time in it.
fn mean(old: u64, took: Duration) -> u64 {
    let new = nanos(took);
    if old == 0 { new } else { old - (old >> MEAN_SHIFT) + (new >> MEAN_SHIFT) }
}

/// Load of a device whose puts take so long.
fn load_of_put(put_ns: u64) -> u64 {
    (put_ns.saturating_mul(1000) / nanos(PUT_FULL)).min(LOAD_SLOWEST)
}

impl Known {
    const fn began(&mut self, work: Work) -> &mut Vec<Instant> {
        match work {
            Work::Read => &mut self.reads,
            Work::Put => &mut self.puts,
        }
    }

    /// `usual_put_ns` is the mean over all devices.
    fn load(&self, capacity_bytes: u64, usual_put_ns: u64, now: Instant) -> u32 {
        let recent = u64::from(self.load).max(load_of_put(self.put_ns));
        let halves = now.since(self.heard).as_nanos() / HALF_LIFE.as_nanos();
        let recent = recent >> halves.min(63);
        // What has no answer yet says as much as an answer: else the slowest device looks idle until
        // its first one, and gets what the others, of which more is known, do not get.
        let under_way = self.puts.iter().min().map_or(0, |oldest| {
            let at_least = if self.put_ns == 0 { usual_put_ns } else { 0 };
            load_of_put(nanos(now.since(*oldest)).max(at_least))
        });
        let recent = recent.max(under_way);
        let full = self.free_mib.map_or(0, |free_mib| {
            let capacity_mib = (capacity_bytes >> 20).max(1);
            let used = 1000 - (u64::from(free_mib) * 1000 / capacity_mib).min(1000);
            // Squared: the last tenth counts for as much as the first half.
            used * used * LOAD_FULL / 1_000_000
        });
        let total = recent + full + u64::from(LOAD_PER_REQUEST * self.under_way);
        u32::try_from(total).unwrap_or(u32::MAX)
    }

    fn read_late(&self) -> Duration {
        let usual = Duration::from_nanos(self.read_ns.saturating_mul(3));
        usual.clamp(READ_LATE_MIN, READ_LATE_MAX)
    }

    fn is_avoided(&self, map: &ClusterMap, now: Instant) -> Option<Why> {
        let avoid = self.avoid.filter(|avoid| now < avoid.until)?;
        (incarnation(map, self.node) == avoid.incarnation).then_some(avoid.why)
    }
}

fn incarnation(map: &ClusterMap, node: u32) -> u64 {
    map.node(NodeId(node)).map_or(0, |node| node.incarnation)
}

impl Devices {
    fn change(&self, device: DeviceId, with: impl FnOnce(&mut Known)) {
        with(self.known.borrow_mut().entry(device).or_default());
    }

    pub(crate) fn begin(
        self: &Rc<Self>,
        map: &ClusterMap,
        device: DeviceId,
        work: Work,
        now: Instant,
    ) -> UnderWay {
        self.change(device, |known| {
            known.node = map.device(device).map_or(0, |entry| entry.node);
            known.under_way += 1;
            known.began(work).push(now);
        });
        UnderWay { devices: self.clone(), device, work, began: now }
    }

    pub(crate) fn seen(&self, device: DeviceId, vitals: Vitals, now: Instant) {
        self.change(device, |known| {
            known.load = vitals.load;
            known.free_mib = Some(vitals.free_mib);
            known.heard = now;
        });
    }

    /// The device did its work, in this time.
    pub(crate) fn well(&self, device: DeviceId, work: Work, took: Duration, now: Instant) {
        self.change(device, |known| match work {
            Work::Read => {
                known.read_ns = mean(known.read_ns, took);
                known.read_answered = Some(now);
                // One without room still reads well.
                known.avoid = known.avoid.filter(|avoid| avoid.why == Why::Refuses);
            }
            Work::Put => {
                known.put_ns = mean(known.put_ns, took);
                known.avoid = None;
                self.put_ns.set(mean(self.put_ns.get(), took));
            }
        });
    }

    /// The device was given up after this time: what it did has taken so long at least.
    pub(crate) fn took_longer(&self, device: DeviceId, waited: Duration, now: Instant) {
        self.change(device, |known| {
            known.put_ns = known.put_ns.max(nanos(waited));
            known.heard = now;
        });
    }

    /// New groups go elsewhere for a while; longer each time it was of no use to come back.
    pub(crate) fn avoid(&self, map: &ClusterMap, device: DeviceId, why: Why, now: Instant) {
        let node = map.device(device).map_or(0, |entry| entry.node);
        self.change(device, |known| {
            known.node = node;
            let pause = |strikes: u32| why.first() * (1 << strikes);
            let strikes = match known.avoid {
                // Several requests of one moment are one strike.
                Some(avoid) if now < avoid.until => avoid.strikes,
                Some(avoid) if now < avoid.until + pause(avoid.strikes) * 2 => {
                    (avoid.strikes + 1).min(STRIKES_MAX)
                }
                _ => 0,
            };
            let (until, incarnation) = (now + pause(strikes), incarnation(map, node));
            known.avoid = Some(Avoid { why, until, strikes, incarnation });
        });
    }

    /// The same for all devices of the node that drives `device`: the node itself does not answer.
    pub(crate) fn avoid_node(&self, map: &ClusterMap, device: DeviceId, now: Instant) {
        let Some(node) = map.device(device).map(|entry| entry.node) else { return };
        for entry in map.devices.iter().filter(|entry| entry.node == node) {
            self.avoid(map, DeviceId(entry.id), Why::Silent, now);
        }
    }

    pub(crate) fn is_avoided(&self, map: &ClusterMap, device: DeviceId, now: Instant) -> bool {
        self.known.borrow().get(&device).is_some_and(|k| k.is_avoided(map, now).is_some())
    }

    /// True if the device did not answer a moment ago, and has not since.
    pub(crate) fn is_silent(&self, map: &ClusterMap, device: DeviceId, now: Instant) -> bool {
        let known = self.known.borrow();
        known.get(&device).is_some_and(|k| k.is_avoided(map, now) == Some(Why::Silent))
    }

    /// The active devices on active nodes of a slice, with what is known of them.
    pub(crate) fn candidates(
        &self,
        map: &ClusterMap,
        slice: Option<&str>,
        now: Instant,
    ) -> Vec<Candidate> {
        let known = self.known.borrow();
        bb_cluster::candidates(map, slice, |device| {
            let capacity = map.device(device).map_or(0, |entry| entry.capacity_bytes);
            known.get(&device).map_or(0, |known| known.load(capacity, self.put_ns.get(), now))
        })
    }

    /// How long a read may take before others are asked.
    pub(crate) fn read_late(&self, device: DeviceId) -> Duration {
        self.known.borrow().get(&device).map_or(READ_LATE_MIN, Known::read_late)
    }

    /// How long a put may take before another device is asked: clearly longer than it usually does,
    /// here or elsewhere.
    pub(crate) fn put_late(&self, device: DeviceId) -> Duration {
        let own = self.known.borrow().get(&device).map_or(0, |known| known.put_ns);
        let usual = own.max(self.put_ns.get());
        Duration::from_nanos(usual.saturating_mul(8)).max(PUT_LATE_MIN)
    }

    /// How long a put may take before a faster device is looked for.
    pub(crate) const fn put_slow() -> Duration {
        PUT_SLOW_MIN
    }

    /// True if `other` would clearly be faster than a put that has been waited for so long: as far as
    /// is known, not for want of knowing it.
    pub(crate) fn is_clearly_faster(
        &self,
        other: DeviceId,
        waited: Duration,
        now: Instant,
    ) -> bool {
        let known = self.known.borrow();
        known.get(&other).filter(|other| other.put_ns > 0).is_some_and(|other| {
            let oldest = other.puts.iter().min().map_or(0, |oldest| nanos(now.since(*oldest)));
            other.put_ns.max(oldest).saturating_mul(CLEARLY) <= nanos(waited)
        })
    }

    /// True if devices of other nodes (other devices, where there is one node) have been busy with a
    /// read for about as long, and none of them has answered any since `began`: then it is not this
    /// device that is slow.
    pub(crate) fn all_late(&self, device: DeviceId, began: Instant, now: Instant) -> bool {
        let known = self.known.borrow();
        let Some(node) = known.get(&device).map(|known| known.node) else { return false };
        let one_node = known.values().all(|other| other.node == node);
        let others = || {
            known
                .iter()
                .filter(|(id, other)| if one_node { **id != device } else { other.node != node })
                .map(|(_, other)| other)
        };
        let waited = now.since(began);
        let late = |other: &Known| other.reads.iter().any(|at| now.since(*at) >= waited / 2);
        others().any(late) && !others().any(|o| o.read_answered.is_some_and(|at| at > began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_cluster::{DeviceEntry, NodeEntry};

    fn map() -> ClusterMap {
        let node = |id| NodeEntry { id, incarnation: 1, ..NodeEntry::default() };
        let device = |id| DeviceEntry {
            id,
            node: 1 + id,
            capacity_bytes: 1 << 30,
            ..DeviceEntry::default()
        };
        ClusterMap {
            nodes: (1..4).map(node).collect(),
            devices: (0..3).map(device).collect(),
            ..ClusterMap::default()
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(ms)
    }

    const fn vitals(load: u32, free_mib: u32) -> Vitals {
        Vitals { tick: bb_proto::Tick(0), load, free_mib }
    }

    #[test]
    fn who_refuses_is_avoided_longer_each_time_and_comes_back() {
        let (devices, map, d) = (Devices::default(), map(), DeviceId(0));
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            devices.avoid(&map, d, Why::Silent, at(now));
            devices.avoid(&map, d, Why::Silent, at(now));
            let began = now;
            while devices.is_avoided(&map, d, at(now)) {
                now += 100;
            }
            pauses.push(now - began);
        }
        assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 16_000, 16_000]);
        devices.avoid(&map, d, Why::Silent, at(now + 100_000));
        assert!(!devices.is_avoided(&map, d, at(now + 101_000)), "old strikes are forgotten");
        devices.avoid(&map, d, Why::Silent, at(now + 101_000));
        devices.well(d, Work::Put, Duration::from_millis(1), at(now + 101_001));
        assert!(!devices.is_avoided(&map, d, at(now + 101_001)));
    }

    #[test]
    fn a_node_that_was_started_anew_is_asked_at_once() {
        let (devices, mut map) = (Devices::default(), map());
        devices.avoid_node(&map, DeviceId(1), at(0));
        assert!(devices.is_silent(&map, DeviceId(1), at(1)));
        assert!(!devices.is_silent(&map, DeviceId(2), at(1)));
        map.nodes[1].incarnation = 2;
        assert!(!devices.is_silent(&map, DeviceId(1), at(1)));
    }

    #[test]
    fn load_is_what_is_reported_and_measured_and_it_fades() {
        let (devices, map) = (Devices::default(), map());
        let load = |device: usize, ms| devices.candidates(&map, None, at(ms))[device].load;
        devices.seen(DeviceId(0), vitals(800, 1024), at(0));
        assert_eq!((load(0, 0), load(0, 1_000), load(0, 9_000)), (800, 400, 1));
        // Half full, then almost full.
        devices.seen(DeviceId(1), vitals(0, 512), at(0));
        assert_eq!(load(1, 0), 75);
        devices.seen(DeviceId(1), vitals(0, 51), at(0));
        assert!(load(1, 0) > 260);
        devices.seen(DeviceId(2), vitals(0, 1024), at(0));
        devices.well(DeviceId(2), Work::Put, Duration::from_millis(50), at(0));
        assert_eq!(load(2, 0), 500, "it says that it is idle, and takes long");
    }

    #[test]
    fn a_put_without_an_answer_counts_for_as_long_as_it_is_under_way() {
        let (devices, map) = (Rc::new(Devices::default()), map());
        let load = |device: usize, ms| devices.candidates(&map, None, at(ms))[device].load;
        devices.well(DeviceId(0), Work::Put, Duration::from_millis(30), at(0));
        let put = devices.begin(&map, DeviceId(1), Work::Put, at(0));
        assert_eq!(load(1, 0), 320, "as slow as the others until more is known");
        assert_eq!(load(1, 60), 620);
        assert_eq!(load(1, 1_000), 10_020, "told from those that are only fully loaded");
        drop(put);
        assert_eq!(load(1, 1_000), 0);
        let read = devices.begin(&map, DeviceId(2), Work::Read, at(0));
        assert_eq!(load(2, 60), 20, "a read tells nothing of puts");
        drop(read);
    }
}
