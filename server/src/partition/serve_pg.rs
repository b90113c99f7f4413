//! What is asked about parity groups: cancels, outcomes, releases.

use std::rc::Rc;

use bb_proto::meta::{
    CancelCommit, CancelCommitReply, Done, GetInline, PgHoldsReply, PgList, PgStatus,
    PgStatusEntry, PgStatusReply, decode, encode,
};
use bb_proto::{Capability, Code, Failure, PartitionId, PgId, Rights, ServiceClass, Tick, Writer};
use bb_transport::{Incoming, Response};

use super::engine::Partition;
use super::host::{PartitionHost, class_of};
use super::mutation::Mutation;
use super::pg::Fate;
use super::pg_mutation::{PgMutation, PgOutcome};
use super::state::PartitionState;
use crate::planted::{self, Planted};
use crate::rights::{check_capability, check_server};

const UNKNOWN: u32 = 0;
const COMMITTED: u32 = 1;
const DEAD: u32 = 2;
const UNDECIDED: u32 = 3;

impl PartitionHost {
    pub(super) async fn serve_cancel(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let cancel: CancelCommit = decode(&request.body)?;
        let (pg, capability) = (PgId::from(cancel.pg), Capability::from(&cancel.capability));
        check_capability(&self.env.shared, &capability, Rights::WRITE, &request.peer)?;
        if capability.session != pg.session {
            return Err(Failure::new(Code::Denied, "the group belongs to another session"));
        }
        let mutation = Mutation::Pg(PgMutation::Cancel { pg });
        let outcome = partition.submit(class_of(request), mutation).await?.pg()?;
        let committed = outcome == PgOutcome::Cancelled { committed: true };
        Ok(Response::body(encode(&CancelCommitReply { committed })))
    }

    /// Rule 1: "unknown" is for good, because the horizon in the log is past the group's slot.
    pub(super) async fn serve_pg_status(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let question: PgStatus = decode(&request.body)?;
        let pgs: Vec<PgId> = question.pgs.iter().map(|pg| (*pg).into()).collect();
        if question.settle {
            check_server(&request.peer)?;
            let open = pgs.iter().filter(|pg| !is_decided(&partition.state(), **pg));
            self.settle_slots(partition, open.map(|pg| pg.slot)).await?;
        }
        let old = Tick(self.old_slots_end());
        let began_anew = self.began_anew(partition.id());
        let state = partition.state();
        let entries = pgs.iter().map(|pg| match status(&state, *pg, old) {
            // What it held before is not known: the block may be all that is left (rule 1).
            entry if began_anew && entry.state == UNKNOWN && state.pgs.fate(*pg).is_none() => {
                PgStatusEntry { state: UNDECIDED, ..entry }
            }
            entry => entry,
        });
        let entries = entries.collect();
        Ok(Response::body(encode(&PgStatusReply { entries })))
    }

    /// Moves the horizon past those of the slots that are older than the window W. The others stay
    /// open: a client may still be about to commit.
    async fn settle_slots(
        &self,
        partition: &Rc<Partition>,
        slots: impl Iterator<Item = Tick>,
    ) -> Result<(), Failure> {
        let old = self.old_slots_end();
        let Some(slot) = slots.filter(|slot| slot.0 < old).max() else { return Ok(()) };
        if slot > partition.state().horizon() && !planted::is(Planted::SkipHorizon) {
            let horizon = Mutation::Pg(PgMutation::Horizon { slot });
            partition.submit(ServiceClass::Control, horizon).await?;
        }
        Ok(())
    }

    pub(super) async fn serve_pg_release(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let list: PgList = decode(&request.body)?;
        let participant = PartitionId(list.participant);
        self.log_release(partition, participant, list.pgs.iter().map(|pg| (*pg).into())).await?;
        Ok(Response::body(encode(&Done {})))
    }

