//! Who answers which request.

use std::rc::Rc;

use bb_cluster::DeviceState;
use bb_proto::meta::{self, ByteCounts, DeviceStatus, NodeStatus};
use bb_proto::{Code, DeviceId, Failure, Kind, PartitionId};
use bb_transport::{HandleFuture, Incoming, Peer, Response, Service, Vitals};

use super::Node;
use crate::files::WHOLE_NODE;
use crate::partition::Partition;

impl Service for Node {
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture {
        Box::pin(async move {
            let leased = needs_lease(request.header.kind);
            let addressed = if leased { self.tenure_of(&request) } else { None };
            let answer = self.route(request).await;
            // After the answer was computed, in one turn with its leaving: what a successor has
            // changed since cannot be missing in it.
            if leased && !self.has_lease() {
                return Err(Failure::new(Code::Fenced, "this node has no lease now"));
            }
            if addressed.is_some_and(|(partition, tenure)| {
                !partition.serves() || partition.tenure() != Some(tenure)
            }) {
                return Err(Failure::new(Code::Fenced, "the partition is served by another now"));
            }
            answer
        })
    }

    fn vitals(&self, kind: Kind, target: u32) -> Vitals {
        let addressed = match kind {
            Kind::PutBlock | Kind::GetBlock | Kind::FreeBlocks => {
                self.stores.get(&DeviceId(target))
            }
            _ => None,
        };
        addressed.map_or_else(
            || Vitals { tick: self.ctx.shared.tick(), ..Vitals::default() },
            |store| store.vitals(),
        )
    }

    fn disconnected(&self, peer: &Peer) {
        tracing::debug!(connection = peer.connection, host = %peer.host, "connection closed");
    }
}

/// What only the primary of a partition may answer.
const fn needs_lease(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Commit
            | Kind::CancelCommit
            | Kind::PgStatus
            | Kind::PgRelease
            | Kind::PgHolds
            | Kind::Lookup
            | Kind::GetInline
            | Kind::RegionTruncate
            | Kind::RegionDrop
            | Kind::RegionStat
            | Kind::SessionOpen
            | Kind::SessionRenew
            | Kind::SessionClose
            | Kind::Namespace
            | Kind::FileOpen
            | Kind::FileClose
            | Kind::FileStat
            | Kind::FileRegions
            | Kind::FileSize
            | Kind::FileTruncate
            | Kind::FileDrop
            | Kind::FileOperation
            | Kind::OperationStatus
            | Kind::RegionOperation
            | Kind::ReadThrough
    )
}

impl Node {
    /// The partition that a request addresses, and under which tenure of this node.
    fn tenure_of(&self, request: &Incoming) -> Option<(Rc<Partition>, u64)> {
        if request.header.kind == Kind::SessionOpen {
            return None;
        }
        let partition = self.partitions.partition(PartitionId(request.header.target))?;
        let tenure = partition.tenure()?;
        Some((partition, tenure))
    }

    async fn route(&self, request: Incoming) -> Result<Response, Failure> {
        match request.header.kind {
            Kind::Ping => Ok(Response::default()),
            Kind::NodeStatus => self.node_status().await,
            Kind::PutBlock | Kind::GetBlock | Kind::FreeBlocks => {
                let device = DeviceId(request.header.target);
                let store = self.stores.get(&device).ok_or_else(|| {
                    Failure::new(Code::Fenced, format!("device {device} is not driven here"))
                })?;
                store.serve(request).await
            }
            Kind::Commit => self.files.commit(&self.partitions, request).await,
            Kind::CancelCommit
            | Kind::PgStatus
            | Kind::PgRelease
            | Kind::PgHolds
            | Kind::Lookup
            | Kind::GetInline
            | Kind::RegionTruncate
            | Kind::RegionDrop
            | Kind::RegionStat => self.partitions.clone().handle(request).await,
            Kind::Replicate | Kind::ReplicaStatus | Kind::FetchTail | Kind::InstallSnapshot => {
                self.partitions.clone().handle_replica(request).await
            }
            Kind::GetMap
            | Kind::Raft
            | Kind::Propose
            | Kind::Lease
            | Kind::Heartbeat
            | Kind::Suspect
            | Kind::Filled
            | Kind::HandOver => self.council.handle(request).await,
            Kind::SessionOpen => self.sessions.open(&request).await,
            // A session is over: from a server to each node, once for all of its partitions.
            Kind::SessionClose if request.header.target == WHOLE_NODE => {
                self.files.end_session_here(self.partitions.partitions(), &request).await
            }
            Kind::SessionRenew | Kind::SessionClose | Kind::Namespace => {
                let partition = self.partitions.addressed(&request.header)?;
                self.sessions.clone().handle(partition, request).await
            }
            Kind::FileOpen
            | Kind::FileClose
            | Kind::FileStat
            | Kind::FileRegions
            | Kind::FileSize
            | Kind::FileTruncate
            | Kind::FileDrop => {
                let partition = self.partitions.addressed(&request.header)?;
                self.files.clone().handle(partition, request).await
            }
            Kind::FileOperation
            | Kind::OperationStatus
            | Kind::RegionOperation
            | Kind::ReadThrough => self.residency.serve(request).await,
            Kind::Hello | Kind::Auth => {
                Err(Failure::new(Code::Invalid, "only the first frames of a connection"))
            }
        }
    }

