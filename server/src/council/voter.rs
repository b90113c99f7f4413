//! A node that votes.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bb_cluster::{ClusterMap, ClusterState};
use bb_commitlog::{Log, LogError};
use bb_consensus::{Consensus, CreateError, Role, Settings, StartError, VoterNumber};
use bb_proto::NodeId;
use bb_runtime::Rt;

use super::Council;
use super::machine::{MapMachine, Replicated};
use super::net::VoterNet;
use super::store::{Ballots, Handle, LogStore, Mirror};
use crate::context::Stream;

/// A voter that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum VoterError {
    /// Its log.
    #[error("the voter's log: {0}")]
    Start(#[from] StartError),
    /// What another voter has left there.
    #[error("the voter's log: {0}")]
    Log(#[from] LogError),
    /// A new group.
    #[error("the first map: {0}")]
    Create(#[from] CreateError),
}

/// A node's voice in the Raft group.
pub(super) struct Voter {
    pub(super) consensus: Consensus,
    pub(super) replicated: Rc<Replicated>,
    pub(super) store: Rc<LogStore>,
    /// A change of the group is under way.
    pub(super) changing: Cell<bool>,
}

/// Makes the group of a new cluster, with one voter: what `bbd format` does.
///
/// # Errors
/// [`VoterError`].
pub async fn found(
    rt: &Rt,
    log: &Rc<Log>,
    number: u64,
    state: ClusterState,
) -> Result<(), VoterError> {
    let number = VoterNumber(number);
    let store = Handle(LogStore::new(rt.clone(), log.clone(), Mirror::default()));
    let machine = MapMachine(Replicated::new(state));
    Consensus::create(number, &BTreeSet::from([number]), &machine, &store).await?;
    Ok(())
}

impl Voter {
    pub(super) fn is_leader(&self) -> bool {
        self.consensus.role() == Role::Leader
    }

    /// The node that leads.
    pub(super) fn leader_node(&self, map: &ClusterMap) -> Option<NodeId> {
        let number = self.consensus.leader()?;
        let known = |map: &ClusterMap| {
            map.nodes.iter().find(|node| node.voter == number.0).map(|node| NodeId(node.id))
        };
        known(&self.replicated.state().map).or_else(|| known(map))
    }
}

impl Council {
    /// Begins to vote, if the map, or what the log holds, says that this node does.
    pub(super) fn begin_voting(self: &Rc<Self>, ballots: Ballots) -> Result<(), VoterError> {
        let map = self.shared.map();
        let Some(number) = map.node(self.shared.node).map(|node| node.voter).filter(|n| *n != 0)
        else {
            return Ok(());
        };
        let ballots = match ballots.recovered().voter() {
            Some(own) if own.0 == number => ballots,
            _ => {
                self.forget_votes()?;
                Ballots::default()
            }
        };
        let (recovered, mirror) = ballots.take();
        let number = VoterNumber(number);
        let replicated = Replicated::new(ClusterState::default());
        let store = LogStore::new(self.rt.clone(), self.log.clone(), mirror);
        let net = VoterNet {
            rt: self.rt.clone(),
            caller: self.caller.clone(),
            shared: self.shared.clone(),
            replicated: replicated.clone(),
            own: number,
        };
        let consensus = Consensus::start(
            &self.rt,
            number,
            Rc::new(Handle(store.clone())),
            Rc::new(net),
            Box::new(MapMachine(replicated.clone())),
            recovered,
            Settings::default(),
        )?;
        let changing = Cell::new(false);
        let voter = Rc::new(Voter { consensus, replicated, store, changing });
        *self.voter.borrow_mut() = Some(voter.clone());
        let this = self.clone();
        self.rt.spawn({
            let voter = voter.clone();
            async move { this.follow_votes(&voter).await }
        });
        let this = self.clone();
        self.rt.spawn(async move { this.lead_when_elected(voter).await });
        Ok(())
    }

    /// What was logged under another number belongs to a voter that is no more: it is gone from the
    /// log before the first record of this one, or the next replay would meet two voters' records.
    fn forget_votes(&self) -> Result<(), VoterError> {
        match self.log.retire(Stream::Map.id()) {
            // The log keeps the order: what follows is not durable before this is.
            Ok(_) | Err(LogError::UnknownStream { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The map says whether this node votes, and under which number.
    pub(super) fn follow_voting(self: &Rc<Self>) {
        let map = self.shared.map();
        let wanted = map.node(self.shared.node).map_or(0, |node| node.voter);
        let own = self.voter.borrow().as_ref().map_or(0, |voter| voter.consensus.number().0);
        if wanted == own || wanted == 0 {
            // One that votes no more leads nothing; it is forgotten at the next start.
            return;
        }
        if own != 0 {
            return self.end_process(format!("it votes under number {wanted} from now on"));
        }
        if let Err(error) = self.begin_voting(Ballots::default()) {
            self.end_process(format!("it cannot vote: {error}"));
        }
    }

    /// Takes over what the group decides.
    async fn follow_votes(self: Rc<Self>, voter: &Rc<Voter>) {
        loop {
            let (applied, role) =
                (voter.replicated.changed.notified(), voter.consensus.changed().notified());
            if let Some(why) = voter.consensus.stopped() {
                return self.end_process(format!("the voter has stopped: {why}"));
            }
            self.follow_state(voter);
            futures_util::future::select(Box::pin(applied), Box::pin(role)).await;
        }
    }
}
