//! The logged tail of a replica: what is appended and not applied yet, and what is kept of the
//! applied for nodes that are being filled.

use std::collections::VecDeque;
use std::rc::Rc;

use bb_proto::{ConfigNumber, Failure};
use futures_channel::oneshot;

use super::mutation::{Mutation, Outcome};

/// The bytes of a record: in the vector that they were encoded into, so that nothing is copied.
pub type RecordBytes = Rc<Vec<u8>>;

/// A record of the tail.
pub struct Logged {
    /// As appended: a snapshot carries it along, other replicas get it.
    pub record: RecordBytes,
    /// Configuration under which it was numbered: with its sequence, its name.
    pub config: ConfigNumber,
    /// What it says.
    pub mutation: Mutation,
    /// Who waits for its outcome.
    pub answer: Option<oneshot::Sender<Result<Outcome, Failure>>>,
}

/// Applied records that somebody still has to get.
struct Kept {
    record: RecordBytes,
    config: ConfigNumber,
}

/// The records behind the state, in order.
pub struct Tail {
    applied: u64,
    applied_config: ConfigNumber,
    durable: u64,
    records: VecDeque<Logged>,
    /// The last ones that were applied, ending at `applied`; empty unless `keeping`.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
    keeping: bool,
    /// Configuration of the record before the first kept one.
    before_kept: ConfigNumber,
}

impl Tail {
    /// Nothing behind a state that has applied so much.
    pub const fn new(applied: u64, applied_config: ConfigNumber) -> Self {
        Self {
            applied,
            applied_config,
            durable: applied,
            records: VecDeque::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            keeping: false,
            before_kept: applied_config,
        }
    }

    /// Sequence of the last record applied.
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// Its configuration.
    pub const fn applied_config(&self) -> ConfigNumber {
        self.applied_config
    }

    /// Sequence of the last record.
    pub fn end(&self) -> u64 {
        self.applied + self.records.len() as u64
    }

    /// Configuration of the last record.
    pub fn end_config(&self) -> ConfigNumber {
        self.records.back().map_or(self.applied_config, |logged| logged.config)
    }

    /// Sequence up to which all is durable here.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// The record of that number and configuration, and everything before it, is durable. It may
    /// have been cut meanwhile.
    pub fn note_durable(&mut self, sequence: u64, config: ConfigNumber) {
        if sequence > self.durable && self.config_at(sequence) == Some(config) {
            self.durable = sequence;
        }
    }

    /// Configuration of a record, as long as it is known.
    pub fn config_at(&self, sequence: u64) -> Option<ConfigNumber> {
        if sequence > self.applied {
            return self.logged(sequence).map(|logged| logged.config);
        }
        let back = usize::try_from(self.applied - sequence).ok()?;
        if back == 0 {
            return Some(self.applied_config);
        }
        match self.kept.len().checked_sub(back + 1) {
            Some(at) => self.kept.get(at).map(|kept| kept.config),
            None => (self.kept.len() == back).then_some(self.before_kept),
        }
    }

    fn logged(&self, sequence: u64) -> Option<&Logged> {
        let at = usize::try_from(sequence.checked_sub(self.applied + 1)?).ok()?;
        self.records.get(at)
    }

    /// The bytes of a record, as long as they are known.
    pub fn record(&self, sequence: u64) -> Option<RecordBytes> {
        if sequence > self.applied {
            return self.logged(sequence).map(|logged| logged.record.clone());
        }
        let back = usize::try_from(self.applied - sequence).ok()?;
        let at = self.kept.len().checked_sub(back + 1)?;
        self.kept.get(at).map(|kept| kept.record.clone())
    }

