//! Heartbeats: each node watches a few others, and tells the leader who does not answer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::watched_by;
use bb_proto::cluster::{Heartbeat, Suspect};
use bb_proto::{Kind, NodeId};
use bb_runtime::Instant;

use super::Council;

/// When each process that is watched was last heard, or first watched.
type Answers = Rc<RefCell<BTreeMap<(NodeId, u64), Instant>>>;

impl Council {
    pub(super) async fn watch_others(self: Rc<Self>) {
        let answers = Answers::default();
        while !self.stopping.get() && self.ending.borrow().is_none() {
            let map = self.shared.map();
            self.rt.sleep(Duration::from_millis(u64::from(map.heartbeat_ms).max(1))).await;
            let now = self.rt.now();
            let processes: Vec<(NodeId, u64)> = watched_by(&map, self.shared.node)
                .into_iter()
                .filter_map(|node| Some((node, map.node(node)?.incarnation)))
                .collect();
            answers.borrow_mut().retain(|process, _| processes.contains(process));
            for process in processes {
                let heard = *answers.borrow_mut().entry(process).or_insert(now);
                let (this, answers) = (self.clone(), answers.clone());
                self.rt.spawn(async move { this.beat(process, &answers).await });
                if now.since(heard) >= Duration::from_millis(map.suspect_ms.into()) {
                    let this = self.clone();
                    self.rt.spawn(async move { this.suspect(process).await });
                }
            }
        }
    }

    async fn beat(&self, process: (NodeId, u64), answers: &Answers) {
        let (node, incarnation) = process;
        let ask = Heartbeat { from: self.shared.node.0, node: node.0, incarnation };
        // A refusal says that the process which the map means is no more.
        if self.ask(node, Kind::Heartbeat, &ask).await.is_ok()
            && let Some(heard) = answers.borrow_mut().get_mut(&process)
        {
            *heard = self.rt.now();
        }
    }

    async fn suspect(&self, (node, incarnation): (NodeId, u64)) {
        let report = Suspect { reporter: self.shared.node.0, node: node.0, incarnation };
        if let Err(failure) = self.ask_leader(Kind::Suspect, &report).await {
            tracing::debug!(node = node.0, %failure, "a suspicion was not reported");
        }
    }
}
