//! Writing: all blocks in parallel. A member that refuses is replaced by another device, on another
//! node while there are nodes enough; for one that is late, or slow where another would clearly be
//! faster, another is written beside it, within a budget, and what is durable first counts.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bb_cluster::{Apart, Candidate, Placement, Rules, choose_members_beside, layout_over};
use bb_proto::{Capability, Code, DeviceId, Failure, Kind, PgDescriptor, PgId, PutBlock};
use bb_runtime::Instant;
use bb_transport::{CallError, Outgoing};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::devices::{Devices, Why, Work};
use crate::io::{PgIo, Place};
use crate::sealed::Sealed;
use crate::{Shape, WriteError};

/// Why a device did not take a block.
enum Refusal {
    NoSpace,
    Failed,
    /// No answer, or its node is down.
    Silent,
    /// Another device would say the same.
    Final(Failure),
}

/// A put on its way.
struct Flight {
    device: DeviceId,
    began: Instant,
    /// When it is looked at again.
    due: Instant,
    /// From when on it is late: its device may not answer at all.
    late_at: Instant,
    late: bool,
}

/// One block and where it goes.
#[derive(Default)]
struct Slot {
    flights: Vec<Flight>,
    done: Option<DeviceId>,
}

impl Slot {
    fn devices(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.flights.iter().map(|flight| flight.device).chain(self.done)
    }

    /// True if it needs a device: it has none, or only such as are late.
    fn wants(&self, also_late: bool) -> bool {
        self.done.is_none() && self.flights.iter().all(|flight| also_late && flight.late)
    }
}

enum Event {
    Put(usize, DeviceId, Result<(), Refusal>),
    MapIsNew,
}

type Events<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Event> + 'a>>>;

/// One group on its way.
struct Round<'a> {
    io: &'a PgIo,
    capability: &'a Capability,
    pg: PgId,
    sealed: &'a Sealed,
    slots: Vec<Slot>,
    /// Who refused this group for want of room.
    full: BTreeSet<DeviceId>,
    /// Devices that are no more, or that the map has taken away.
    failed: BTreeSet<DeviceId>,
    silent: BTreeSet<DeviceId>,
    events: Events<'a>,
    asking_map: bool,
}

impl PgIo {
    /// Waits for the parity buffers of a shape.
    pub async fn parity_buffers(&self, shape: &Shape) -> Vec<bb_runtime::BufMut> {
        self.take_buffers(&vec![shape.block_bytes(); shape.geometry.parity()]).await
    }

    /// Writes all blocks of a group. Returns when all members have them durably.
    ///
    /// # Errors
    /// [`WriteError`]. Blocks that were written stay behind as orphans, which their members settle
    /// with home (rule 1).
    pub async fn write(
        &self,
        capability: &Capability,
        pg: PgId,
        sealed: &Sealed,
    ) -> Result<PgDescriptor, WriteError> {
        let total = sealed.shape.geometry.total();
        let give_up = self.rt.now() + self.limits.give_up;
        let mut round = Round {
            io: self,
            capability,
            pg,
            sealed,
            slots: (0..total).map(|_| Slot::default()).collect(),
            full: BTreeSet::new(),
            failed: BTreeSet::new(),
            silent: BTreeSet::new(),
            events: FuturesUnordered::new(),
            asking_map: false,
        };
        for attempt in 0.. {
            round.run().await?;
            let devices: Vec<DeviceId> = round.slots.iter().filter_map(|slot| slot.done).collect();
            if devices.len() == total {
                return Ok(sealed.descriptor(pg, &devices));
            }
            let geometry = sealed.shape.geometry;
            if self.usable_geometry(geometry).is_some_and(|now| now.data() < geometry.data()) {
                // Fewer blocks can be had at once, which beats waiting for who is away.
                return Err(round.no_space());
            }
            if round.is_full() || self.rt.now() >= give_up {
                return Err(round.exhausted());
            }
            // Too few answer: a server restarts, or a map is under way. Ask all of them again.
            round.silent.clear();
            self.back_off(attempt).await;
            self.view.refresh().await;
        }
        Err(WriteError::Unreachable)
    }

