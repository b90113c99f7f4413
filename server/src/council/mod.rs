//! A node's part in the cluster: votes on the map, follows it, holds a lease, watches others.
//!
//! | file | what |
//! |---|---|
//! | `local` | what a node knows of itself, in its log |
//! | `store`, `machine`, `net` | what the Raft crate needs: a stream of the log, the map, messages |
//! | `voter` | a voter's Raft group |
//! | `lease` | what allows this node to serve |
//! | `follow` | start, renewals, new maps |
//! | `propose` | commands to the leader, whoever that is |
//! | `lead` | what the leader does: the tick, leases, who is dead, what comes next |
//! | `handover` | a primary gives its role away |
//! | `leave` | a process that ends in good order gives everything away first |
//! | `watch` | heartbeats |
//! | `serve` | what other nodes ask |
//!
//! `docs/replication.md` is the specification.

mod follow;
mod handover;
mod lead;
mod lease;
mod leave;
mod local;
mod machine;
mod net;
mod propose;
mod serve;
mod store;
mod voter;
mod watch;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_cluster::{ClusterMap, Executed, LeaseSeen, MapHistory, PlanLimits, Suspicion};
use bb_commitlog::Log;
use bb_proto::cluster::FilledReplica;
use bb_proto::{ConfigNumber, NodeId, PartitionId};
use bb_runtime::Rt;
use bb_runtime::sync::Notify;
use bb_transport::Caller;

use crate::context::{Context, Shared};
use crate::partition::PartitionHost;

pub use lease::Lease;
pub use local::{Local, LocalState};
pub use machine::Replicated;
pub use store::{Ballots, LogStore};
pub use voter::{VoterError, found};

use voter::Voter;

/// How long one message between nodes waits for its answer.
const ASK: Duration = Duration::from_secs(1);
/// Said of a node whose log the map does not take any more.
const GIVEN_UP: &str = "the cluster has given this node up: it comes back only formatted";
/// Pause before something that failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// A node's part in its cluster.
pub struct Council {
    rt: Rt,
    log: Rc<Log>,
    caller: Rc<dyn Caller>,
    shared: Rc<Shared>,
    local: Rc<Local>,
    voter: RefCell<Option<Rc<Voter>>>,
    /// Answers "what has changed since": of the map that is in force here.
    history: RefCell<MapHistory>,
    partitions: RefCell<Weak<PartitionHost>>,
    /// This process's `Started` was applied, and the map that says so is in force.
    joined: Cell<bool>,
    changed: Notify,
    /// Why this process has to end, if it has.
    ending: RefCell<Option<String>>,
    /// The cluster has given this node up: another process with this log would have to end, too.
    given_up: Cell<bool>,
    /// Who was the leader when somebody knew.
    leader: Cell<Option<NodeId>>,
    /// Filling replicas that the leader has to hear of.
    filled: RefCell<BTreeSet<FilledReplica>>,
    leading: RefCell<Leading>,
    limits: PlanLimits,
    stopping: Cell<bool>,
    fetching: Cell<bool>,
}

/// What a leader remembers of its term; empty for others.
#[derive(Default)]
struct Leading {
    term: u64,
    grants: u64,
    last_grants: BTreeMap<NodeId, u64>,
    leases: BTreeMap<NodeId, LeaseSeen>,
    suspicions: Vec<Suspicion>,
    going: BTreeSet<NodeId>,
    filled: BTreeSet<FilledReplica>,
    states: BTreeMap<NodeId, (i32, u64, Duration)>,
    /// What was asked of primaries last, and when.
    handed: BTreeMap<PartitionId, (ConfigNumber, Duration)>,
}

/// What a council begins with.
pub struct Begin {
    /// This node as its log knows it.
    pub local: Rc<Local>,
    /// What the log holds of a voter.
    pub ballots: Ballots,
    /// How much the planner does at a time, where this node leads.
    pub limits: PlanLimits,
}

impl Council {
    /// Nothing is said to anybody before [`Council::start`].
    pub fn new(ctx: &Context, begin: Begin) -> Result<Rc<Self>, VoterError> {
        let map = ctx.shared.map();
        let council = Rc::new(Self {
            rt: ctx.rt.clone(),
            log: ctx.log.clone(),
            caller: ctx.caller.clone(),
            shared: ctx.shared.clone(),
            local: begin.local,
            voter: RefCell::default(),
            history: RefCell::new(MapHistory::new(&map)),
            partitions: RefCell::default(),
            joined: Cell::new(false),
            changed: Notify::new(),
            ending: RefCell::default(),
            given_up: Cell::new(false),
            leader: Cell::new(None),
            filled: RefCell::default(),
            leading: RefCell::default(),
            limits: begin.limits,
            stopping: Cell::new(false),
            fetching: Cell::new(false),
        });
        council.begin_voting(begin.ballots)?;
        Ok(council)
    }