    /// All records, oldest first.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &Logged> {
        self.records.iter()
    }

    /// Adds a record behind the end.
    pub fn push(&mut self, logged: Logged) {
        self.records.push_back(logged);
    }

    /// Takes away the record of that number and everything behind it.
    pub fn cut(&mut self, from: u64) -> Vec<Logged> {
        let at = usize::try_from(from.saturating_sub(self.applied + 1)).unwrap_or(usize::MAX);
        self.durable = self.durable.min(from.saturating_sub(1)).max(self.applied);
        if at >= self.records.len() {
            return Vec::new();
        }
        self.records.split_off(at).into()
    }

    /// The oldest record, to be applied now.
    pub fn pop(&mut self) -> Option<Logged> {
        let front = self.records.pop_front()?;
        if self.keeping {
            self.kept_bytes += front.record.len();
            self.kept.push_back(Kept { record: front.record.clone(), config: front.config });
        } else {
            self.before_kept = front.config;
        }
        self.applied += 1;
        self.applied_config = front.config;
        self.durable = self.durable.max(self.applied);
        Some(front)
    }

    /// From now on, applied records are kept.
    pub fn keep(&mut self) {
        if !self.keeping {
            self.keeping = true;
            self.before_kept = self.applied_config;
        }
    }

    /// Records up to this number need not be kept any more.
    pub fn forget(&mut self, through: u64) {
        while self.applied + 1 - self.kept.len() as u64 <= through.min(self.applied) {
            let Some(front) = self.kept.pop_front() else { break };
            self.kept_bytes -= front.record.len();
            self.before_kept = front.config;
        }
    }

    /// Nothing is kept any more.
    pub fn keep_nothing(&mut self) {
        self.keeping = false;
        self.kept.clear();
        self.kept_bytes = 0;
        self.before_kept = self.applied_config;
    }

    /// Bytes of applied records that are kept.
    pub const fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Takes away everybody who waits, for them to be told.
    pub fn take_answers(&mut self) -> Vec<oneshot::Sender<Result<Outcome, Failure>>> {
        self.records.iter_mut().filter_map(|logged| logged.answer.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::pg_mutation::PgMutation;
    use bb_proto::Tick;

    fn logged(config: u64) -> Logged {
        Logged {
            record: Rc::new(vec![u8::try_from(config).expect("small"); 4]),
            config: ConfigNumber(config),
            mutation: Mutation::Pg(PgMutation::Horizon { slot: Tick(0) }),
            answer: None,
        }
    }

    #[test]
    fn configurations_are_known_behind_the_state_in_the_tail_and_of_what_is_kept() {
        let mut tail = Tail::new(10, ConfigNumber(1));
        [2, 3, 3].into_iter().for_each(|config| tail.push(logged(config)));
        assert_eq!((tail.end(), tail.end_config()), (13, ConfigNumber(3)));
        let known = |tail: &Tail| -> Vec<Option<u64>> {
            (9..15).map(|at| tail.config_at(at).map(|config| config.0)).collect()
        };
        assert_eq!(known(&tail), [None, Some(1), Some(2), Some(3), Some(3), None]);
        tail.keep();
        tail.pop();
        tail.pop();
        assert_eq!(known(&tail), [None, Some(1), Some(2), Some(3), Some(3), None]);
        assert_eq!(tail.record(11).expect("kept")[0], 2);
        tail.forget(11);
        assert_eq!(known(&tail), [None, None, Some(2), Some(3), Some(3), None]);
        assert!(tail.record(11).is_none() && tail.record(12).is_some());
        tail.keep_nothing();
        assert_eq!(known(&tail), [None, None, None, Some(3), Some(3), None]);
    }

    #[test]
    fn what_was_cut_is_not_durable_and_a_late_notice_of_it_says_nothing() {
        let mut tail = Tail::new(0, ConfigNumber(0));
        [1, 1, 1].into_iter().for_each(|config| tail.push(logged(config)));
        tail.note_durable(2, ConfigNumber(1));
        assert_eq!(tail.cut(2).len(), 2);
        assert_eq!((tail.durable(), tail.end()), (1, 1));
        tail.push(logged(2));
        tail.note_durable(2, ConfigNumber(1));
        assert_eq!(tail.durable(), 1);
        tail.note_durable(2, ConfigNumber(2));
        assert_eq!(tail.durable(), 2);
    }
}
