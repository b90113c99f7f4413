//! What the Raft leader does in its term.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{
    Change, ClusterState, Command, Heard, Judgement, Known, NodeName, NodeState, Reconfigure,
    Suspicion, Tick, may_take_down, plan,
};
use bb_consensus::VoterNumber;
use bb_proto::cluster::{FilledReplica, HandOver, Lease as LeaseRequest, LeaseReply, Suspect};
use bb_proto::{Code, ConfigNumber, Failure, Incarnation, Kind, NodeId, PartitionId};
use prost::Message;

use super::voter::Voter;
use super::{Council, Leading, outcome};
use crate::planted::{self, Planted};

/// How often the leader looks around.
const LOOK: Duration = Duration::from_millis(100);
/// Looks from one plan to the next.
const LOOKS_PER_PLAN: u32 = 5;
/// A primary that did not hand over in the configuration in which it was asked is asked again after
/// so long: several times what it may take (requests to it wait for up to two seconds each time).
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// Length of a tick.
const TICK: Duration = Duration::from_secs(1);

impl Council {
    pub(super) async fn lead_when_elected(self: Rc<Self>, voter: Rc<Voter>) {
        loop {
            let changed = voter.consensus.changed().notified();
            if voter.consensus.stopped().is_some() || self.stopping.get() {
                return;
            }
            if voter.is_leader() {
                self.lead(&voter).await;
                // Where nothing could be confirmed, the group decides within an election's time.
                self.rt.sleep(LOOK).await;
            } else {
                changed.await;
            }
        }
    }

