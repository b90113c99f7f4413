//! Getting chunks of blocks, from their members or computed from the others.

use std::collections::BTreeMap;
use std::ops::Range;

use bb_erasure::{codec, crc32c_chunks};
use bb_proto::{Capability, DeviceId, PgId};
use bb_runtime::{Buf, BufMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::ReadError;
use crate::get::Miss;
pub use crate::get::Want;
use crate::io::{PgIo, Place};
use crate::layout::BlockLayout;
use crate::race::Race;

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOptions {
    /// A member that does not hold its block counts as missing. For when home has confirmed the
    /// descriptor; before that the fragment map may be out of date (rule 4).
    pub stale_is_missing: bool,
}

/// What happened on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Blocks that were reconstructed, in whole or in part.
    pub reconstructed: u32,
    /// Members that did not give what they should hold, for repair.
    pub suspects: Vec<DeviceId>,
}

impl ReadReport {
    /// Adds what another read reported.
    pub fn add(&mut self, other: Self) {
        self.reconstructed += other.reconstructed;
        self.suspects.extend(other.suspects);
    }
}

/// What is known of each block during one attempt.
pub(crate) struct Attempt<'a> {
    pub io: &'a PgIo,
    pub capability: &'a Capability,
    pub pg: PgId,
    pub layout: &'a BlockLayout,
    pub options: ReadOptions,
    /// A block may be fetched twice: what was asked for, and what a reconstruction needs.
    pub held: BTreeMap<usize, Vec<(Range<u16>, Buf)>>,
    pub missed: BTreeMap<usize, Miss>,
}

/// One attempt ended without a result.
pub(crate) enum Stop {
    /// Members are silent: try later.
    Later,
    /// Buffers are short: give back all, then take what a reconstruction needs in one go.
    Buffers,
    Final(ReadError),
}

impl PgIo {
    /// Chunks of blocks, in the order of `wants`, which name each block once. Reconstructs what is
    /// missing as long as N blocks of the group can be had.
    ///
    /// # Errors
    /// [`ReadError`]. Never wrong bytes.
    pub async fn gather(
        &self,
        capability: &Capability,
        pg: PgId,
        layout: &BlockLayout,
        wants: &[Want],
        options: ReadOptions,
    ) -> Result<(Vec<Buf>, ReadReport), ReadError> {
        let valid = |w: &Want| {
            w.index < layout.members.len()
                && w.chunks.start < w.chunks.end
                && w.chunks.end <= layout.chunks()
        };
        if !wants.iter().all(valid) {
            return Err(ReadError::Descriptor("chunks outside of the block".into()));
        }
        let give_up = self.rt.now() + self.limits.give_up;
        let mut short_of_buffers = false;
        for round in 0.. {
            let (held, missed) = (BTreeMap::new(), BTreeMap::new());
            let mut attempt = Attempt { io: self, capability, pg, layout, options, held, missed };
            let result = if short_of_buffers {
                attempt.rebuild_all(wants).await
            } else {
                attempt.run(wants).await
            };
            match result {
                Ok(done) => {
                    self.count(|stats| stats.reconstructed += u64::from(done.1.reconstructed));
                    return Ok(done);
                }
                Err(Stop::Final(error)) => return Err(error),
                Err(Stop::Buffers) => short_of_buffers = true,
                Err(Stop::Later) if self.rt.now() >= give_up => return Err(ReadError::Unreachable),
                Err(Stop::Later) => {
                    drop(attempt);
                    self.back_off(round).await;
                    self.view.refresh().await;
                }
            }
        }
        Err(ReadError::Unreachable)
    }
}

/// Memory for a reconstruction.
enum Buffers {
    /// For all sources, then for all results.
    All(Vec<BufMut>),
    /// For some of the results; what else it takes must be free.
    Outputs(Vec<BufMut>),
}

type Done = (Vec<Buf>, ReadReport);

