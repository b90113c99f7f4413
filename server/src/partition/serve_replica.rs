//! What other servers ask of this node's replicas.

use std::collections::BTreeMap;
use std::rc::Rc;

use bb_proto::cluster::{
    FetchTail, FetchTailReply, InstallSnapshot, InstallSnapshotReply, ReplicaStatus,
    ReplicaStatusReply, ReplicateAck, ReplicateEntry, ReplicateReply, ReplicateVerdict,
    take_replicate,
};
use bb_proto::meta::{decode, encode};
use bb_proto::{Code, ConfigNumber, Failure, Kind, PartitionId, ServiceClass};
use bb_transport::{Incoming, Response};

use super::engine::Partition;
use super::host::PartitionHost;
use super::record::Record;
use crate::planted::{self, Planted};
use crate::rights::check_server;

/// Bytes of records in one answer to `FetchTail`, about.
const FETCH_BYTES: usize = 512 << 10;

/// What became of a partition's entries in a frame.
struct Taken {
    verdict: ReplicateVerdict,
    config: ConfigNumber,
    end: u64,
}

impl PartitionHost {
    /// Answers another server about replicas.
    ///
    /// # Errors
    /// What the request's handler says.
    pub async fn handle_replica(self: Rc<Self>, request: Incoming) -> Result<Response, Failure> {
        check_server(&request.peer)?;
        let body = request.body.as_slice();
        let answer = match request.header.kind {
            Kind::Replicate => encode(&self.take_frame(body).await?),
            Kind::ReplicaStatus => encode(&self.replica_status(decode(body)?).await?),
            Kind::FetchTail => encode(&self.fetch_tail(decode(body)?)?),
            Kind::InstallSnapshot => encode(&self.install_piece(decode(body)?).await?),
            kind => {
                return Err(Failure::new(
                    Code::Unsupported,
                    format!("{kind:?} is not for replicas"),
                ));
            }
        };
        Ok(Response::body(answer))
    }

    async fn take_frame(self: &Rc<Self>, body: &[u8]) -> Result<ReplicateReply, Failure> {
        let invalid =
            |error: &dyn std::fmt::Display| Failure::new(Code::Invalid, error.to_string());
        let entries = take_replicate(body).map_err(|error| invalid(&error))?;
        let mut records = Vec::with_capacity(entries.len());
        for entry in &entries {
            records.push(match entry.record {
                [] => None,
                bytes => {
                    let record = Record::decode(bytes).map_err(|error| invalid(&error))?;
                    if record.sequence != entry.sequence {
                        return Err(invalid(&"an entry and its record have different numbers"));
                    }
                    Some(record)
                }
            });
        }
        let map = self.env.shared.map();
        if entries.iter().any(|entry| entry.config > map.config(entry.partition)) {
            // The sender repeats what was refused for it.
            self.council().refresh_map(None);
        }
        let sizes = entries.iter().map(|entry| entry.record.len()).filter(|len| *len > 0).collect();
        let mut room = self.journal.admit_frame(ServiceClass::Replication, sizes).await?;
        let mut taken: BTreeMap<PartitionId, Taken> = BTreeMap::new();
        for (entry, record) in entries.iter().zip(records) {
            // Behind one that was not taken, nothing of the partition is.
            if taken.get(&entry.partition).is_some_and(|t| t.verdict != ReplicateVerdict::Logged) {
                continue;
            }
            taken.insert(entry.partition, self.take_one(entry, record, &mut *room));
        }
        drop(room);
        self.acknowledge(taken).await
    }

    fn take_one(
        &self,
        entry: &ReplicateEntry<'_>,
        record: Option<Record>,
        room: &mut dyn super::journal::FrameTicket,
    ) -> Taken {
        let config = entry.config;
        let Some(partition) = self.replica(entry.partition) else {
            return Taken { verdict: ReplicateVerdict::Absent, config, end: 0 };
        };
        let verdict = partition.take_entry(entry, record, room);
        Taken { verdict, config, end: partition.tail.borrow().end() }
    }

