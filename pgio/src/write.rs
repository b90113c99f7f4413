//! Writing: all blocks in parallel, a member that refuses replaced by another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_cluster::{Placement, choose_members};
use bb_proto::{Capability, Code, DeviceId, Failure, Kind, PgDescriptor, PgId, PutBlock};
use bb_transport::{CallError, Outgoing};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::io::PgIo;
use crate::sealed::Sealed;
use crate::{Shape, WriteError};

/// How long new groups avoid a device that has no room, or that failed: long enough to spare each
/// group the refusal, short enough to notice freed space.
const AVOID_FULL: Duration = Duration::from_secs(2);
/// The same for one that does not answer.
const AVOID_SILENT: Duration = Duration::from_secs(1);

/// Why a device did not take a block.
enum Refusal {
    NoSpace,
    Failed,
    Silent,
    /// Another device would say the same.
    Final(Failure),
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
        let mut round = Round::default();
        let mut placed: BTreeMap<usize, DeviceId> = BTreeMap::new();
        let mut done: BTreeSet<usize> = BTreeSet::new();
        for attempt in 0.. {
            let puts = FuturesUnordered::new();
            let put = |index, device| async move {
                (index, device, self.put(capability, pg, sealed, index, device).await)
            };
            let missing: Vec<usize> = (0..total).filter(|i| !placed.contains_key(i)).collect();
            for (index, device) in missing.iter().zip(self.choose(pg, &placed, &round, &missing)) {
                placed.insert(*index, device);
                puts.push(put(*index, device));
            }
            let mut puts = puts;
            while let Some((index, device, result)) = puts.next().await {
                let Err(refusal) = result else {
                    done.insert(index);
                    continue;
                };
                placed.remove(&index);
                round.refused(self, device, refusal)?;
                if let Some(other) = self.choose(pg, &placed, &round, &[index]).first() {
                    placed.insert(index, *other);
                    puts.push(put(index, *other));
                }
            }
            if done.len() == total {
                let devices: Vec<DeviceId> = placed.into_values().collect();
                return Ok(sealed.descriptor(pg, &devices));
            }
            if round.silent.is_empty() || self.rt.now() >= give_up {
                return Err(self.exhausted(&round, total));
            }
            // Everything is silent: a server restarts. Ask all of them again.
            round.silent.clear();
            self.back_off(attempt).await;
            self.view.refresh().await;
        }
        Err(WriteError::Unreachable)
    }

    /// Where nobody refused for want of room, devices are away: a map that is under way knows more,
    /// or they come back.
    fn exhausted(&self, round: &Round, needed: usize) -> WriteError {
        if !round.silent.is_empty() || round.full.is_empty() {
            return WriteError::Unreachable;
        }
        let map = self.view.map();
        let refused = |d| round.full.contains(&d) || round.failed.contains(&d);
        let usable = self.devices.candidates(&map, |d| !refused(d)).len();
        WriteError::NoSpace { usable, needed }
    }

    /// Devices for the blocks `missing`, apart from those that hold or refused one. May be too few.
    fn choose(
        &self,
        pg: PgId,
        placed: &BTreeMap<usize, DeviceId>,
        round: &Round,
        missing: &[usize],
    ) -> Vec<DeviceId> {
        let map = self.view.map();
        let free = |device: DeviceId| {
            !placed.values().any(|d| *d == device)
                && !round.full.contains(&device)
                && !round.failed.contains(&device)
                && !round.silent.contains(&device)
        };
        let mut candidates =
            self.devices.candidates(&map, |d| free(d) && !self.devices.is_avoided(&self.rt, d));
        if candidates.len() < missing.len() {
            // Rather one that refused another group a moment ago than none.
            candidates = self.devices.candidates(&map, free);
        }
        // Nodes that hold a block of this group come last.
        let node = |d: &DeviceId| map.device(*d).map(|entry| entry.node);
        let taken: Vec<u32> = placed.values().filter_map(node).collect();
        let apart: Vec<_> =
            candidates.iter().copied().filter(|c| !taken.contains(&c.node)).collect();
        if apart.len() >= missing.len() {
            candidates = apart;
        }
        let placement =
            if map.deterministic { Placement::Deterministic } else { Placement::LeastLoaded };
        let mut chance = |bound: u64| self.rt.random_below(bound);
        choose_members(placement, pg, &candidates, missing.len(), &mut chance)
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
        let _under_way = self.devices.begin(device);
        let patience = self.rt.now() + self.limits.busy_max;
        for attempt in 0.. {
            let Some((address, fence)) = self.place(device) else { return Err(Refusal::Failed) };
            let timeout = self.limits.put_timeout;
            let request = Outgoing::new(Kind::PutBlock, self.limits.class, timeout, body.clone())
                .to(device.0, fence)
                .with_payload(vec![sealed.block(index).clone()]);
            let error = match self.caller.call(&address, request).await {
                Ok(answer) => {
                    self.note(device, answer.vitals);
                    self.devices.well(device);
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

/// Who refused this group.
#[derive(Default)]
struct Round {
    /// For want of room.
    full: BTreeSet<DeviceId>,
    /// They are no more, or the map has taken them away.
    failed: BTreeSet<DeviceId>,
    silent: BTreeSet<DeviceId>,
}

impl Round {
    fn refused(&mut self, io: &PgIo, device: DeviceId, refusal: Refusal) -> Result<(), WriteError> {
        match refusal {
            Refusal::Final(failure) => return Err(WriteError::Refused(failure)),
            Refusal::NoSpace => {
                self.full.insert(device);
                io.devices.avoid(&io.rt, device, AVOID_FULL);
            }
            Refusal::Failed => {
                self.failed.insert(device);
                io.devices.avoid(&io.rt, device, AVOID_FULL);
            }
            Refusal::Silent => {
                self.silent.insert(device);
                io.devices.avoid(&io.rt, device, AVOID_SILENT);
            }
        }
        Ok(())
    }
}
