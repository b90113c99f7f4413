//! One read against the clock: what is wanted is asked for at once; what misses, or is late, is made
//! up for by others; what is complete first counts.
//!
//! A member that misses (its node is down, it refuses, it does not answer) is made up for at once,
//! whatever that costs. A member that is only late is made up for within the budget, and only where
//! buffers are free: a read that waits for buffers while it holds some could wait for ever (rule 14).
//! An answer that is not waited for any more keeps its buffer until it comes, or until its connection
//! ends: that is the transport's part of rule 6.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bb_runtime::{Buf, BufMut, Instant};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::gather::{Attempt, Stop, hull};
use crate::get::{Miss, Want};
use crate::io::Place;

/// A member that is late for so long may be on a node that is dead: the map will say so.
const ASK_MAP_AFTER: Duration = Duration::from_secs(1);

/// What comes next.
enum Event {
    Got(usize, Want, Result<Buf, Miss>),
    MapIsNew,
}

type Events<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = Event> + 'a>>>;

/// A request on its way.
struct Flight {
    want: Want,
    began: Instant,
    /// When it is looked at again.
    due: Instant,
    late: bool,
}

/// The requests of one attempt.
pub(crate) struct Race<'a> {
    wants: &'a [Want],
    flights: BTreeMap<usize, Flight>,
    next: usize,
    events: Events<'a>,
    asking_map: bool,
    /// No buffers for what has to be made up for.
    short: bool,
    /// Buffers for what is computed.
    pub outputs: Vec<BufMut>,
    /// Buffers for what it is computed from, as far as they were taken beforehand.
    pub sources: Vec<BufMut>,
    /// A late member is being made up for.
    pub hedged: bool,
}

impl<'a> Race<'a> {
    pub fn new(wants: &'a [Want]) -> Self {
        Self {
            wants,
            flights: BTreeMap::new(),
            next: 0,
            events: FuturesUnordered::new(),
            asking_map: false,
            short: false,
            outputs: Vec::new(),
            sources: Vec::new(),
            hedged: false,
        }
    }

    /// True if the block was asked for in vain so far, or these chunks of it are on their way.
    fn has_asked(&self, index: usize, chunks: &Range<u16>) -> bool {
        let mut flights = self.flights.values().filter(|flight| flight.want.index == index);
        flights.any(|flight| flight.late || flight.want.chunks == *chunks)
    }
}

/// What is missing, and what it takes to compute it.
struct Lack {
    /// Wanted blocks that are neither here nor expected in time.
    lost: Vec<Want>,
    range: Range<u16>,
    /// Blocks that must still be asked for.
    more: usize,
    /// Some of them miss for good, not only for now.
    certain: bool,
}

impl<'a> Attempt<'a> {
    /// Sends a request into the race.
    pub(crate) fn launch(&self, race: &mut Race<'a>, want: Want, sink: BufMut) {
        let (io, capability, pg, layout) = (self.io, self.capability, self.pg, self.layout);
        let (now, number) = (io.rt.now(), race.next);
        let device = layout.members[want.index].device;
        let due = now + io.devices.read_late(device);
        race.next += 1;
        race.flights.insert(number, Flight { want: want.clone(), began: now, due, late: false });
        race.events.push(Box::pin(async move {
            let result = io.get(capability, pg, layout, &want, sink).await;
            Event::Got(number, want, result)
        }));
    }

    /// Runs until all wants are here or can be computed, or nothing more can come.
    pub(crate) async fn run_race(&mut self, race: &mut Race<'a>) -> Result<(), Stop> {
        loop {
            if let Some(lack) = self.lack(race) {
                if lack.more > 0 {
                    self.make_up(race, &lack);
                } else if self.is_decodable(&lack.range) && self.rest_is_here(race, &lack.lost) {
                    return Ok(());
                }
                if race.flights.is_empty() {
                    return if race.short { Err(Stop::Buffers) } else { Ok(()) };
                }
            } else if race.wants.iter().all(|want| self.has(want)) {
                return Ok(());
            }
            let due = race.flights.values().map(|flight| flight.due).min();
            let wait = due.map_or(Duration::ZERO, |due| due.since(self.io.rt.now()));
            match self.io.rt.timeout(wait, race.events.next()).await {
                Ok(Some(Event::Got(number, want, result))) => {
                    race.flights.remove(&number);
                    self.take(want, result)?;
                }
                Ok(Some(Event::MapIsNew)) => {
                    race.asking_map = false;
                    self.look_at_map(race);
                }
                Ok(None) => return Ok(()),
                Err(_) => self.look_at_clock(race),
            }
        }
    }

    fn has(&self, want: &Want) -> bool {
        self.find(want.index, &want.chunks).is_some()
    }

    fn take(&mut self, want: Want, result: Result<Buf, Miss>) -> Result<(), Stop> {
        match result {
            Ok(buf) => self.held.entry(want.index).or_default().push((want.chunks, buf)),
            Err(miss) => {
                self.missed.entry(want.index).or_insert(miss);
            }
        }
        self.check_final()
    }

