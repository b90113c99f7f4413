//! The sessions of a partition: who is there, which operations are in doubt or answered.

use std::collections::BTreeMap;

use bb_proto::meta::{Binding, SessionOpen, encode};
use bb_proto::{ClientSequence, DecodeError, Fid, Reader, SessionId, Writer};

use super::session_mutation::{
    Answer, Intent, SessionChange, SessionMutation, SessionOutcome, take_message,
};
use crate::partition::table::{
    ApplyContext, Encoded, Table, put_bytes, put_len, put_u8, put_u64, take_bool, take_len,
    take_u8, take_u64,
};

/// A session. About 200 bytes, and what its operations take that are not acknowledged yet.
#[derive(Clone, PartialEq, Debug)]
pub struct Session {
    /// Who it is.
    pub open: SessionOpen,
    /// Answers up to this one have arrived: forgotten here.
    pub acknowledged: ClientSequence,
    /// True once it has ended: it is kept for its operations in doubt only.
    pub closed: bool,
    operations: BTreeMap<ClientSequence, Operation>,
}

/// An operation that is not acknowledged.
#[derive(Clone, PartialEq, Debug)]
pub enum Operation {
    /// It is being done, or in doubt.
    Begun(Box<Intent>),
    /// It has been answered.
    Ended(Answer),
}

impl Session {
    /// An operation of its.
    pub fn operation(&self, sequence: ClientSequence) -> Option<&Operation> {
        self.operations.get(&sequence)
    }

    /// All operations that are not acknowledged.
    pub fn operations(&self) -> impl Iterator<Item = (ClientSequence, &Operation)> {
        self.operations.iter().map(|(sequence, operation)| (*sequence, operation))
    }

    /// True while one of them has begun, and its result is not known.
    pub fn is_in_doubt(&self) -> bool {
        self.operations.values().any(|operation| matches!(operation, Operation::Begun(_)))
    }

    fn acknowledge(&mut self, upto: ClientSequence) {
        self.acknowledged = self.acknowledged.max(upto);
        let acknowledged = self.acknowledged;
        // One in doubt is never forgotten, whatever a client says.
        self.operations.retain(|sequence, operation| {
            *sequence > acknowledged || matches!(operation, Operation::Begun(_))
        });
    }

    fn memory_bytes(&self) -> u64 {
        let names = self.open.key.len() + self.open.host.len();
        let operations: usize = self.operations.values().map(Operation::memory_bytes).sum();
        ((size_of::<Self>() + size_of::<u64>()) * 3 / 2 + names + operations) as u64
    }
}

impl Operation {
    fn memory_bytes(&self) -> usize {
        use prost::Message;
        // The encoded length stands for what the strings in it take.
        let inner = match self {
            Self::Begun(intent) => intent.request.encoded_len() + 2 * size_of::<Binding>(),
            Self::Ended(Answer::Done(reply)) => reply.encoded_len(),
            Self::Ended(Answer::Failed(failure)) => failure.encoded_len(),
        };
        (size_of::<Self>() + size_of::<u64>()) * 3 / 2 + inner
    }
}

/// The sessions of a partition.
#[derive(Default, Debug, PartialEq)]
pub struct SessionTable {
    sessions: BTreeMap<SessionId, Session>,
    /// Files whose last name may be gone, until their partitions know.
    gone: BTreeMap<Fid, Binding>,
    memory_bytes: u64,
}

/// What a file that is gone takes until its partition knows.
const GONE_BYTES: u64 = 200;

impl SessionTable {
    /// A session that is there and has not ended.
    pub fn get(&self, session: SessionId) -> Option<&Session> {
        self.sessions.get(&session).filter(|session| !session.closed)
    }

    /// All sessions, also those that have ended and have operations in doubt.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    /// Files whose last name may be gone.
    pub fn gone(&self) -> impl Iterator<Item = (Fid, &Binding)> {
        self.gone.iter().map(|(fid, binding)| (*fid, binding))
    }

    fn open(&mut self, id: SessionId, open: &SessionOpen) -> SessionOutcome {
        match self.sessions.get(&id) {
            Some(session) if session.open.key != open.key || session.open.owner != open.owner => {
                SessionOutcome::OtherKey
            }
            // A number is never given twice, also while only doubts are left of it.
            Some(session) if session.closed => SessionOutcome::NoSession,
            Some(_) => SessionOutcome::Done,
            None => {
                let session = Session {
                    open: open.clone(),
                    acknowledged: ClientSequence(0),
                    closed: false,
                    operations: BTreeMap::new(),
                };
                self.memory_bytes += session.memory_bytes();
                self.sessions.insert(id, session);
                SessionOutcome::Done
            }
        }
    }