impl<'a> Attempt<'a> {
    /// Straight from the members; where one misses or is late, from the others.
    async fn run(&mut self, wants: &'a [Want]) -> Result<Done, Stop> {
        let (away, here): (Vec<&Want>, Vec<&Want>) =
            wants.iter().partition(|want| self.is_away(want.index));
        let mut sizes: Vec<usize> = here.iter().map(|want| want.bytes(self.layout)).collect();
        if let Some(range) = away.first().map(|_| hull(away.iter().copied())) {
            // What is known to miss is computed from the start: with buffers that are taken now.
            let bytes = usize::from(range.end - range.start) << self.layout.shape.chunk_log2;
            sizes.extend(vec![bytes; self.sources(&here, &range) + away.len()]);
        }
        let (mut sinks, _under_way) = self.io.take_for_read(&sizes).await;
        let mut spare = sinks.split_off(here.len());
        let mut race = Race::new(wants);
        race.outputs = spare.split_off(spare.len().saturating_sub(away.len()));
        race.sources = spare;
        for (want, sink) in here.into_iter().zip(sinks) {
            self.io.late_reads.earn();
            self.io.count(|stats| stats.gets += 1);
            self.launch(&mut race, want.clone(), sink);
        }
        match self.run_race(&mut race).await {
            // What is missing is waited for below, with all these blocks in hand.
            #[cfg(feature = "planted")]
            Err(Stop::Buffers) if self.io.hold_and_wait.get() => {}
            result => result?,
        }
        let (outputs, hedged) = (std::mem::take(&mut race.outputs), race.hedged);
        drop(race);
        let lost: Vec<Want> =
            wants.iter().filter(|w| self.find(w.index, &w.chunks).is_none()).cloned().collect();
        let late = lost.iter().any(|want| !self.missed.contains_key(&want.index));
        let mut out = BTreeMap::new();
        if !lost.is_empty() {
            let range = hull(&lost);
            let missing: Vec<usize> = lost.iter().map(|w| w.index).collect();
            let blocks = self.reconstruct(&missing, &range, Buffers::Outputs(outputs)).await?;
            for (want, block) in lost.iter().zip(blocks) {
                out.insert(want.index, self.cut(&block, &range, &want.chunks));
            }
        }
        if hedged && late {
            self.io.count(|stats| stats.hedges_won += 1);
        }
        let reconstructed = u32::try_from(lost.len()).unwrap_or(u32::MAX);
        let take = |w: &Want| self.find(w.index, &w.chunks).or_else(|| out.get(&w.index).cloned());
        let bufs: Option<Vec<Buf>> = wants.iter().map(take).collect();
        Ok((bufs.ok_or(Stop::Later)?, self.report(reconstructed)))
    }

    /// True if the member is not asked: the map has its node as down, or has given the device up,
    /// or it did not answer a moment ago and others can make up for it.
    fn is_away(&mut self, index: usize) -> bool {
        let device = self.layout.members[index].device;
        let miss = match self.io.place(device) {
            Place::Gone => Miss::Lost,
            Place::Away => Miss::Away,
            Place::At(..) => {
                let (map, now) = (self.io.view.map(), self.io.rt.now());
                if !self.io.devices.is_silent(&map, device, now) || !self.can_spare() {
                    return false;
                }
                Miss::Silent
            }
        };
        self.missed.insert(index, miss);
        true
    }

    /// True if one more member may miss.
    fn can_spare(&self) -> bool {
        let (map, now) = (self.io.view.map(), self.io.rt.now());
        let well = (0..self.layout.members.len()).filter(|index| {
            let device = self.layout.members[*index].device;
            matches!(self.io.place(device), Place::At(..))
                && !self.io.devices.is_silent(&map, device, now)
                && !self.missed.contains_key(index)
        });
        well.count() >= self.layout.shape.geometry.data()
    }

    /// How many blocks must be asked for besides those that are.
    fn sources(&self, asked: &[&Want], range: &Range<u16>) -> usize {
        let covers = |have: &Range<u16>| have.start <= range.start && range.end <= have.end;
        let have = asked.iter().filter(|want| covers(&want.chunks)).count();
        self.layout.shape.geometry.data().saturating_sub(have)
    }

