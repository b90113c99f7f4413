//! A node that finds itself the primary: what it does before it serves.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::cluster::{FetchTail, FetchTailReply, ReplicaStatus, ReplicaStatusReply};
use bb_proto::meta::{decode, encode};
use bb_proto::{ConfigNumber, Failure, Kind, NodeId, ServiceClass};
use bb_transport::Outgoing;
use futures_util::future::join_all;

use super::engine::{Outbox, Partition};
use super::host::PartitionHost;
use super::record::Record;
use super::role::{Follower, Phase};
use crate::planted::{self, Planted};

/// How long one question waits.
const ASK: Duration = Duration::from_secs(2);
/// Pause before it is asked again.
const AGAIN: Duration = Duration::from_millis(50);

type Statuses = BTreeMap<NodeId, ReplicaStatusReply>;

impl PartitionHost {
    /// Takes over; ends when the partition is served, or its configuration is another one.
    pub(super) async fn take_over(self: Rc<Self>, partition: Rc<Partition>, config: ConfigNumber) {
        if let Err(failure) = self.try_take_over(&partition, config).await {
            // Only its own log can fail it; then the node ends.
            tracing::error!(partition = partition.id().0, %failure, "cannot take over");
        }
    }

    async fn try_take_over(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        config: ConfigNumber,
    ) -> Result<(), Failure> {
        let (statuses, committed) = loop {
            let Some(statuses) = self.ask_members(partition, config).await else { return Ok(()) };
            partition.all_durable().await?;
            if !is_current(partition, config) {
                return Ok(());
            }
            let point = partition.commit_point();
            let committed = statuses.values().map(|s| s.committed).max().unwrap_or(0).max(point);
            if self.find_damaged(partition, &statuses, committed) {
                // The map will say what comes next.
                return Ok(());
            }
            partition.told.set(committed);
            partition.advance();
            let adopted = self.adopt_best(partition, config, &statuses, committed).await?;
            partition.all_durable().await?;
            if !is_current(partition, config) {
                return Ok(());
            }
            if adopted {
                break (statuses, committed);
            }
        };
        #[cfg(feature = "planted")]
        if planted::is(Planted::DropHorizonAtTakeOver) {
            partition.drop_horizon();
        }
        partition.with_primary(|primary| {
            let have = |node: &NodeId| (*node, Follower::member(committed));
            primary.followers = statuses.keys().map(have).collect();
        });
        partition.set_phase(Phase::Spreading);
        partition.send_on();
        let end = partition.tail.borrow().end();
        while partition.tail.borrow().applied() < end {
            let progress = partition.progress.notified();
            if let Some(failure) = partition.failure() {
                return Err(failure);
            }
            if partition.phase() != Some(Phase::Spreading) || partition.config() != config {
                return Ok(());
            }
            if partition.tail.borrow().applied() < end {
                progress.await;
            }
        }
        self.begin_to_serve(partition, config);
        Ok(())
    }

    /// Asks every other member, until all have answered; `None` if the configuration changes.
    async fn ask_members(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        config: ConfigNumber,
    ) -> Option<Statuses> {
        let asked = self.members_of(partition.id()).into_iter().map(|node| async move {
            loop {
                if !is_current(partition, config) {
                    return None;
                }
                match self.ask_member(partition, config, node).await {
                    Ok(status) if status.unusable.is_empty() => return Some(Some((node, status))),
                    Ok(status) => tracing::debug!(node = node.0, why = status.unusable, "not yet"),
                    Err(why) => tracing::debug!(node = node.0, why, "a member does not answer"),
                }
                if planted::is(Planted::TakeOverWithoutAll) {
                    return Some(None);
                }
                self.env.rt.sleep(AGAIN).await;
            }
        });
        let answers: Option<Vec<_>> = join_all(asked).await.into_iter().collect();
        Some(answers?.into_iter().flatten().collect())
    }

    async fn ask_member(
        &self,
        partition: &Partition,
        config: ConfigNumber,
        node: NodeId,
    ) -> Result<ReplicaStatusReply, String> {
        let ask = ReplicaStatus { partition: partition.id().0, config: config.0 };
        let body = self.ask_node(node, Kind::ReplicaStatus, &ask).await?;
        decode(&body).map_err(|failure| failure.to_string())
    }

    pub(super) async fn ask_node<M: prost::Message>(
        &self,
        node: NodeId,
        kind: Kind,
        message: &M,
    ) -> Result<Vec<u8>, String> {
        let address = self.env.shared.address_of(node).ok_or("the map does not know it")?;
        let request = Outgoing::new(kind, ServiceClass::Replication, ASK, encode(message));
        let answer = self.env.caller.call(&address, request).await;
        answer.map(|answer| answer.body).map_err(|error| error.to_string())
    }