    async fn put(
        &self,
        capability: &Capability,
        pg: PgId,
        sealed: &Sealed,
        index: usize,
        device: DeviceId,
    ) -> Result<(), Refusal> {
        let body = PutBlock {
            pg,
            capability: *capability,
            index: u8::try_from(index).unwrap_or(u8::MAX),
            block_log2: sealed.shape.block_log2,
            chunk_log2: sealed.shape.chunk_log2,
            chunk_crcs: sealed.chunk_crcs(index).to_vec(),
        }
        .encode();
        let began = self.rt.now();
        let _under_way = self.devices.begin(&self.view.map(), device, Work::Put, began);
        let patience = began + self.limits.busy_max;
        for attempt in 0.. {
            let (address, fence) = match self.place(device) {
                Place::At(address, fence) => (address, fence),
                Place::Away => return Err(Refusal::Silent),
                Place::Gone => return Err(Refusal::Failed),
            };
            let (timeout, asked) = (self.limits.put_timeout, self.rt.now());
            let request = Outgoing::new(Kind::PutBlock, self.limits.class, timeout, body.clone())
                .to(device.0, fence)
                .with_payload(vec![sealed.block(index).clone()]);
            let error = match self.caller.call(&address, request).await {
                Ok(answer) => {
                    let now = self.rt.now();
                    self.note(device, answer.vitals);
                    self.devices.well(device, Work::Put, now.since(asked), now);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.note_error(device, &error);
            let CallError::Refused(failure, _) = error else { return Err(Refusal::Silent) };
            match failure.kind() {
                Code::NoSpace => return Err(Refusal::NoSpace),
                Code::DeviceFailed => return Err(Refusal::Failed),
                _ if self.rt.now() >= patience => return Err(Refusal::Silent),
                // Damaged on its way, or a tick that has not reached the device's node yet.
                Code::Busy | Code::Corrupt | Code::SlotAhead => self.back_off(attempt).await,
                Code::Fenced => {
                    self.view.refresh().await;
                    self.back_off(attempt).await;
                }
                _ => return Err(Refusal::Final(failure)),
            }
        }
        Err(Refusal::Silent)
    }
}

impl<'a> Round<'a> {
    /// Puts until every block is durable somewhere, or nothing more can be done for now.
    async fn run(&mut self) -> Result<(), WriteError> {
        self.place_all();
        loop {
            let open = || self.slots.iter().filter(|slot| slot.done.is_none());
            let due = open().flat_map(|slot| &slot.flights).map(|flight| flight.due).min();
            let Some(due) = due else { return Ok(()) };
            let wait = due.since(self.io.rt.now());
            match self.io.rt.timeout(wait, self.events.next()).await {
                Ok(Some(Event::Put(index, device, result))) => self.ended(index, device, result)?,
                Ok(Some(Event::MapIsNew)) => {
                    self.asking_map = false;
                    self.look_at_map();
                }
                Ok(None) => return Ok(()),
                Err(_) => self.look_at_clock(),
            }
        }
    }

    /// Finds a device for every block that has none.
    fn place_all(&mut self) {
        let bare: Vec<usize> =
            (0..self.slots.len()).filter(|index| self.slots[*index].wants(false)).collect();
        for (index, device) in bare.iter().zip(self.choose(bare.len())) {
            self.io.late_puts.earn();
            self.io.count(|stats| stats.puts += 1);
            self.launch(*index, device);
        }
    }

    fn launch(&mut self, index: usize, device: DeviceId) {
        let (io, capability, pg, sealed) = (self.io, self.capability, self.pg, self.sealed);
        let began = io.rt.now();
        let late_at = began + io.devices.put_late(device);
        // Where the id says which devices a group has, a slow one is waited for.
        let due = match self.placement() {
            Placement::Deterministic => late_at,
            Placement::LeastLoaded => late_at.min(began + Devices::put_slow()),
        };
        self.slots[index].flights.push(Flight { device, began, due, late_at, late: false });
        self.events.push(Box::pin(async move {
            Event::Put(index, device, io.put(capability, pg, sealed, index, device).await)
        }));
    }

    fn ended(
        &mut self,
        index: usize,
        device: DeviceId,
        result: Result<(), Refusal>,
    ) -> Result<(), WriteError> {
        let now = self.io.rt.now();
        let slot = &mut self.slots[index];
        let before = slot.flights.len();
        slot.flights.retain(|flight| flight.device != device);
        if slot.done.is_some() || slot.flights.len() == before {
            // Nobody waits for it any more.
            return Ok(());
        }
        match result {
            Ok(()) => {
                slot.done = Some(device);
                // What another device does with it is settled between that and home (rule 1).
                for other in slot.flights.drain(..) {
                    self.io.devices.took_longer(other.device, now.since(other.began), now);
                }
            }
            Err(Refusal::Final(failure)) => return Err(WriteError::Refused(failure)),
            Err(refusal) => self.refused(index, device, &refusal),
        }
        Ok(())
    }

    fn refused(&mut self, index: usize, device: DeviceId, refusal: &Refusal) {
        let (map, now) = (self.io.view.map(), self.io.rt.now());
        let (set, why) = match refusal {
            Refusal::Silent => (&mut self.silent, Why::Silent),
            Refusal::NoSpace => (&mut self.full, Why::Refuses),
            Refusal::Failed | Refusal::Final(_) => (&mut self.failed, Why::Refuses),
        };
        set.insert(device);
        self.io.devices.avoid(&map, device, why, now);
        if self.slots[index].wants(false) {
            self.replace(index);
        }
    }

    fn replace(&mut self, index: usize) -> bool {
        let Some(other) = self.choose(1).first().copied() else { return false };
        self.io.count(|stats| stats.puts_replaced += 1);
        self.launch(index, other);
        true
    }

    /// Puts whose time is up are late: another device gets the block, too, within the budget. So it
    /// does while a put only takes long and another device would clearly be faster.
    fn look_at_clock(&mut self) {
        let now = self.io.rt.now();
        let (mut slow, mut late, mut any_late) = (Vec::new(), Vec::new(), false);
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, s)| s.done.is_none()) {
            let alone = slot.flights.len() == 1;
            for flight in slot.flights.iter_mut().filter(|flight| flight.due <= now) {
                if now < flight.late_at {
                    flight.due = flight.late_at.min(now + Devices::put_slow());
                    if alone {
                        slow.push((index, now.since(flight.began)));
                    }
                    continue;
                }
                any_late = true;
                flight.due = now + now.since(flight.began).max(Duration::from_millis(1));
                flight.late = true;
                self.io.devices.avoid(&self.io.view.map(), flight.device, Why::Silent, now);
            }
            if slot.wants(true) {
                late.push(index);
            }
        }
        for (index, waited) in slow {
            self.hedge(index, waited);
        }
        if !any_late {
            return;
        }
        for index in late {
            if self.io.late_puts.spend(1) && self.replace(index) {
                self.io.count(|stats| stats.hedge_puts += 1);
            }
        }
        if !std::mem::replace(&mut self.asking_map, true) {
            let refresh = self.io.view.refresh();
            self.events.push(Box::pin(async move {
                refresh.await;
                Event::MapIsNew
            }));
        }
    }

