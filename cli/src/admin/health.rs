//! What a cluster's map and its nodes' answers amount to.

use std::collections::BTreeSet;

use bb_client::{
    Apart, ClusterMap, ClusterView, DeviceState, Error, NodeEntry, NodeReport, NodeState,
    Redundancy, candidates, layout_over, redundancy,
};
use bb_proto::meta::{ByteCounts, NodeStatus};

use crate::output::client_error;
use crate::statistics::sum;

/// How well a cluster is. Its number is the exit code of `bbadm cluster status`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Everything has its full redundancy, every node is active and reachable.
    Full,
    /// Everything is served; something has fewer copies, or a node is missing.
    Reduced,
    /// Something is not served now.
    Interrupted,
}

impl Verdict {
    /// The exit code; 1 and 2 are failures of the command itself.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Full => 0,
            Self::Reduced => 3,
            Self::Interrupted => 4,
        }
    }

    /// One word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A node of the map with what it says.
pub struct Node<'a> {
    /// The map's entry.
    pub entry: &'a NodeEntry,
    /// Its answer.
    pub status: Option<&'a NodeStatus>,
    /// Why it does not answer; empty where it does, or was not asked.
    pub silence: String,
    /// Partitions whose primary it is, by the map.
    pub primaries: u32,
    /// Partitions of which it is primary or backup, by the map.
    pub copies: u32,
    /// Replicas that are being filled there, by the map.
    pub filling: u32,
}

impl Node<'_> {
    /// What it is, in a word or two.
    pub fn state(&self) -> &'static str {
        let state = NodeState::try_from(self.entry.state).unwrap_or(NodeState::Down);
        match (state, self.status) {
            (NodeState::Left, _) => "left",
            (NodeState::Down, _) if self.entry.damaged => "damaged",
            (NodeState::Down, Some(_)) => "restarting",
            (NodeState::Down, None) => "down",
            (NodeState::Joining, _) => "joining",
            (NodeState::Active, None) => "unreachable",
            (NodeState::Active, Some(status)) if !status.has_joined => "restarting",
            (NodeState::Active, Some(status)) if !status.has_lease => "no lease",
            (NodeState::Active, Some(_)) => "active",
        }
    }

    fn is_well(&self) -> bool {
        matches!(self.state(), "active" | "left")
    }

    /// Its part in the Raft group.
    pub fn role(&self, leader: Option<u32>) -> &'static str {
        match (leader == Some(self.entry.id), self.entry.voter != 0, self.entry.witness) {
            (true, _, true) => "leader, witness",
            (true, _, false) => "leader",
            (false, true, true) => "witness",
            (false, true, false) => "voter",
            (false, false, _) => "-",
        }
    }
}

/// How the blocks of a new parity group are spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// There is no parity.
    Unprotected,
    /// Each on a node of its own.
    OverNodes,
    /// Each on a node of its own, with so many data blocks instead of those wanted.
    OverFewNodes(u32),
    /// There are too few nodes: only the loss of devices is survived.
    OverDevices,
    /// There are too few devices to write anything.
    Nowhere,
}

/// Parity groups that are not as they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Groups {
    /// With a missing block.
    pub degraded: u64,
    /// Of these, with more than their parity makes up for.
    pub unreadable: u64,
    /// With two blocks on one node.
    pub crowded: u64,
}

impl Groups {
    const fn with(self, status: &NodeStatus) -> Self {
        Self {
            degraded: self.degraded + status.degraded_groups,
            unreadable: self.unreadable + status.unreadable_groups,
            crowded: self.crowded + status.crowded_groups,
        }
    }
}

/// Everything.
pub struct Health<'a> {
    /// The map.
    pub map: &'a ClusterMap,
    /// Its nodes, in order.
    pub nodes: Vec<Node<'a>>,
    /// Copies of partitions.
    pub redundancy: Redundancy,
    /// Blocks of groups.
    pub spread: Spread,
    /// Who leads the Raft group, and its term, as the voters that answer say.
    pub leader: Option<u32>,
    /// See there.
    pub term: u64,
    /// Nodes that vote, by the map.
    pub voters: Vec<u32>,
    /// The newest tick.
    pub tick: u64,
    /// Bytes by state, over all that is served.
    pub bytes: ByteCounts,
    /// Parity groups that are not as they should be, over all that is served.
    pub groups: Groups,
    /// Sentences about what is not as it should be, worst first.
    pub problems: Vec<(Verdict, String)>,
}