    /// What misses, given what is on its way in time. `None` where nothing does.
    fn lack(&self, race: &Race<'a>) -> Option<Lack> {
        let in_time = |want: &Want| {
            race.flights.values().any(|f| !f.late && f.want.index == want.index)
                && !self.missed.contains_key(&want.index)
        };
        let lost: Vec<Want> =
            race.wants.iter().filter(|w| !self.has(w) && !in_time(w)).cloned().collect();
        if lost.is_empty() {
            return None;
        }
        let certain = lost.iter().any(|want| self.missed.contains_key(&want.index));
        let range = hull(&lost);
        let coming = (0..self.layout.members.len())
            .filter(|index| self.find(*index, &range).is_some() || self.comes(race, *index, &range))
            .count();
        let more = self.layout.shape.geometry.data().saturating_sub(coming);
        Some(Lack { lost, range, more, certain })
    }

    /// True if a request is on its way in time that brings these chunks of the block.
    fn comes(&self, race: &Race<'a>, index: usize, range: &Range<u16>) -> bool {
        let covers = |have: &Range<u16>| have.start <= range.start && range.end <= have.end;
        let in_time = |f: &Flight| !f.late && f.want.index == index && covers(&f.want.chunks);
        race.flights.values().any(in_time)
    }

    fn is_decodable(&self, range: &Range<u16>) -> bool {
        let held = (0..self.layout.members.len()).filter(|i| self.find(*i, range).is_some());
        held.count() >= self.layout.shape.geometry.data()
    }

    fn rest_is_here(&self, race: &Race<'a>, lost: &[Want]) -> bool {
        race.wants.iter().all(|want| self.has(want) || lost.contains(want))
    }

    /// Asks others for what is lost: as many as it takes, or none.
    fn make_up(&mut self, race: &mut Race<'a>, lack: &Lack) {
        let (map, now) = (self.io.view.map(), self.io.rt.now());
        let mut spare: Vec<usize> = (0..self.layout.members.len())
            .filter(|index| {
                self.find(*index, &lack.range).is_none()
                    && !self.missed.contains_key(index)
                    && !race.has_asked(*index, &lack.range)
            })
            .collect();
        // Those that answer, data before parity: what is there need not be computed.
        let device = |index: usize| self.layout.members[index].device;
        spare.sort_by_key(|index| (self.io.devices.is_silent(&map, device(*index), now), *index));
        if spare.len() < lack.more {
            return;
        }
        spare.truncate(lack.more);
        let bytes = usize::from(lack.range.end - lack.range.start) << self.layout.shape.chunk_log2;
        race.sources.retain(|buffer| buffer.capacity() >= bytes);
        let sources = spare.len().saturating_sub(race.sources.len());
        let outputs = lack.lost.len().saturating_sub(race.outputs.len());
        let Some(mut buffers) = self.io.try_buffers(&vec![bytes; sources + outputs]) else {
            race.short |= lack.certain;
            return;
        };
        if !lack.certain && !self.io.late_reads.spend(spare.len()) {
            return;
        }
        race.outputs.extend(buffers.split_off(sources));
        buffers.extend(race.sources.drain(..spare.len() - sources));
        if !lack.certain {
            race.hedged = true;
            self.io.count(|stats| {
                stats.hedges += 1;
                stats.hedge_gets += spare.len() as u64;
            });
        }
        for (index, sink) in spare.into_iter().zip(buffers) {
            self.launch(race, Want { index, chunks: lack.range.clone() }, sink);
        }
    }

    /// Requests whose time is up are late, unless all are.
    fn look_at_clock(&self, race: &mut Race<'a>) {
        let (io, now) = (self.io, self.io.rt.now());
        let mut ask_map = false;
        for flight in race.flights.values_mut().filter(|flight| flight.due <= now) {
            let device = self.layout.members[flight.want.index].device;
            let waited = now.since(flight.began);
            ask_map |= waited >= ASK_MAP_AFTER;
            // A slow network or a loaded cluster is not this device's fault; but not for ever.
            let all = waited < ASK_MAP_AFTER && io.devices.all_late(device, flight.began, now);
            flight.late |= !all;
            flight.due = now + waited.max(Duration::from_millis(1));
        }
        if ask_map && !std::mem::replace(&mut race.asking_map, true) {
            let refresh = io.view.refresh();
            race.events.push(Box::pin(async move {
                refresh.await;
                Event::MapIsNew
            }));
        }
    }

    /// Who is down by the map that has come is not waited for.
    fn look_at_map(&mut self, race: &mut Race<'a>) {
        for flight in race.flights.values() {
            let index = flight.want.index;
            let miss = match self.io.place(self.layout.members[index].device) {
                Place::At(..) => continue,
                Place::Away => Miss::Away,
                Place::Gone => Miss::Lost,
            };
            self.missed.entry(index).or_insert(miss);
        }
        let missed = &self.missed;
        race.flights.retain(|_, flight| !missed.contains_key(&flight.want.index));
    }
}