    /// Logs that `participant` holds nothing of these groups, as far as they are on record.
    pub(super) async fn log_release(
        &self,
        partition: &Rc<Partition>,
        participant: PartitionId,
        pgs: impl Iterator<Item = PgId>,
    ) -> Result<(), Failure> {
        let pgs: Vec<PgId> = {
            let state = partition.state();
            pgs.filter(|pg| is_awaited(&state, *pg, participant)).collect()
        };
        if !pgs.is_empty() {
            let release = Mutation::Pg(PgMutation::Release { participant, pgs });
            partition.submit(ServiceClass::Reclaim, release).await?;
        }
        Ok(())
    }

    /// Rule 2: "I hold none" is for good as well. What is too young to be settled counts as held.
    pub(super) async fn serve_pg_holds(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let list: PgList = decode(&request.body)?;
        let pgs: Vec<PgId> = list.pgs.iter().map(|pg| (*pg).into()).collect();
        let open = pgs.iter().filter(|pg| !is_decided(&partition.state(), **pg));
        self.settle_slots(partition, open.map(|pg| pg.slot)).await?;
        let began_anew = self.began_anew(partition.id());
        let state = partition.state();
        let held = pgs.iter().map(|pg| {
            let settled = if began_anew {
                state.pgs.fate(*pg).is_some()
            } else {
                is_decided(&state, *pg) || planted::is(Planted::SkipHorizon)
            };
            state.pgs.find(*pg).is_some() || !settled
        });
        Ok(Response::body(encode(&PgHoldsReply { held: held.collect() })))
    }

    /// True if the operator once gave the partition up, and it began anew, empty.
    fn began_anew(&self, id: PartitionId) -> bool {
        self.env.shared.map().partition(id).is_some_and(|entry| entry.born != 0)
            && !planted::is(Planted::UnknownAfterLostState)
    }

    pub(super) fn serve_inline(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let wanted: GetInline = decode(&request.body)?;
        let capability = Capability::from(&wanted.capability);
        check_capability(&self.env.shared, &capability, Rights::READ, &request.peer)?;
        let state = partition.state();
        let pg = state.pgs.find(wanted.pg.into());
        let pg = pg.filter(|pg| pg.fid == capability.fid && !pg.inline.is_empty());
        let pg = pg.ok_or_else(|| Failure::new(Code::Stale, "no such inline group here"))?;
        let mut buf = self
            .env
            .pool
            .try_alloc(pg.inline.len())
            .ok_or_else(|| Failure::new(Code::Busy, "no buffer"))?;
        buf.set_len(pg.inline.len());
        buf.copy_from_slice(&pg.inline);
        Ok(Response { body: Vec::new(), payload: vec![buf.freeze()] })
    }
}

/// True if nothing can change any more whether the group was committed here.
fn is_decided(state: &PartitionState, pg: PgId) -> bool {
    pg.slot <= state.horizon() || state.pgs.find(pg).is_some() || state.pgs.fate(pg).is_some()
}

fn is_awaited(state: &PartitionState, pg: PgId, participant: PartitionId) -> bool {
    let home = state.pgs.find(pg).and_then(|pg| pg.home.as_ref());
    home.is_some_and(|home| {
        home.participants.iter().any(|entry| entry.partition == participant && !entry.released)
    })
}

fn status(state: &PartitionState, pg: PgId, old: Tick) -> PgStatusEntry {
    let plain = |state| PgStatusEntry { state, descriptor: Vec::new() };
    if let Some(found) = state.pgs.find(pg) {
        if found.home.as_ref().is_some_and(|home| home.dead) {
            return plain(DEAD);
        }
        let mut out = Writer::default();
        found.descriptor.encode(&mut out);
        return PgStatusEntry { state: COMMITTED, descriptor: out.finish() };
    }
    match state.pgs.fate(pg) {
        Some(Fate::Gone) => plain(DEAD),
        Some(Fate::Cancelled) => plain(UNKNOWN),
        None if pg.slot <= state.horizon() => plain(UNKNOWN),
        None if planted::is(Planted::SkipHorizon) && pg.slot < old => plain(UNKNOWN),
        None => plain(UNDECIDED),
    }
}