    async fn node_status(&self) -> Result<Response, Failure> {
        let bfs_problem = self.bfs_watch.problem(&self.ctx.rt, || self.ctx.bfs.check()).await;
        let shared = &self.ctx.shared;
        let usage = self.ctx.log.usage();
        let bfs_calls = self.ctx.bfs.calls();
        let log_done = self.ctx.log.device_stats();
        let blocks_bytes: usize = self.stores.values().map(|s| s.memory_bytes()).sum();
        let counts = self.partitions.counts();
        let sessions =
            self.partitions.partitions().map(|p| p.state().sessions.iter().count() as u64).sum();
        let status = NodeStatus {
            node: shared.node.0,
            epoch: shared.map().epoch,
            tick: shared.tick().0,
            devices: self.device_status(),
            bytes: ByteCounts {
                dirty: counts.dirty,
                pending: counts.pending,
                clean: counts.clean,
                deletable: counts.deletable,
                end: 0,
                fragments: counts.fragments,
                groups: self.partitions.partitions().map(|p| p.state().pgs.len() as u64).sum(),
            },
            log_bytes: usage.ring_bytes,
            log_used_bytes: usage.used_bytes,
            metadata_bytes: blocks_bytes as u64 + self.partitions.metadata_bytes(),
            metadata_bytes_max: self.metadata_bytes_max,
            incarnation: shared.incarnation.0,
            bfs_problem,
            reconstructed_blocks: self.residency.reconstructed_blocks(),
            sessions,
            leader: self.council.leader().map_or(0, |node| node.0),
            term: self.council.term(),
            voters: self.council.raft_voters(),
            has_lease: shared.lease.is_valid(shared.map().epoch),
            has_joined: self.council.has_joined(),
            replicas: self.partitions.replica_counts(),
            degraded_groups: self.partitions.degraded().groups,
            unreadable_groups: self.partitions.degraded().unreadable,
            crowded_groups: self.partitions.degraded().crowded,
            log_written_bytes: log_done.write.bytes,
            log_flushes: log_done.flushes(),
            log_read_bytes: log_done.read.bytes,
            bfs_calls: bfs_calls.count,
            bfs_us: bfs_calls.took_us,
        };
        Ok(Response::body(meta::encode(&status)))
    }

    /// The devices of this node: those that serve, and those that the map has given up.
    fn device_status(&self) -> Vec<DeviceStatus> {
        let map = self.ctx.shared.map();
        map.devices
            .iter()
            .filter(|entry| entry.node == self.ctx.shared.node.0)
            .map(|entry| {
                let failed = entry.state() == DeviceState::Failed;
                let mut status = self.stores.get(&DeviceId(entry.id)).map_or_else(
                    || DeviceStatus {
                        device: entry.id,
                        capacity_bytes: entry.capacity_bytes,
                        ..DeviceStatus::default()
                    },
                    |store| store.status(),
                );
                if failed && status.problem.is_empty() {
                    status.problem = "given up".to_owned();
                }
                status
            })
            .collect()
    }
}