    /// With buffers for N sources and all wanted blocks taken at once, while holding none.
    async fn rebuild_all(&mut self, wants: &[Want]) -> Result<Done, Stop> {
        for index in 0..self.layout.members.len() {
            match self.io.place(self.layout.members[index].device) {
                Place::At(..) => continue,
                Place::Away => self.missed.insert(index, Miss::Away),
                Place::Gone => self.missed.insert(index, Miss::Lost),
            };
        }
        let range = hull(wants);
        let bytes = usize::from(range.end - range.start) << self.layout.shape.chunk_log2;
        let sources = self.layout.shape.geometry.data();
        let sizes = vec![bytes; sources + wants.len()];
        let (buffers, _under_way) = self.io.take_for_read(&sizes).await;
        let missing: Vec<usize> = wants.iter().map(|w| w.index).collect();
        let blocks = self.reconstruct(&missing, &range, Buffers::All(buffers)).await?;
        let cut = |(want, block): (&Want, Buf)| self.cut(&block, &range, &want.chunks);
        let bufs = wants.iter().zip(blocks).map(cut).collect();
        let reconstructed = wants.iter().filter(|w| !self.held.contains_key(&w.index)).count();
        Ok((bufs, self.report(u32::try_from(reconstructed).unwrap_or(u32::MAX))))
    }

    /// The chunks `range` of the blocks `missing`, out of those of N others.
    async fn reconstruct(
        &mut self,
        missing: &[usize],
        range: &Range<u16>,
        buffers: Buffers,
    ) -> Result<Vec<Buf>, Stop> {
        let geometry = self.layout.shape.geometry;
        let bytes = usize::from(range.end - range.start) << self.layout.shape.chunk_log2;
        let have = (0..geometry.total()).filter(|i| self.find(*i, range).is_some()).count();
        let need = geometry.data().saturating_sub(have);
        // Everybody else, data first: what is there need not be computed.
        let mut others: Vec<Want> = (0..geometry.total())
            .filter(|i| self.find(*i, range).is_none() && !self.missed.contains_key(i))
            .map(|index| Want { index, chunks: range.clone() })
            .collect();
        if others.len() < need {
            return Err(self.too_few());
        }
        // Those that did not answer a moment ago come last.
        let (map, now) = (self.io.view.map(), self.io.rt.now());
        others.sort_by_key(|want| {
            let device = self.layout.members[want.index].device;
            (self.io.devices.is_silent(&map, device, now), want.index)
        });
        others.reverse();
        let (buffers, mut outputs) = match buffers {
            Buffers::All(mut all) => {
                let outputs = all.split_off(all.len() - missing.len());
                (all, outputs)
            }
            Buffers::Outputs(mut outputs) => {
                outputs.retain(|output| output.capacity() >= bytes);
                outputs.truncate(missing.len());
                let sizes = vec![bytes; need + missing.len() - outputs.len()];
                let mut taken = match self.io.try_buffers(&sizes) {
                    Some(taken) => taken,
                    #[cfg(feature = "planted")]
                    None if self.io.hold_and_wait.get() => self.io.take_buffers(&sizes).await,
                    None => return Err(Stop::Buffers),
                };
                outputs.extend(taken.split_off(need));
                (taken, outputs)
            }
        };
        let first = (0..need).filter_map(|_| others.pop()).zip(buffers).collect();
        self.fetch(first, &mut others, need).await;
        self.check_final()?;
        let held: BTreeMap<usize, Buf> = (0..geometry.total())
            .filter_map(|index| Some((index, self.find(index, range)?)))
            .collect();
        if held.len() < geometry.data() {
            return Err(self.too_few());
        }
        let present: Vec<Option<&[u8]>> =
            (0..geometry.total()).map(|i| held.get(&i).map(|b| &b[..])).collect();
        let wanted: Vec<usize> =
            missing.iter().copied().filter(|i| !held.contains_key(i)).collect();
        outputs.truncate(wanted.len());
        for output in &mut outputs {
            output.set_len(bytes);
        }
        let mut sinks: Vec<&mut [u8]> = outputs.iter_mut().map(|b| &mut b[..]).collect();
        codec(self.layout.shape.codec)
            .and_then(|code| code.reconstruct(geometry, &present, &wanted, &mut sinks))
            .map_err(|error| Stop::Final(error.into()))?;
        let mut computed: BTreeMap<usize, Buf> =
            wanted.into_iter().zip(outputs.into_iter().map(BufMut::freeze)).collect();
        for (index, block) in &computed {
            self.check_computed(*index, range, block)?;
        }
        let take = |i: &usize| computed.remove(i).or_else(|| held.get(i).cloned());
        missing.iter().map(take).collect::<Option<Vec<Buf>>>().ok_or(Stop::Later)
    }