    /// Waits until everything is durable, then says what was taken: nothing for a configuration
    /// that is older than what was promised meanwhile.
    async fn acknowledge(
        &self,
        taken: BTreeMap<PartitionId, Taken>,
    ) -> Result<ReplicateReply, Failure> {
        let mut acks = Vec::with_capacity(taken.len());
        for (id, taken) in taken {
            let ack = |verdict: ReplicateVerdict, matched, config: ConfigNumber| ReplicateAck {
                partition: id.0,
                verdict: verdict.into(),
                matched,
                config: config.0,
            };
            let Some(partition) = self.replica(id) else {
                acks.push(ack(ReplicateVerdict::Absent, 0, taken.config));
                continue;
            };
            if taken.verdict == ReplicateVerdict::Logged && !planted::is(Planted::BackupAcksEarly) {
                partition.durable_through(taken.end).await?;
            }
            acks.push(match (taken.verdict, partition.acknowledgement(taken.config)) {
                (ReplicateVerdict::Fenced, _) | (ReplicateVerdict::Logged, None) => {
                    ack(ReplicateVerdict::Fenced, 0, partition.bound_to())
                }
                (ReplicateVerdict::Gap, None) => {
                    let applied = partition.tail.borrow().applied();
                    ack(ReplicateVerdict::Gap, applied, taken.config)
                }
                (verdict, matched) => ack(verdict, matched.unwrap_or(0), taken.config),
            });
            partition.advance();
        }
        Ok(ReplicateReply { acks })
    }

    async fn replica_status(&self, ask: ReplicaStatus) -> Result<ReplicaStatusReply, Failure> {
        match self.replica(PartitionId(ask.partition)) {
            Some(partition) => partition.promise(ConfigNumber(ask.config)).await,
            None => Ok(ReplicaStatusReply {
                unusable: "there is no replica".to_owned(),
                ..ReplicaStatusReply::default()
            }),
        }
    }

    fn fetch_tail(&self, ask: FetchTail) -> Result<FetchTailReply, Failure> {
        let partition = self
            .replica(PartitionId(ask.partition))
            .ok_or_else(|| Failure::new(Code::Fenced, "there is no replica"))?;
        let records = partition.fetch_tail(ConfigNumber(ask.config), ask.from, FETCH_BYTES)?;
        Ok(FetchTailReply { records })
    }

    async fn install_piece(
        self: &Rc<Self>,
        piece: InstallSnapshot,
    ) -> Result<InstallSnapshotReply, Failure> {
        let id = PartitionId(piece.partition);
        if !self.is_filled_by(id, piece.since) {
            if self.env.shared.map().config(id).0 < piece.config {
                self.council().refresh_map(None);
            }
            return Err(stale(id));
        }
        let have = self.incoming.borrow_mut().take(&piece)?;
        if have < piece.total {
            return Ok(InstallSnapshotReply { have });
        }
        // A repetition of the last piece is answered alike, and not before.
        let whole = self.incoming.borrow_mut().finish(&piece)?;
        let Some(snapshot) = whole else { return Ok(InstallSnapshotReply { have }) };
        let result = self.install(id, piece.since, &snapshot).await;
        match &result {
            Ok(()) => self.incoming.borrow_mut().installed(&piece),
            Err(_) => self.incoming.borrow_mut().forget(id),
        }
        result.map(|()| InstallSnapshotReply { have })
    }

    /// True if this node is to be filled by the primary of that tenure.
    fn is_filled_by(&self, id: PartitionId, since: u64) -> bool {
        let map = self.env.shared.map();
        map.partition(id).is_some_and(|entry| {
            let same = entry.since == since || planted::is(Planted::InstallStaleSnapshot);
            entry.filling.contains(&self.env.shared.node.0) && same
        })
    }

    /// Makes a snapshot from elsewhere this node's filling replica.
    async fn install(
        self: &Rc<Self>,
        id: PartitionId,
        since: u64,
        snapshot: &[u8],
    ) -> Result<(), Failure> {
        let sizes = snapshot.chunks(ROOM_BYTES).map(<[u8]>::len).collect();
        let room = self.journal.admit_frame(ServiceClass::Background, sizes).await?;
        let replica = super::replay::Replica::decode(id, snapshot)
            .map_err(|error| Failure::new(Code::Corrupt, error.to_string()))?;
        drop(room);
        if !self.is_filled_by(id, since) {
            return Err(stale(id));
        }
        let written = self.journal.checkpoint(id, snapshot.to_vec())?;
        let partition = self.adopt_replica(replica);
        written.await?;
        partition.installed();
        tracing::debug!(partition = id.0, "a snapshot is installed");
        Ok(())
    }
}

fn stale(id: PartitionId) -> Failure {
    Failure::new(Code::Fenced, format!("partition {id} is not filled here by that primary"))
}