    fn change(&mut self, id: SessionId, change: &SessionChange) -> SessionOutcome {
        let Some(session) = self.sessions.get_mut(&id) else { return SessionOutcome::NoSession };
        self.memory_bytes -= session.memory_bytes();
        let outcome = apply_to(session, change);
        let over = session.closed
            && !session.operations.values().any(|op| matches!(op, Operation::Begun(_)));
        if over {
            self.sessions.remove(&id);
        } else {
            self.memory_bytes += session.memory_bytes();
        }
        outcome
    }
}

fn apply_to(session: &mut Session, change: &SessionChange) -> SessionOutcome {
    match change {
        SessionChange::Begin { sequence, acknowledged, intent } => {
            if let Some(Operation::Begun(begun)) = session.operations.get_mut(sequence)
                && begun.may_become(intent)
            {
                begun.victim.clone_from(&intent.victim);
                return SessionOutcome::Done;
            }
            if session.closed {
                return SessionOutcome::NoSession;
            }
            session.acknowledge(*acknowledged);
            if *sequence <= session.acknowledged || session.operations.contains_key(sequence) {
                return SessionOutcome::Known;
            }
            session.operations.insert(*sequence, Operation::Begun(intent.clone()));
        }
        SessionChange::End { sequence, answer, .. } => {
            if let Some(operation) = session.operations.get_mut(sequence) {
                *operation = Operation::Ended(answer.clone());
            }
        }
        SessionChange::Resume { sequence, process } => {
            if let Some(Operation::Begun(intent)) = session.operations.get_mut(sequence) {
                intent.process = *process;
            }
        }
        SessionChange::Close => session.closed = true,
        SessionChange::Open(_) | SessionChange::GoneTold { .. } => {}
    }
    SessionOutcome::Done
}

impl Table for SessionTable {
    type Mutation = SessionMutation;
    type Outcome = SessionOutcome;

    fn apply(&mut self, _context: &ApplyContext, mutation: &SessionMutation) -> SessionOutcome {
        match &mutation.change {
            SessionChange::Open(open) => return self.open(mutation.session, open),
            SessionChange::GoneTold { fid } => {
                if self.gone.remove(fid).is_some() {
                    self.memory_bytes -= GONE_BYTES;
                }
                return SessionOutcome::Done;
            }
            SessionChange::End { gone, .. } => {
                for (fid, binding) in gone {
                    if self.gone.insert(*fid, binding.clone()).is_none() {
                        self.memory_bytes += GONE_BYTES;
                    }
                }
            }
            _ => {}
        }
        self.change(mutation.session, &mutation.change)
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl Encoded for SessionTable {
    fn encode(&self, out: &mut Writer) {
        put_len(out, self.sessions.len());
        for (id, session) in &self.sessions {
            put_u64(out, id.0);
            session.encode(out);
        }
        put_len(out, self.gone.len());
        for (fid, binding) in &self.gone {
            fid.encode(out);
            put_bytes(out, &encode(binding));
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut table = Self::default();
        for _ in 0..take_len(reader)? {
            let id = SessionId(take_u64(reader)?);
            let session = Session::decode(reader)?;
            table.memory_bytes += session.memory_bytes();
            if table.sessions.insert(id, session).is_some() {
                return Err(DecodeError::Field("session twice"));
            }
        }
        for _ in 0..take_len(reader)? {
            let fid = Fid::decode(reader)?;
            table.memory_bytes += GONE_BYTES;
            if table.gone.insert(fid, take_message(reader)?).is_some() {
                return Err(DecodeError::Field("file twice"));
            }
        }
        Ok(table)
    }
}

impl Encoded for Session {
    fn encode(&self, out: &mut Writer) {
        put_bytes(out, &encode(&self.open));
        put_u64(out, self.acknowledged.0);
        put_u8(out, u8::from(self.closed));
        put_len(out, self.operations.len());
        for (sequence, operation) in &self.operations {
            put_u64(out, sequence.0);
            match operation {
                Operation::Begun(intent) => {
                    put_u8(out, 1);
                    intent.encode(out);
                }
                Operation::Ended(answer) => {
                    put_u8(out, 2);
                    answer.encode(out);
                }
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut session = Self {
            open: take_message(reader)?,
            acknowledged: ClientSequence(take_u64(reader)?),
            closed: take_bool(reader)?,
            operations: BTreeMap::new(),
        };
        for _ in 0..take_len(reader)? {
            let sequence = ClientSequence(take_u64(reader)?);
            let operation = match take_u8(reader)? {
                1 => Operation::Begun(Box::new(Intent::decode(reader)?)),
                2 => Operation::Ended(Answer::decode(reader)?),
                _ => return Err(DecodeError::Field("operation")),
            };
            session.operations.insert(sequence, operation);
        }
        Ok(session)
    }
}