    /// A whole computed block must have the checksum that its writer gave it: else one of the
    /// sources was wrong from the start.
    fn check_computed(&self, index: usize, range: &Range<u16>, block: &Buf) -> Result<(), Stop> {
        if *range != (0..self.layout.chunks()) {
            return Ok(());
        }
        let crcs: Vec<u32> = crc32c_chunks(block, 1 << self.layout.shape.chunk_log2).collect();
        if crate::sealed::member_crc(&crcs) == self.layout.members[index].crc {
            return Ok(());
        }
        let parity = self.layout.shape.geometry.parity();
        Err(Stop::Final(ReadError::Lost { missing: parity + 1, parity }))
    }

    /// Fetches `first`, and for each that misses the next of `spare`, until `enough` have come.
    async fn fetch(&mut self, first: Vec<(Want, BufMut)>, spare: &mut Vec<Want>, enough: usize) {
        let (io, capability, pg, layout) = (self.io, self.capability, self.pg, self.layout);
        let get = |want: Want, sink| async move {
            let result = io.get(capability, pg, layout, &want, sink).await;
            (want, result)
        };
        let mut gets: FuturesUnordered<_> =
            first.into_iter().map(|(want, sink)| get(want, sink)).collect();
        let mut got = 0;
        while let Some((want, result)) = gets.next().await {
            match result {
                Ok(buf) => {
                    got += 1;
                    self.held.entry(want.index).or_default().push((want.chunks, buf));
                }
                Err(miss) => {
                    self.missed.insert(want.index, miss);
                    if let Some(next) = spare.pop()
                        && let Some(sink) = io.pool.try_alloc(next.bytes(layout))
                    {
                        gets.push(get(next, sink));
                    }
                }
            }
            if got == enough {
                return;
            }
        }
    }

    pub(crate) fn find(&self, index: usize, range: &Range<u16>) -> Option<Buf> {
        let held = self.held.get(&index)?;
        let covers = |have: &Range<u16>| have.start <= range.start && range.end <= have.end;
        let (have, buf) = held.iter().find(|(have, _)| covers(have))?;
        Some(self.cut(buf, have, range))
    }

    fn cut(&self, buf: &Buf, from: &Range<u16>, to: &Range<u16>) -> Buf {
        let at = |chunk: u16| usize::from(chunk - from.start) << self.layout.shape.chunk_log2;
        buf.slice(at(to.start)..at(to.end))
    }

    pub(crate) fn check_final(&self) -> Result<(), Stop> {
        for miss in self.missed.values() {
            match miss {
                Miss::Final(failure) => {
                    return Err(Stop::Final(ReadError::Refused(failure.clone())));
                }
                Miss::Stale if !self.options.stale_is_missing => {
                    return Err(Stop::Final(ReadError::Stale));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Too few blocks: for good, if more are lost than parity makes up for.
    fn too_few(&self) -> Stop {
        let lost = |miss: &&Miss| matches!(miss, Miss::Lost | Miss::Stale);
        let missing = self.missed.values().filter(lost).count();
        let parity = self.layout.shape.geometry.parity();
        if missing > parity {
            return Stop::Final(ReadError::Lost { missing, parity });
        }
        Stop::Later
    }

    fn report(&self, reconstructed: u32) -> ReadReport {
        // One that is only away, or did not answer, may still have its block.
        let suspects = self
            .missed
            .iter()
            .filter(|(_, miss)| matches!(miss, Miss::Lost | Miss::Stale))
            .map(|(index, _)| self.layout.members[*index].device);
        ReadReport { reconstructed, suspects: suspects.collect() }
    }
}

/// The chunks from the first that is wanted to the last.
pub(crate) fn hull<'a>(wants: impl IntoIterator<Item = &'a Want>) -> Range<u16> {
    let mut wants = wants.into_iter().map(|want| want.chunks.clone());
    let first = wants.next().unwrap_or(0..0);
    wants.fold(first, |all, next| all.start.min(next.start)..all.end.max(next.end))
}
