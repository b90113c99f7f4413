//! What is for all partitions is said to each node once, not to each of 16,384 partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use bb_proto::{Code, Failure, Kind, ServiceClass};
use bb_runtime::Rt;
use bb_transport::{Address, CallError, Caller, Outgoing};
use futures_util::stream::{self, StreamExt};

use crate::context::Shared;

/// How long one attempt waits for its answer.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long a node is told again that does not answer, or is just taking over.
const PATIENCE: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Nodes that are told at once.
const NODES_AT_ONCE: usize = 64;

/// The target of a request to a node, for all partitions that it serves.
pub const WHOLE_NODE: u32 = u32::MAX;

/// A process that serves partitions, and where it listens.
struct Process {
    node: u32,
    incarnation: u64,
    address: Address,
}

/// Tells every process that the map has as primary of something, until each has answered. Only for
/// what may be repeated. Who comes in while others are told is told as well; what those had in memory
/// that are down is gone.
///
/// # Errors
/// [`Code::Busy`] when one has not answered for long; the first refusal that is for good.
pub async fn tell_nodes(
    rt: &Rt,
    caller: &dyn Caller,
    shared: &Shared,
    kind: Kind,
    body: Vec<u8>,
) -> Result<(), Failure> {
    let give_up = rt.now() + PATIENCE;
    let mut told: BTreeSet<(u32, u64)> = BTreeSet::new();
    let mut pause = BACKOFF_MIN;
    loop {
        let mut left = primaries(shared);
        left.retain(|process| !told.contains(&(process.node, process.incarnation)));
        if left.is_empty() {
            return Ok(());
        }
        let calls = left.iter().map(|process| {
            let request = Outgoing::new(kind, ServiceClass::Client, ATTEMPT, body.clone());
            let call = caller.call(&process.address, request.to(WHOLE_NODE, 0));
            async move { ((process.node, process.incarnation), call.await) }
        });
        let answers: Vec<_> = stream::iter(calls).buffer_unordered(NODES_AT_ONCE).collect().await;
        let mut open = None;
        for (process, answer) in answers {
            match answer {
                Ok(_) => {
                    told.insert(process);
                }
                Err(CallError::Refused(failure, _))
                    if !matches!(failure.kind(), Code::Busy | Code::Fenced) =>
                {
                    return Err(failure);
                }
                Err(error) => open = Some((process.0, error)),
            }
        }
        let Some((node, error)) = open else { continue };
        if rt.now() + pause > give_up {
            return Err(Failure::new(Code::Busy, format!("node {node}: {error}")));
        }
        rt.sleep(pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

fn primaries(shared: &Shared) -> Vec<Process> {
    let map = shared.map();
    let named: BTreeSet<u32> = map.partitions.iter().map(|entry| entry.primary).collect();
    let nodes = map.nodes.iter().filter(|node| node.is_active() && named.contains(&node.id));
    nodes
        .map(|node| Process {
            node: node.id,
            incarnation: node.incarnation,
            address: Address::from(node.address.as_str()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use bb_cluster::{ClusterMap, NodeEntry, NodeState, PartitionEntry};
    use bb_proto::{Incarnation, NodeId, Tick};
    use bb_runtime::Executor;
    use bb_transport::{Answer, CallFuture, Vitals};

    use super::*;

    /// Counts; each node answers after it has been told so often.
    struct Nodes {
        told: RefCell<BTreeMap<String, u32>>,
        answers_after: u32,
        shared: Rc<Shared>,
    }

    impl Caller for Nodes {
        fn call(&self, to: &Address, request: Outgoing) -> CallFuture {
            assert_eq!((request.target, request.fence), (WHOLE_NODE, 0));
            let count = {
                let mut told = self.told.borrow_mut();
                let count = told.entry(to.0.to_string()).or_default();
                *count += 1;
                *count
            };
            if &*to.0 == "n2" && count == 1 {
                // Fails over while it is told.
                let mut map = (*self.shared.map()).clone();
                map.nodes[1].state = NodeState::Down as i32;
                for entry in map.partitions.iter_mut().filter(|entry| entry.primary == 2) {
                    (entry.primary, entry.config) = (4, entry.config + 1);
                }
                self.shared.set_map(map);
                return Box::pin(std::future::ready(Err(CallError::TimedOut)));
            }
            let busy = count < self.answers_after;
            Box::pin(async move {
                if busy {
                    return Err(CallError::Refused(
                        Failure::new(Code::Busy, ""),
                        Vitals::default(),
                    ));
                }
                Ok(Answer { body: Vec::new(), payload: None, vitals: Vitals::default() })
            })
        }
    }

    fn map() -> ClusterMap {
        let node = |id| NodeEntry { id, address: format!("n{id}"), ..NodeEntry::default() };
        let partition = |id: u32| PartitionEntry {
            config: 1,
            primary: 1 + id % 3,
            ..PartitionEntry::default()
        };
        ClusterMap {
            nodes: (1..=5).map(node).collect(),
            partitions: (0..16_384).map(partition).collect(),
            ..ClusterMap::default()
        }
    }

    #[test]
    fn each_node_that_serves_is_told_once_and_so_is_who_takes_over_meanwhile() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let (address, incarnation) = (Address::from("n1"), Incarnation(1));
        let shared = Rc::new(Shared::new(&rt, NodeId(1), address, incarnation, map(), Tick(1)));
        let nodes = Nodes { told: RefCell::default(), answers_after: 1, shared: shared.clone() };
        let end = tell_nodes(&rt, &nodes, &shared, Kind::SessionClose, Vec::new());
        executor.block_on(end).expect("all are told");
        let told: Vec<(String, u32)> = nodes.told.into_inner().into_iter().collect();
        let once = ["n1", "n2", "n3", "n4"].map(|node| (node.to_owned(), 1));
        assert_eq!(told, once, "five messages instead of 16,384; the fifth node serves nothing");
    }

    #[test]
    fn a_node_that_is_busy_is_told_again_and_given_up_on_in_the_end() {
        let executor = Executor::simulated(2);
        let rt = executor.rt();
        for (answers_after, well) in [(4, true), (100_000, false)] {
            let (address, incarnation) = (Address::from("n1"), Incarnation(1));
            let shared = Rc::new(Shared::new(&rt, NodeId(1), address, incarnation, map(), Tick(1)));
            let nodes = Nodes { told: RefCell::default(), answers_after, shared: shared.clone() };
            let end = tell_nodes(&rt, &nodes, &shared, Kind::SessionClose, Vec::new());
            assert_eq!(executor.block_on(end).is_ok(), well);
        }
    }
}