    /// Begins: joins the cluster as a new process, then follows the map. `partitions` follow it.
    pub fn start(self: &Rc<Self>, partitions: &Rc<PartitionHost>) {
        *self.partitions.borrow_mut() = Rc::downgrade(partitions);
        let this = self.clone();
        self.rt.spawn(async move { this.run().await });
    }

    /// Waits until this process has its place in the map.
    pub async fn joined(&self) {
        loop {
            let changed = self.changed.notified();
            if self.joined.get() {
                return;
            }
            changed.await;
        }
    }

    /// True once this process has its place in the map.
    pub fn has_joined(&self) -> bool {
        self.joined.get()
    }

    /// Waits until this process has to end, and says why. It is to be started anew, unless it
    /// [`Council::is_given_up`].
    pub async fn must_end(&self) -> String {
        loop {
            let changed = self.changed.notified();
            if let Some(why) = &*self.ending.borrow() {
                return why.clone();
            }
            changed.await;
        }
    }

    /// True if the cluster will not have this node back with this log: it is for the operator to
    /// say what becomes of it.
    pub fn is_given_up(&self) -> bool {
        self.given_up.get()
    }

    /// No process with this log can serve.
    fn end_for_good(&self, why: String) {
        self.given_up.set(true);
        self.end_process(why);
    }

    fn end_process(&self, why: String) {
        tracing::warn!(why, "this process ends");
        self.shared.lease.end();
        self.ending.borrow_mut().get_or_insert(why);
        self.changed.notify_all();
    }

    /// The node stops: nothing is begun any more.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.shared.lease.end();
    }

    /// Epoch and leader, for status.
    pub fn leader(&self) -> Option<NodeId> {
        let voter = self.voter.borrow();
        let known = voter.as_ref().and_then(|voter| voter.leader_node(&self.shared.map()));
        known.or(self.leader.get())
    }

    /// Term of the Raft group as this node knows it; 0 where it is no voter.
    pub fn term(&self) -> u64 {
        self.voter.borrow().as_ref().map_or(0, |voter| voter.consensus.term())
    }

    /// Members of the Raft group as this node knows them; none where it is no voter.
    pub fn raft_voters(&self) -> Vec<u64> {
        let voter = self.voter.borrow();
        let known = voter.as_ref().map(|voter| voter.consensus.status().voters);
        known.unwrap_or_default().into_iter().map(|number| number.0).collect()
    }

    /// The bytes that the log's stream of votes starts with.
    pub(crate) fn checkpoint_votes(&self) -> Option<store::Written> {
        self.voter.borrow().as_ref().map(|voter| voter.store.checkpoint_now())
    }

    /// The bytes that the log's stream of the node starts with.
    pub(crate) const fn local(&self) -> &Rc<Local> {
        &self.local
    }

    /// A newer map is in force from now on.
    fn put_in_force(self: &Rc<Self>, map: ClusterMap) {
        let before = self.shared.map();
        if map.epoch <= before.epoch {
            return;
        }
        self.history.borrow_mut().changed(&before, &map);
        let place = map.node(self.shared.node).cloned();
        self.shared.set_map(map);
        self.local.note_map(&self.shared.map());
        self.follow_voting();
        if !self.joined.get() {
            return;
        }
        match place {
            Some(node) if node.damaged || node.has_left() => self.end_for_good(GIVEN_UP.to_owned()),
            Some(node) if node.is_active() && node.incarnation == self.shared.incarnation.0 => {
                self.follow_replicas();
            }
            _ => self.end_process("the map says that this process is down".to_owned()),
        }
    }

    fn follow_replicas(&self) {
        if let Some(host) = self.partitions.borrow().upgrade() {
            host.follow_map(self.shared.lease.was_held());
        }
    }
}

impl crate::partition::Council for Rc<Council> {
    fn damaged(&self, node: NodeId, why: &str) {
        tracing::error!(node = node.0, why, "a log has lost what it had acknowledged");
        let (this, why) = (self.clone(), why.to_owned());
        self.rt.spawn(async move { this.report_damage(node, &why).await });
    }

    fn filled(&self, partition: PartitionId, config: ConfigNumber, node: NodeId) {
        let replica = FilledReplica { partition: partition.0, config: config.0, node: node.0 };
        if self.filled.borrow_mut().insert(replica) {
            self.changed.notify_all();
        }
    }

    fn refresh_map(&self, from: Option<NodeId>) {
        let this = self.clone();
        if !self.fetching.replace(true) {
            self.rt.spawn(async move {
                this.fetch_map(from).await;
                this.fetching.set(false);
            });
        }
    }
}

/// What a command came to, for logs.
fn outcome(executed: &Executed) -> &str {
    if executed.void.is_empty() { "done" } else { &executed.void }
}