    /// A member's process is another one: its log must hold what it had acknowledged (rule 12).
    pub(super) async fn verify(self: Rc<Self>, partition: Rc<Partition>, node: NodeId) {
        loop {
            let config = partition.config();
            let Some(acked) = partition.followers().get(&node).copied() else { return };
            if let Ok(status) = self.ask_member(&partition, config, node).await
                && partition.config() == config
            {
                if status.logged < acked && !planted::is(Planted::IgnoreShortLog) {
                    let end = status.logged;
                    let why = format!(
                        "partition {}: its log ends at {end}, it had acknowledged {acked}",
                        partition.id()
                    );
                    self.council().damaged(node, &why);
                }
                // It has forgotten how far all is committed.
                partition.send_again(node);
                self.outbox.committed(partition.id(), node);
                return;
            }
            self.env.rt.sleep(AGAIN).await;
        }
    }

    /// A member whose log ends below what is committed has lost something (rule 12).
    fn find_damaged(&self, partition: &Partition, statuses: &Statuses, committed: u64) -> bool {
        if planted::is(Planted::IgnoreShortLog) {
            return false;
        }
        let own = partition.tail.borrow().end();
        let mut ends: Vec<(NodeId, u64)> =
            statuses.iter().map(|(node, status)| (*node, status.logged)).collect();
        ends.push((self.env.shared.node, own));
        let mut any = false;
        for (node, end) in ends.into_iter().filter(|(_, end)| *end < committed) {
            any = true;
            let why = format!(
                "partition {}: its log ends at {end}, {committed} is committed",
                partition.id()
            );
            self.council().damaged(node, &why);
        }
        any
    }

    /// Makes the tail with the highest (configuration, sequence) this node's own. False if whoever
    /// has it is bound no more: its process is another one, and all are asked again.
    async fn adopt_best(
        &self,
        partition: &Rc<Partition>,
        config: ConfigNumber,
        statuses: &Statuses,
        committed: u64,
    ) -> Result<bool, Failure> {
        let own = {
            let tail = partition.tail.borrow();
            (tail.end_config().0, tail.end())
        };
        let of = |status: &ReplicaStatusReply| (status.logged_config, status.logged);
        let best = statuses.iter().max_by_key(|(_, status)| of(status));
        let Some((node, status)) = best.filter(|(_, status)| of(status) > own) else {
            return Ok(true);
        };
        let mut next = committed + 1;
        while next <= status.logged {
            let ask = FetchTail { partition: partition.id().0, config: config.0, from: next };
            let records = match self.ask_node(*node, Kind::FetchTail, &ask).await {
                Ok(body) => decode::<FetchTailReply>(&body)?.records,
                Err(why) => {
                    tracing::debug!(node = node.0, why, "a tail is not fetched");
                    self.env.rt.sleep(AGAIN).await;
                    return Ok(false);
                }
            };
            if !is_current(partition, config) {
                return Ok(true);
            }
            next += self.adopt(partition, config, next, &records).await?;
        }
        if is_current(partition, config) && partition.tail.borrow().end() > status.logged {
            partition.cut(status.logged + 1);
        }
        Ok(true)
    }

    /// Logs fetched records that are not here; returns how many were taken in.
    async fn adopt(
        &self,
        partition: &Rc<Partition>,
        config: ConfigNumber,
        first: u64,
        records: &[Vec<u8>],
    ) -> Result<u64, Failure> {
        let sizes = records.iter().map(Vec::len).collect();
        let mut room = partition.journal.admit_frame(ServiceClass::Replication, sizes).await?;
        if !is_current(partition, config) {
            return Ok(0);
        }
        for (sequence, bytes) in (first..).zip(records) {
            let record = match Record::decode(bytes) {
                Ok(record) if record.sequence == sequence => record,
                other => {
                    tracing::warn!(?other, sequence, "a fetched record is not what it should be");
                    return Ok(sequence - first);
                }
            };
            let held = partition.tail.borrow().config_at(sequence);
            if held == Some(record.config) {
                continue;
            }
            if held.is_some() {
                partition.cut(sequence);
            }
            partition.log_record(bytes, record, &mut *room)?;
        }
        Ok(records.len() as u64)
    }
}

fn is_current(partition: &Partition, config: ConfigNumber) -> bool {
    partition.config() == config && partition.phase() == Some(Phase::Asking)
}
