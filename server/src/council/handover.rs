//! A primary gives its role to another member because the leader asked: the only way in which a process
//! loses that role and lives on.

use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{Change, NewReplicas, Reconfigure};
use bb_proto::ConfigNumber;

use super::Council;
use crate::partition::Partition;

/// How long requests are held up while what was begun ends; after that the role stays here.
pub(super) const DRAIN: Duration = Duration::from_secs(2);

impl Council {
    pub(super) async fn hand_over_one(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        change: NewReplicas,
    ) {
        let config = ConfigNumber(change.entry.config);
        if !partition.begin_hand_over(config) {
            return;
        }
        let drained = self.rt.timeout(DRAIN, partition.drained(config)).await;
        if !drained.unwrap_or(false) {
            // Nobody has been asked yet, so this node simply goes on.
            partition.end_hand_over(config);
            return;
        }
        let executed = self.reconfigure(change.clone()).await;
        if executed {
            return self.fetch_map(None).await;
        }
        // The command may still come true late: it is outdated by one that keeps the role here.
        loop {
            let map = self.shared.map();
            let entry = map.partition(partition.id()).cloned().unwrap_or_default();
            if entry.config != config.0 || entry.primary != self.shared.node.0 {
                return;
            }
            if self.reconfigure(NewReplicas { entry, ..change.clone() }).await {
                self.fetch_map(None).await;
            }
            self.rt.sleep(super::AGAIN).await;
        }
    }

    /// True if the change came true.
    async fn reconfigure(&self, change: NewReplicas) -> bool {
        let partition = change.partition;
        let executed =
            self.propose(Change::Reconfigure(Reconfigure { changes: vec![change] })).await;
        executed.void.is_empty() && !executed.not_changed.contains(&partition)
    }
}
