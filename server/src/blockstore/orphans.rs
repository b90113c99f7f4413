//! Blocks that nobody committed (rule 1): a client died, or placed its group elsewhere.
//!
//! A block that home has not confirmed is asked about once it is older than the window W. Home
//! answers for good: before "unknown" it has moved its horizon, so that no commit can follow. What
//! is confirmed through a slot is kept in the log, so that a restart asks about newer blocks only.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_commitlog::Class;
use bb_proto::meta::{PgStatus, PgStatusReply, decode, encode};
use bb_proto::{Kind, PartitionId, PgBody, PgDescriptor, Reader, ServiceClass, Tick};
use bb_runtime::Rt;
use bb_transport::Outgoing;

use super::record::{DEVICE_PAGE, encode_confirmed};
use super::table::{BlockKey, Standing, State};
use super::{BlockStore, State as StoreState};

const GROUPS_PER_CALL: usize = 256;
const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// What one look brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OrphanReport {
    /// Blocks asked about.
    pub asked: usize,
    /// Committed, and this device is their place.
    pub confirmed: usize,
    /// Freed.
    pub freed: usize,
}

enum Verdict {
    Confirmed,
    Free,
    Later,
}

pub(super) async fn run(store: Weak<BlockStore>, rt: Rt) {
    while let Some(interval) = store.upgrade().map(|store| store.config.orphan_interval) {
        rt.sleep(interval).await;
        let Some(store) = store.upgrade() else { return };
        if store.problem().is_some() {
            return;
        }
        store.settle_orphans().await;
    }
}

impl BlockStore {
    /// Asks home about every unconfirmed block that is older than the window, and acts on it.
    pub async fn settle_orphans(self: &Rc<Self>) -> OrphanReport {
        let mut report = OrphanReport::default();
        for (home, keys) in self.candidates() {
            for keys in keys.chunks(GROUPS_PER_CALL) {
                report.asked += keys.len();
                self.settle(home, keys, &mut report).await;
            }
        }
        if report.confirmed > 0 || report.freed > 0 {
            self.keep_confirmed_through().await;
        }
        report
    }

    fn candidates(&self) -> BTreeMap<PartitionId, Vec<BlockKey>> {
        let window = u64::from(self.env.shared.map().window_ticks);
        let tick = self.env.shared.tick().0;
        let state = self.state.borrow();
        let mut by_home: BTreeMap<PartitionId, Vec<BlockKey>> = BTreeMap::new();
        for (slot, id) in &state.unconfirmed {
            if slot.0.saturating_add(window) >= tick {
                break;
            }
            let entry = state.table.get(*id);
            if entry.state == State::Live {
                by_home.entry(entry.pg.home).or_default().push(entry.key());
            }
        }
        by_home
    }

    async fn settle(
        self: &Rc<Self>,
        home: PartitionId,
        keys: &[BlockKey],
        report: &mut OrphanReport,
    ) {
        let Some(reply) = self.ask(home, keys).await else { return };
        let mut unwanted = Vec::new();
        for (key, entry) in keys.iter().zip(&reply.entries) {
            match self.verdict(*key, entry.state, &entry.descriptor) {
                Verdict::Confirmed => {
                    confirm(&mut self.state.borrow_mut(), *key);
                    report.confirmed += 1;
                }
                Verdict::Free => unwanted.push(*key),
                Verdict::Later => {}
            }
        }
        let count = unwanted.len();
        if count > 0 && self.handle_free(unwanted).await.is_ok() {
            report.freed += count;
        }
    }

    async fn ask(&self, home: PartitionId, keys: &[BlockKey]) -> Option<PgStatusReply> {
        let question =
            PgStatus { pgs: keys.iter().map(|key| key.pg.into()).collect(), settle: true };
        let body = encode(&question);
        let request = Outgoing::new(Kind::PgStatus, ServiceClass::Reclaim, CALL_DEADLINE, body);
        let env = &self.env;
        let answer = match env.shared.ask_primary(&env.rt, &*env.caller, home, request).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%home, %error, "cannot ask about blocks yet");
                return None;
            }
        };
        let reply = decode::<PgStatusReply>(&answer.body).ok();
        let reply = reply.filter(|reply| reply.entries.len() == keys.len());
        if reply.is_none() {
            tracing::warn!(%home, "an answer about parity groups that cannot be one");
        }
        reply
    }

    fn verdict(&self, key: BlockKey, state: u32, descriptor: &[u8]) -> Verdict {
        match state {
            0 | 2 => Verdict::Free,
            1 => {
                let Ok(descriptor) = PgDescriptor::decode(&mut Reader::new(descriptor)) else {
                    tracing::warn!(%key, "a descriptor that cannot be read");
                    return Verdict::Later;
                };
                if descriptor.pg != key.pg {
                    return Verdict::Later;
                }
                let ours = match &descriptor.body {
                    PgBody::Blocks { members, .. } => members
                        .get(usize::from(key.index))
                        .is_some_and(|member| member.device == self.superblock.device),
                    PgBody::Inline { .. } => false,
                };
                if ours { Verdict::Confirmed } else { Verdict::Free }
            }
            // Undecided, or a state of a newer version.
            _ => Verdict::Later,
        }
    }

    /// Logs the slot through which nothing is left to ask, if it has moved.
    async fn keep_confirmed_through(&self) {
        let sizes = vec![encode_confirmed(Tick(0)).len()];
        let Ok(mut room) = self.admit(Class::Reclaim, sizes).await else { return };
        let append = {
            let state = &mut *self.state.borrow_mut();
            let through = self.settled_through(state);
            if through <= state.confirmed_through {
                return;
            }
            let stream = self.stream(DEVICE_PAGE).id();
            let append = self.env.log.append(stream, &mut room, &encode_confirmed(through));
            if append.is_ok() {
                // In the same step: puts from here on are marked as late where they must be.
                state.confirmed_through = through;
            }
            append
        };
        let result = match append {
            Ok(append) => append.durable.await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.log_refused(&error);
        }
    }

    fn settled_through(&self, state: &StoreState) -> Tick {
        // Late ones are marked one by one.
        let open = state
            .unconfirmed
            .iter()
            .find(|(_, id)| state.table.get(*id).standing == Standing::Unconfirmed);
        let window = u64::from(self.env.shared.map().window_ticks);
        let old = self.env.shared.tick().0.saturating_sub(window);
        match open {
            Some((slot, _)) => Tick(old.min(slot.0.saturating_sub(1))),
            None => Tick(old),
        }
    }
}

fn confirm(state: &mut StoreState, key: BlockKey) {
    let Some(id) = state.table.find(key) else { return };
    let entry = state.table.get_mut(id);
    if entry.state == State::Live {
        entry.standing = Standing::Confirmed;
        state.unconfirmed.remove(&(key.pg.slot, id));
    }
}