    /// Another device gets the block beside one that was waited for so long, if it is clearly faster.
    fn hedge(&mut self, index: usize, waited: Duration) {
        let now = self.io.rt.now();
        let faster = |other| self.io.devices.is_clearly_faster(other, waited, now);
        let Some(other) = self.choose_of(1, faster).first().copied() else { return };
        if self.io.late_puts.spend(1) {
            self.io.count(|stats| stats.hedge_puts += 1);
            self.launch(index, other);
        }
    }

    /// Who is down by the map that has come is not waited for.
    fn look_at_map(&mut self) {
        for index in 0..self.slots.len() {
            let gone = |d: &DeviceId| !matches!(self.io.place(*d), Place::At(..));
            let flights = self.slots[index].flights.iter().map(|flight| flight.device);
            let gone: Vec<DeviceId> = flights.filter(gone).collect();
            for device in gone {
                self.slots[index].flights.retain(|flight| flight.device != device);
                self.refused(index, device, &Refusal::Silent);
            }
        }
    }

    /// Devices for so many blocks, apart from those that hold, are given, or refused one. May be too
    /// few.
    fn choose(&self, count: usize) -> Vec<DeviceId> {
        self.choose_of(count, |_| true)
    }

    /// The same of those for which that is true.
    fn choose_of(&self, count: usize, may: impl Fn(DeviceId) -> bool) -> Vec<DeviceId> {
        let (io, map, now) = (self.io, self.io.view.map(), self.io.rt.now());
        let all = io.candidates();
        let rules = Rules { placement: self.placement(), apart: self.apart(&all) };
        let given: Vec<DeviceId> = self.slots.iter().flat_map(Slot::devices).collect();
        let free = |c: &Candidate| {
            !given.contains(&c.device)
                && !self.full.contains(&c.device)
                && !self.failed.contains(&c.device)
                && !self.silent.contains(&c.device)
                && may(c.device)
        };
        let free: Vec<Candidate> = all.into_iter().filter(free).collect();
        let well = |c: &Candidate| !io.devices.is_avoided(&map, c.device, now);
        let well: Vec<Candidate> = free.iter().copied().filter(well).collect();
        let node = |d: &DeviceId| map.device(*d).map(|entry| entry.node);
        let taken: Vec<u32> = given.iter().filter_map(node).collect();
        let mut chance = |bound: u64| io.rt.random_below(bound);
        let mut choose = |from: &[Candidate]| {
            choose_members_beside(rules, self.pg, from, &taken, count, &mut chance)
        };
        let chosen = choose(&well);
        if chosen.len() >= count {
            return chosen;
        }
        // Rather one that refused another group a moment ago than none.
        choose(&free)
    }

    fn placement(&self) -> Placement {
        let map = self.io.view.map();
        if self.io.limits.deterministic.unwrap_or(map.deterministic) {
            Placement::Deterministic
        } else {
            Placement::LeastLoaded
        }
    }

    /// What keeps the blocks apart: the nodes of the map, not those that happen to answer.
    fn apart(&self, all: &[Candidate]) -> Apart {
        let geometry = self.sealed.shape.geometry;
        let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let layout = layout_over(small(geometry.data()), small(geometry.parity()), all);
        layout.map_or(Apart::Nodes, |layout| layout.apart)
    }

    /// True if it is for want of room: somebody refused, and nobody is silent or away.
    fn is_full(&self) -> bool {
        self.silent.is_empty() && !self.full.is_empty()
    }

    fn exhausted(&self) -> WriteError {
        if self.is_full() { self.no_space() } else { WriteError::Unreachable }
    }

    fn no_space(&self) -> WriteError {
        let all = self.io.candidates();
        let refused = |c: &Candidate| {
            [&self.full, &self.failed, &self.silent].iter().any(|set| set.contains(&c.device))
        };
        let usable = all.iter().filter(|c| !refused(c)).count();
        WriteError::NoSpace { usable, needed: self.slots.len() }
    }
}