/// Snapshots on their way in.
#[derive(Default)]
pub(super) struct IncomingSnapshots {
    pieces: BTreeMap<PartitionId, Pieces>,
}

struct Pieces {
    since: u64,
    snapshot: u64,
    bytes: Vec<u8>,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Coming,
    /// All bytes are here, and not yet durable as a replica.
    Installing,
    Installed,
}

/// Room for a snapshot is asked for in records of this size.
const ROOM_BYTES: usize = 32 << 10;
/// A snapshot cannot be longer.
const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;

impl IncomingSnapshots {
    /// Takes in a piece; says how much there is.
    fn take(&mut self, piece: &InstallSnapshot) -> Result<u64, Failure> {
        let id = PartitionId(piece.partition);
        if piece.total > SNAPSHOT_BYTES_MAX {
            return Err(Failure::new(Code::Invalid, "a snapshot this long"));
        }
        let named = (piece.since, piece.snapshot);
        let known = self.pieces.get(&id).map(|pieces| (pieces.since, pieces.snapshot));
        if known.is_some_and(|known| known > named) && !planted::is(Planted::InstallStaleSnapshot) {
            return Err(stale(id));
        }
        if known != Some(named) {
            let (since, snapshot) = named;
            let empty = Pieces { since, snapshot, bytes: Vec::new(), progress: Progress::Coming };
            self.pieces.insert(id, empty);
        }
        let pieces = self.pieces.get_mut(&id).expect("it was put in above");
        if pieces.progress != Progress::Coming {
            return Ok(piece.total);
        }
        if pieces.bytes.len() as u64 == piece.offset
            && piece.offset + piece.bytes.len() as u64 <= piece.total
        {
            pieces.bytes.extend_from_slice(&piece.bytes);
        }
        Ok(pieces.bytes.len() as u64)
    }

    /// The whole snapshot, once; `None` when it is installed.
    fn finish(&mut self, piece: &InstallSnapshot) -> Result<Option<Vec<u8>>, Failure> {
        let id = PartitionId(piece.partition);
        let pieces = self.pieces.get_mut(&id).ok_or_else(|| stale(id))?;
        let before = std::mem::replace(&mut pieces.progress, Progress::Installing);
        if planted::is(Planted::InstallStaleSnapshot) {
            return Ok(Some(pieces.bytes.clone()));
        }
        match before {
            Progress::Coming => Ok(Some(std::mem::take(&mut pieces.bytes))),
            Progress::Installing => Err(Failure::new(Code::Busy, "it is being installed")),
            Progress::Installed => {
                pieces.progress = before;
                Ok(None)
            }
        }
    }

    fn installed(&mut self, piece: &InstallSnapshot) {
        let pieces = self.pieces.get_mut(&PartitionId(piece.partition));
        if let Some(pieces) =
            pieces.filter(|p| (p.since, p.snapshot) == (piece.since, piece.snapshot))
        {
            pieces.progress = Progress::Installed;
        }
    }

    /// The partition is filled no more.
    pub(super) fn forget(&mut self, id: PartitionId) {
        self.pieces.remove(&id);
    }
}

impl Partition {
    /// The snapshot of a filling replica is durable: records behind it may come.
    fn installed(&self) {
        self.set_role(super::role::Role::Filling(super::role::Matched::default()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_last_piece_is_not_acknowledged_before_the_snapshot_is_installed() {
        let mut incoming = IncomingSnapshots::default();
        let piece = InstallSnapshot {
            partition: 3,
            since: 7,
            snapshot: 1,
            total: 4,
            bytes: vec![1, 2, 3, 4],
            ..InstallSnapshot::default()
        };
        assert_eq!(incoming.take(&piece).unwrap(), 4);
        assert_eq!(incoming.finish(&piece).unwrap(), Some(vec![1, 2, 3, 4]));
        // The network brings it again, while the log takes its time.
        assert_eq!(incoming.take(&piece).unwrap(), 4);
        assert_eq!(incoming.finish(&piece).unwrap_err().kind(), Code::Busy);
        incoming.installed(&piece);
        assert_eq!(incoming.take(&piece).unwrap(), 4);
        assert_eq!(incoming.finish(&piece).unwrap(), None);
        // What did not become durable is sent again.
        incoming.forget(PartitionId(3));
        assert_eq!(incoming.finish(&piece).unwrap_err().kind(), Code::Fenced);
    }
}