impl Health<'_> {
    /// All in all.
    pub fn verdict(&self) -> Verdict {
        self.problems.iter().map(|(verdict, _)| *verdict).max().unwrap_or(Verdict::Full)
    }
}

/// Puts together what was seen.
pub fn health(view: &ClusterView) -> Health<'_> {
    let map = &view.map;
    let nodes: Vec<Node<'_>> = map.nodes.iter().map(|entry| node(view, entry)).collect();
    let (leader, term) = leader(&nodes);
    let answers = || nodes.iter().filter_map(|node| node.status);
    let mut health = Health {
        map,
        redundancy: redundancy(map),
        spread: spread(map),
        leader,
        term,
        voters: map.nodes.iter().filter(|node| node.voter != 0).map(|node| node.id).collect(),
        tick: answers().map(|status| status.tick).max().unwrap_or(0),
        bytes: answers().fold(ByteCounts::default(), |all, status| sum(&all, &status.bytes)),
        groups: answers().fold(Groups::default(), Groups::with),
        problems: Vec::new(),
        nodes,
    };
    let mut problems = Vec::new();
    of_partitions(&health, &mut problems);
    of_nodes(&health, &mut problems);
    of_groups(&health, &mut problems);
    of_spread(&health, &mut problems);
    problems.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
    health.problems = problems;
    health
}

fn node<'a>(view: &'a ClusterView, entry: &'a NodeEntry) -> Node<'a> {
    let report: Option<&NodeReport> = view.reports.iter().find(|report| report.node == entry.id);
    let count = |has: &dyn Fn(&bb_client::PartitionEntry) -> bool| {
        let all = view.map.partitions.iter().filter(|partition| has(partition)).count();
        u32::try_from(all).unwrap_or(u32::MAX)
    };
    Node {
        entry,
        status: report.and_then(|report| report.status.as_ref().ok()),
        silence: match report.map(|report| &report.status) {
            Some(Err(Error::TimedOut { seconds })) => format!("no answer for {seconds} s"),
            Some(Err(Error::Errno { errno: libc::ENOTCONN, .. })) => "no connection".to_owned(),
            Some(Err(error)) => client_error(error),
            _ => String::new(),
        },
        primaries: count(&|partition| partition.primary == entry.id),
        copies: count(&|partition| partition.members().any(|member| member == entry.id)),
        filling: count(&|partition| partition.filling.contains(&entry.id)),
    }
}

