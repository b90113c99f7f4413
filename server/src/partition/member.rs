//! What a member (or filling) replica does with what its primary sends: `docs/replication.md`, "A
//! partition's replicas".

use std::rc::Rc;

use bb_proto::cluster::{ReplicaStatusReply, ReplicateEntry, ReplicateVerdict};
use bb_proto::{Code, ConfigNumber, Failure};

use super::engine::Partition;
use super::journal::FrameTicket;
use super::record::Record;
use super::role::{Matched, Role};
use super::tail::Logged;
use crate::planted::{self, Planted};

impl Partition {
    /// Older configurations than this are refused.
    pub(super) fn bound_to(&self) -> ConfigNumber {
        self.config.get().max(self.promised.get())
    }

    /// Takes one entry of a `Replicate` frame: appends its record if it is new. It is durable when
    /// [`Partition::durable_through`] says so.
    pub(super) fn take_entry(
        self: &Rc<Self>,
        entry: &ReplicateEntry<'_>,
        record: Option<Record>,
        room: &mut dyn FrameTicket,
    ) -> ReplicateVerdict {
        if entry.config < self.bound_to() && !planted::is(Planted::IgnoreConfiguration) {
            return ReplicateVerdict::Fenced;
        }
        if entry.config > self.config.get() {
            return ReplicateVerdict::Behind;
        }
        let applied = self.tail.borrow().applied();
        let Some(matched) = self.begin_match(entry.config, applied) else {
            return ReplicateVerdict::Absent;
        };
        let verdict = self.compare(entry, record, applied, room);
        if let Ok(end) = verdict {
            let end = end.max(matched.end);
            self.set_matched(Matched { config: entry.config, end });
            self.told.set(self.told.get().max(entry.committed));
        }
        verdict.err().unwrap_or(ReplicateVerdict::Logged)
    }

    /// What has been compared with this sender's chain; at least the state, which is the same
    /// everywhere.
    fn begin_match(&self, config: ConfigNumber, applied: u64) -> Option<Matched> {
        let mut role = self.role.borrow_mut();
        let (Role::Member(matched) | Role::Filling(matched)) = &mut *role else { return None };
        if matched.config != config {
            *matched = Matched { config, end: applied };
        }
        matched.end = matched.end.max(applied);
        Some(*matched)
    }

    fn set_matched(&self, new: Matched) {
        if let Role::Member(matched) | Role::Filling(matched) = &mut *self.role.borrow_mut() {
            *matched = new;
        }
    }

    /// How far the entry shows that the chains are the same.
    fn compare(
        self: &Rc<Self>,
        entry: &ReplicateEntry<'_>,
        record: Option<Record>,
        applied: u64,
        room: &mut dyn FrameTicket,
    ) -> Result<u64, ReplicateVerdict> {
        let before = entry.sequence.checked_sub(1).ok_or(ReplicateVerdict::Gap)?;
        if before < applied {
            // Committed here, so it is the same there.
            return Ok(applied);
        }
        if self.tail.borrow().config_at(before) != Some(entry.previous) {
            return Err(ReplicateVerdict::Gap);
        }
        let Some(record) = record else { return Ok(before) };
        let held = self.tail.borrow().config_at(entry.sequence);
        match held {
            Some(held) if held == record.config => return Ok(entry.sequence),
            Some(held) if held > record.config => return Err(ReplicateVerdict::Fenced),
            Some(_) => self.cut(entry.sequence),
            None => {}
        }
        self.log_record(entry.record, record, room).map_err(|failure| {
            tracing::warn!(partition = self.id.0, %failure, "a replicated record is not logged");
            ReplicateVerdict::Busy
        })?;
        Ok(entry.sequence)
    }

    /// Takes away the tail from `sequence` on: another chain won.
    pub(super) fn cut(&self, sequence: u64) {
        let cut = self.tail.borrow_mut().cut(sequence);
        for answer in cut.into_iter().filter_map(|logged| logged.answer) {
            let _ = answer.send(Err(super::engine::not_primary(self.id)));
        }
    }

    /// Appends somebody else's record behind the tail.
    pub(super) fn log_record(
        self: &Rc<Self>,
        bytes: &[u8],
        record: Record,
        room: &mut dyn FrameTicket,
    ) -> Result<(), Failure> {
        let durable = room.append(self.id, bytes)?;
        let Record { config, sequence, mutation, .. } = record;
        let logged = Logged { record: Rc::new(bytes.to_vec()), config, mutation, answer: None };
        self.appended(sequence, logged, durable);
        Ok(())
    }

    /// What was compared under `config`, once it is durable; `None` if a newer configuration came
    /// in between.
    pub(super) fn acknowledgement(&self, config: ConfigNumber) -> Option<u64> {
        if config < self.bound_to() && !planted::is(Planted::IgnoreConfiguration) {
            return None;
        }
        match &*self.role.borrow() {
            Role::Member(matched) | Role::Filling(matched) if matched.config == config => {
                let early = planted::is(Planted::BackupAcksEarly);
                let durable = self.tail.borrow().durable();
                Some(if early { matched.end } else { matched.end.min(durable) })
            }
            _ => None,
        }
    }

    /// Promises to refuse configurations older than `config`, and says what is here, all of it
    /// durable.
    ///
    /// # Errors
    /// [`Code::Fenced`] if a newer one was promised; the log's failure.
    pub(super) async fn promise(
        &self,
        config: ConfigNumber,
    ) -> Result<ReplicaStatusReply, Failure> {
        if config < self.bound_to() {
            let text = format!("partition {} is at configuration {}", self.id, self.bound_to());
            return Err(Failure::new(Code::Fenced, text));
        }
        self.promised.set(config);
        self.all_durable().await?;
        let point = self.commit_point();
        let tail = self.tail.borrow();
        let unusable = match &*self.role.borrow() {
            Role::Filling(_) => "it is being filled",
            Role::Absent => "there is no replica",
            Role::Member(_) | Role::Primary(_) => "",
        };
        Ok(ReplicaStatusReply {
            applied: tail.applied(),
            applied_config: tail.applied_config().0,
            logged: tail.end(),
            logged_config: tail.end_config().0,
            committed: point,
            unusable: unusable.to_owned(),
        })
    }

    /// Records of the tail from `from` on, of so many bytes at the most (but one at the least).
    ///
    /// # Errors
    /// [`Code::Fenced`] if another configuration was promised.
    pub(super) fn fetch_tail(
        &self,
        config: ConfigNumber,
        from: u64,
        bytes_max: usize,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        if config != self.promised.get() {
            return Err(Failure::new(Code::Fenced, "another configuration was promised"));
        }
        let tail = self.tail.borrow();
        let mut records = Vec::new();
        let mut left = bytes_max;
        for sequence in from..=tail.end() {
            let Some(record) = tail.record(sequence) else {
                return Err(Failure::new(Code::Invalid, "that record is applied and forgotten"));
            };
            if record.len() > left && !records.is_empty() {
                break;
            }
            left = left.saturating_sub(record.len());
            records.push(record.to_vec());
        }
        Ok(records)
    }
}