    async fn lead(self: &Rc<Self>, voter: &Rc<Voter>) {
        let term = voter.consensus.term();
        tracing::info!(term, "leads the cluster");
        *self.leading.borrow_mut() = Leading { term, ..Leading::default() };
        // Nothing is decided by a state that the group has gone beyond.
        if voter.consensus.read_barrier().await.is_err() {
            return;
        }
        let (mut ticked, mut looks) = (self.rt.now(), 0);
        while voter.is_leader() && voter.consensus.term() == term && !self.stopping.get() {
            self.note_states(voter);
            if self.rt.now().since(ticked) >= TICK {
                ticked = self.rt.now();
                let tick = voter.replicated.state().tick.0 + 1;
                self.order(voter, Command::new(Change::Tick(Tick { tick })));
            }
            self.judge(voter, term);
            looks += 1;
            if looks % LOOKS_PER_PLAN == 0 {
                self.plan(voter, term);
                self.change_voters(voter);
            }
            self.rt.sleep(LOOK).await;
        }
        *self.leading.borrow_mut() = Leading::default();
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.rt.now().as_nanos())
    }

    /// Proposes, and does not wait.
    fn order(&self, voter: &Rc<Voter>, command: Command) {
        let voter = voter.clone();
        self.rt.spawn(async move {
            match Self::propose_here(&voter, command.encode_command()).await {
                Ok(executed) if executed.void.is_empty() => {}
                Ok(executed) => tracing::debug!(outcome = outcome(&executed), "void"),
                Err(failure) => tracing::debug!(%failure, "a command was not executed"),
            }
        });
    }

    /// Since when each node is what it is.
    fn note_states(&self, voter: &Voter) {
        let now = self.now();
        let state = voter.replicated.state();
        let mut leading = self.leading.borrow_mut();
        let leading = &mut *leading;
        for node in &state.map.nodes {
            let id = NodeId(node.id);
            let known =
                leading.states.get(&id).map(|(state, incarnation, _)| (*state, *incarnation));
            if known == Some((node.state, node.incarnation)) {
                continue;
            }
            leading.states.insert(id, (node.state, node.incarnation, now));
            let started_at = known.is_some().then_some(now);
            let before = leading.leases.get(&id).copied().unwrap_or_default();
            leading.leases.insert(id, before.of_new_process(started_at));
            leading.going.remove(&id);
        }
    }

    fn heard_by<T>(&self, voter: &Voter, ask: impl FnOnce(&ClusterState, &Heard<'_>) -> T) -> T {
        let state = voter.replicated.state();
        let leading = self.leading.borrow();
        let since = voter.consensus.leading_since().unwrap_or_else(|| self.rt.now());
        ask(
            &state,
            &Heard {
                now: self.now(),
                leader: self.shared.node,
                elected_at: Duration::from_nanos(since.as_nanos()),
                suspicions: &leading.suspicions,
                leases: &leading.leases,
                going: &leading.going,
            },
        )
    }

    fn judge(&self, voter: &Rc<Voter>, term: u64) {
        let active: Vec<NodeName> = {
            let state = voter.replicated.state();
            let active = state.map.nodes.iter().filter(|node| node.is_active());
            active.map(|node| NodeName { node: node.id, incarnation: node.incarnation }).collect()
        };
        for name in active {
            // One after the other: no more may go than the map lets go.
            let judgement =
                self.heard_by(voter, |state, heard| may_take_down(state, NodeId(name.node), heard));
            if judgement == Judgement::Stays {
                continue;
            }
            if self.leading.borrow_mut().going.insert(NodeId(name.node)) {
                tracing::warn!(node = name.node, "does not answer, and is taken down");
            }
            if judgement == Judgement::GoesNow || planted::is(Planted::SkipLeaseWait) {
                self.order(voter, Command::of_term(Change::Down(name), term));
            }
        }
    }

    fn plan(&self, voter: &Rc<Voter>, term: u64) {
        let now = self.now();
        let next = {
            let state = voter.replicated.state();
            let mut leading = self.leading.borrow_mut();
            leading.filled.retain(|replica| is_filled(&state, replica));
            let filled: BTreeSet<(PartitionId, NodeId)> = leading
                .filled
                .iter()
                .map(|replica| (PartitionId(replica.partition), NodeId(replica.node)))
                .collect();
            let for_how_long: BTreeMap<NodeId, Duration> = leading
                .states
                .iter()
                .map(|(node, (_, _, since))| (*node, now.saturating_sub(*since)))
                .collect();
            let known = Known {
                leader: self.shared.node,
                for_how_long: &for_how_long,
                filled: &filled,
                load: &BTreeMap::new(),
            };
            plan(&state.map, &known, &self.limits)
        };
        for command in next.commands {
            self.order(voter, Command { term, ..command });
        }
        self.ask_for_handovers(voter, next.handovers);
    }

    /// Each primary is asked once per configuration, and again later: it may have had no time, or the
    /// question was lost.
    fn ask_for_handovers(&self, voter: &Rc<Voter>, wanted: Vec<bb_cluster::NewReplicas>) {
        let now = self.now();
        let mut by_node: BTreeMap<NodeId, Reconfigure> = BTreeMap::new();
        for change in wanted {
            let (id, config) = (PartitionId(change.partition), ConfigNumber(change.entry.config));
            let primary =
                voter.replicated.state().map.partition(id).map(|entry| NodeId(entry.primary));
            let Some(primary) = primary else { continue };
            let handed = &mut self.leading.borrow_mut().handed;
            let asked = handed.get(&id).is_some_and(|(before, at)| {
                *before == config && now.saturating_sub(*at) < ASK_AGAIN
            });
            if !asked {
                handed.insert(id, (config, now));
                by_node.entry(primary).or_default().changes.push(change);
            }
        }
        for (node, reconfigure) in by_node {
            let Some(address) = self.shared.address_of(node) else { continue };
            let body = HandOver { reconfigure: reconfigure.encode_to_vec() }.encode_to_vec();
            let class = bb_proto::ServiceClass::Control;
            let request = bb_transport::Outgoing::new(Kind::HandOver, class, super::ASK, body);
            self.rt.spawn(self.caller.call(&address, request));
        }
    }

    /// The Raft group's members follow the map.
    fn change_voters(&self, voter: &Rc<Voter>) {
        let wanted: BTreeSet<VoterNumber> = voter
            .replicated
            .state()
            .map
            .nodes
            .iter()
            .filter(|node| node.voter != 0)
            .map(|node| VoterNumber(node.voter))
            .collect();
        let status = voter.consensus.status();
        if wanted.is_empty() || wanted == status.voters || voter.changing.replace(true) {
            return;
        }
        let voter = voter.clone();
        let rt = self.rt.clone();
        self.rt.spawn(async move {
            let change = voter.consensus.change_voters(wanted.clone());
            match rt.timeout(Duration::from_secs(60), change).await {
                Ok(Ok(())) => tracing::info!(?wanted, "the voters are these now"),
                Ok(Err(error)) => tracing::debug!(%error, "the voters are not changed"),
                Err(_) => tracing::warn!(?wanted, "new voters do not catch up"),
            }
            voter.changing.set(false);
        });
    }

    /// Grants a lease.
    pub(super) async fn grant(self: &Rc<Self>, ask: LeaseRequest) -> Result<LeaseReply, Failure> {
        let voter = self.leading_voter()?;
        let barrier = voter.consensus.read_barrier().await;
        if barrier.is_err() {
            return Err(self.not_leader());
        }
        // One turn from here on.
        self.follow_state(&voter);
        let now = self.now();
        let node = NodeId(ask.node);
        let mut leading = self.leading.borrow_mut();
        let leading = &mut *leading;
        if leading.term != voter.consensus.term() {
            return Err(self.not_leader());
        }
        let state = voter.replicated.state();
        let entry = state.map.node(node);
        let active = entry.is_some_and(|entry| {
            entry.state() == NodeState::Active && entry.incarnation == ask.incarnation
        });
        if !active || leading.going.contains(&node) {
            return Err(Failure::new(Code::Denied, "this process is down, or is being taken down"));
        }
        let seen = leading.leases.entry(node).or_default();
        let last = leading.last_grants.get(&node).copied();
        if ask.granted != 0 && last == Some(ask.granted) {
            seen.renewed_at = Some(now);
        }
        let length = Duration::from_millis(state.map.lease_ms.into());
        seen.granted = Some((now, length));
        leading.grants += 1;
        leading.last_grants.insert(node, leading.grants);
        Ok(LeaseReply {
            lease_ms: state.map.lease_ms,
            epoch: state.map.epoch,
            tick: state.tick.0,
            map: Some(self.map_update(ask.epoch, true)),
            grant: leading.grants,
        })
    }

    pub(super) fn take_suspicion(&self, report: &Suspect) -> Result<(), Failure> {
        self.leading_voter()?;
        let now = self.now();
        let mut leading = self.leading.borrow_mut();
        let suspect = Duration::from_millis(self.shared.map().suspect_ms.into());
        leading.suspicions.retain(|known| now.saturating_sub(known.at) < suspect);
        let (reporter, node) = (NodeId(report.reporter), NodeId(report.node));
        let incarnation = Incarnation(report.incarnation);
        let known = leading.suspicions.iter_mut().find(|known| {
            (known.reporter, known.node, known.incarnation) == (reporter, node, incarnation)
        });
        match known {
            Some(known) => known.at = now,
            None => leading.suspicions.push(Suspicion {
                reporter,
                node,
                incarnation,
                since: now,
                at: now,
            }),
        }
        Ok(())
    }

    pub(super) fn take_filled(&self, replicas: Vec<FilledReplica>) -> Result<(), Failure> {
        self.leading_voter()?;
        self.leading.borrow_mut().filled.extend(replicas);
        Ok(())
    }

    pub(super) fn leading_voter(&self) -> Result<Rc<Voter>, Failure> {
        let voter = self.voter.borrow().clone().filter(|voter| voter.is_leader());
        voter.ok_or_else(|| self.not_leader())
    }

    pub(super) fn not_leader(&self) -> Failure {
        let hint = self.leader().filter(|leader| *leader != self.shared.node);
        Failure::new(Code::NotLeader, "").with_value(hint.map_or(0, |node| node.0.into()))
    }
}

fn is_filled(state: &ClusterState, replica: &FilledReplica) -> bool {
    state.map.partition(PartitionId(replica.partition)).is_some_and(|entry| {
        entry.config == replica.config && entry.filling.contains(&replica.node)
    })
}