/// Voters may disagree for a moment: the newest term is right.
fn leader(nodes: &[Node<'_>]) -> (Option<u32>, u64) {
    let said = nodes.iter().filter_map(|node| node.status).filter(|status| status.leader != 0);
    let newest = said.max_by_key(|status| (status.term, status.leader == status.node));
    newest.map_or((None, 0), |status| (Some(status.leader), status.term))
}

fn spread(map: &ClusterMap) -> Spread {
    let small = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    match layout_over(small(map.data), small(map.parity), &candidates(map, None, |_| 0)) {
        None => Spread::Nowhere,
        Some(_) if map.parity == 0 => Spread::Unprotected,
        Some(layout) if layout.apart == Apart::Devices => Spread::OverDevices,
        Some(layout) if u32::from(layout.data) < map.data => {
            Spread::OverFewNodes(layout.data.into())
        }
        Some(_) => Spread::OverNodes,
    }
}

fn of_partitions(health: &Health<'_>, problems: &mut Vec<(Verdict, String)>) {
    let counts = &health.redundancy;
    let mut say = |verdict, text: String| problems.push((verdict, text));
    if counts.lost > 0 {
        let text = format!("{} partitions are lost: their last log is damaged", counts.lost);
        say(Verdict::Interrupted, text);
    }
    if counts.down > counts.lost {
        let text = format!("{} partitions are down: no live copy", counts.down - counts.lost);
        say(Verdict::Interrupted, text);
    }
    // By the map somebody serves these; does it?
    let waiting: u32 = health
        .nodes
        .iter()
        .filter(|node| node.entry.is_active())
        .map(|node| {
            let serving = node.status.filter(|status| status.has_lease);
            node.primaries.saturating_sub(serving.map_or(0, |status| status.replicas.serving))
        })
        .sum();
    if waiting > 0 {
        say(Verdict::Interrupted, format!("{waiting} partitions wait for their primary"));
    }
    if health.leader.is_none() {
        let text = "nobody leads: no majority of the voters answers; leases run out";
        say(Verdict::Interrupted, text.to_owned());
    }
    if counts.reduced > 0 {
        let text = format!(
            "{} partitions have fewer than {} live copies; {} are being filled",
            counts.reduced, counts.possible, counts.filling
        );
        say(Verdict::Reduced, text);
    }
    if counts.possible < counts.wanted {
        let text = format!(
            "{} copies of each partition are wanted, there are nodes for {}",
            counts.wanted, counts.possible
        );
        say(Verdict::Reduced, text);
    }
    if counts.given_up > 0 {
        let text = format!("{} partitions were given up once: files were lost", counts.given_up);
        say(Verdict::Reduced, text);
    }
}

fn of_nodes(health: &Health<'_>, problems: &mut Vec<(Verdict, String)>) {
    for node in health.nodes.iter().filter(|node| !node.is_well()) {
        let why =
            if node.silence.is_empty() { String::new() } else { format!(": {}", node.silence) };
        let text = format!("node {} is {}{why}", node.entry.id, node.state());
        problems.push((Verdict::Reduced, text));
    }
    for status in health.nodes.iter().filter_map(|node| node.status) {
        if !status.bfs_problem.is_empty() {
            let text = format!("node {}: backing file system: {}", status.node, status.bfs_problem);
            problems.push((Verdict::Reduced, text));
        }
    }
    let left: BTreeSet<u32> =
        health.map.nodes.iter().filter(|node| node.has_left()).map(|node| node.id).collect();
    let failed: Vec<String> = health
        .map
        .devices
        .iter()
        .filter(|device| device.state == DeviceState::Failed as i32 && !left.contains(&device.node))
        .map(|device| format!("{} (node {})", device.id, device.node))
        .collect();
    if !failed.is_empty() {
        let text = format!("devices given up, not rebuilt elsewhere: {}", failed.join(", "));
        problems.push((Verdict::Reduced, text));
    }
    if !left.is_empty() {
        let all: Vec<String> = left.iter().map(u32::to_string).collect();
        let text = format!("nodes given up, not rebuilt elsewhere: {}", all.join(", "));
        problems.push((Verdict::Reduced, text));
    }
}

/// Parity groups, as the primaries of their home partitions have counted them some seconds ago at the
/// most.
fn of_groups(health: &Health<'_>, problems: &mut Vec<(Verdict, String)>) {
    let groups = health.groups;
    let mut say = |verdict, count: u64, what: &str| {
        if count > 0 {
            problems.push((verdict, format!("{count} parity groups {what}")));
        }
    };
    let unreadable = "cannot be read: they miss more blocks than they have parity";
    say(Verdict::Interrupted, groups.unreadable, unreadable);
    let degraded = "miss a block: the rest makes up for it";
    say(Verdict::Reduced, groups.degraded.saturating_sub(groups.unreadable), degraded);
    let crowded = "have blocks that share a node: a node that dies may take more than one of them";
    say(Verdict::Reduced, groups.crowded, crowded);
}

fn of_spread(health: &Health<'_>, problems: &mut Vec<(Verdict, String)>) {
    let (data, parity) = (health.map.data, health.map.parity);
    match health.spread {
        Spread::Unprotected | Spread::OverNodes | Spread::OverFewNodes(_) => {}
        Spread::OverDevices => {
            let text = format!(
                "{data}+{parity} groups need {} nodes at least: they protect against the loss of \
                 devices only",
                parity + 1
            );
            problems.push((Verdict::Reduced, text));
        }
        Spread::Nowhere => {
            let text = format!("nothing can be written: fewer than {} devices", parity + 1);
            problems.push((Verdict::Interrupted, text));
        }
    }
}

/// How blocks are spread, in a sentence.
pub fn spread_text(health: &Health<'_>) -> String {
    match health.spread {
        Spread::Unprotected => "no parity: the loss of a device loses data".to_owned(),
        Spread::OverNodes => "each block of a group on a node of its own".to_owned(),
        Spread::OverFewNodes(data) => format!(
            "each block of a group on a node of its own, {data}+{} for want of nodes",
            health.map.parity
        ),
        Spread::OverDevices => "on different devices only, for want of nodes".to_owned(),
        Spread::Nowhere => "nowhere: too few devices".to_owned(),
    }
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
