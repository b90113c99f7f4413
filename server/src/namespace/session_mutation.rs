//! Changes of sessions, as they are logged.

use bb_proto::meta::{Binding, Namespace, NamespaceReply, SessionOpen, decode, encode};
use bb_proto::{ClientSequence, DecodeError, Failure, Fid, Reader, SessionId, Writer};

use crate::partition::region_mutation::ProcessId;
use crate::partition::table::{
    Encoded, put_bytes, put_len, put_u8, put_u64, take_bool, take_bytes, take_len, take_u8,
    take_u64,
};

/// A change of a session.
#[derive(Clone, PartialEq, Debug)]
pub struct SessionMutation {
    /// The session.
    pub session: SessionId,
    /// What changes.
    pub change: SessionChange,
}

// Nothing in a request or reply is a float: equality is total.
impl Eq for SessionMutation {}

/// What changes.
#[derive(Clone, PartialEq, Debug)]
pub enum SessionChange {
    /// It begins. The same key again is the same session.
    Open(SessionOpen),
    /// A namespace operation is about to be done on the backing file system.
    Begin {
        /// Its number.
        sequence: ClientSequence,
        /// Answers up to this one have arrived.
        acknowledged: ClientSequence,
        /// What is needed to decide it after a crash.
        intent: Box<Intent>,
    },
    /// It was done, or failed.
    End {
        /// Its number.
        sequence: ClientSequence,
        /// The answer.
        answer: Answer,
        /// Files whose last name may be gone: to be told to their partitions.
        gone: Vec<(Fid, Binding)>,
    },
    /// The intent passes to another process: its own is proven gone.
    Resume {
        /// The operation's number.
        sequence: ClientSequence,
        /// The new process.
        process: ProcessId,
    },
    /// The partition of a file knows that its last name may be gone.
    GoneTold {
        /// The file.
        fid: Fid,
    },
    /// It ends. Operations in doubt stay until they are decided.
    Close,
}

/// An operation before it is done.
#[derive(Clone, PartialEq, Debug)]
pub struct Intent {
    /// The request as it came, with the caller's credentials.
    pub request: Namespace,
    /// The process that does it (rule 10).
    pub process: ProcessId,
    /// Calendar time, in ns since 1970.
    pub at_ns: i64,
    /// Identity of the file or directory whose name is removed or moved away.
    pub source: Option<Binding>,
    /// Identity of a file that a rename replaces.
    pub victim: Option<Binding>,
}

impl Intent {
    /// True if `later` is this operation after a file was met under the new name of a rename where
    /// nothing had been seen.
    pub fn may_become(&self, later: &Self) -> bool {
        let met = self.victim.is_none() && later.victim.is_some();
        met && self.source == later.source && self.request == later.request
    }
}

/// What an operation answered.
#[derive(Clone, PartialEq, Debug)]
pub enum Answer {
    /// It was done.
    Done(Box<NamespaceReply>),
    /// It was not.
    Failed(Failure),
}

/// Why a change was refused, or that it was not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionOutcome {
    /// Done.
    Done,
    /// No such session.
    NoSession,
    /// The number belongs to a session with another key.
    OtherKey,
    /// There is an operation of that number already.
    Known,
}

impl Encoded for SessionMutation {
    fn encode(&self, out: &mut Writer) {
        put_u64(out, self.session.0);
        match &self.change {
            SessionChange::Open(open) => {
                put_u8(out, 1);
                put_bytes(out, &encode(open));
            }
            SessionChange::Begin { sequence, acknowledged, intent } => {
                put_u8(out, 2);
                put_u64(out, sequence.0);
                put_u64(out, acknowledged.0);
                intent.encode(out);
            }
            SessionChange::End { sequence, answer, gone } => {
                put_u8(out, 3);
                put_u64(out, sequence.0);
                answer.encode(out);
                put_len(out, gone.len());
                for (fid, binding) in gone {
                    fid.encode(out);
                    put_bytes(out, &encode(binding));
                }
            }
            SessionChange::Resume { sequence, process } => {
                put_u8(out, 4);
                put_u64(out, sequence.0);
                process.encode(out);
            }
            SessionChange::GoneTold { fid } => {
                put_u8(out, 5);
                fid.encode(out);
            }
            SessionChange::Close => put_u8(out, 6),
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let session = SessionId(take_u64(reader)?);
        let change = match take_u8(reader)? {
            1 => SessionChange::Open(take_message(reader)?),
            2 => SessionChange::Begin {
                sequence: ClientSequence(take_u64(reader)?),
                acknowledged: ClientSequence(take_u64(reader)?),
                intent: Box::new(Intent::decode(reader)?),
            },
            3 => {
                let sequence = ClientSequence(take_u64(reader)?);
                let answer = Answer::decode(reader)?;
                let mut gone = Vec::new();
                for _ in 0..take_len(reader)? {
                    gone.push((Fid::decode(reader)?, take_message(reader)?));
                }
                SessionChange::End { sequence, answer, gone }
            }
            4 => SessionChange::Resume {
                sequence: ClientSequence(take_u64(reader)?),
                process: ProcessId::decode(reader)?,
            },
            5 => SessionChange::GoneTold { fid: Fid::decode(reader)? },
            6 => SessionChange::Close,
            _ => return Err(DecodeError::Field("session change")),
        };
        Ok(Self { session, change })
    }
}

/// A protocol buffer inside a record: the record's checksum covers it.
pub(super) fn take_message<M: prost::Message + Default>(
    reader: &mut Reader<'_>,
) -> Result<M, DecodeError> {
    decode(take_bytes(reader)?).map_err(|_| DecodeError::Field("message"))
}

fn put_maybe(out: &mut Writer, binding: Option<&Binding>) {
    put_u8(out, u8::from(binding.is_some()));
    if let Some(binding) = binding {
        put_bytes(out, &encode(binding));
    }
}

fn take_maybe(reader: &mut Reader<'_>) -> Result<Option<Binding>, DecodeError> {
    Ok(if take_bool(reader)? { Some(take_message(reader)?) } else { None })
}

impl Encoded for Intent {
    fn encode(&self, out: &mut Writer) {
        put_bytes(out, &encode(&self.request));
        self.process.encode(out);
        put_u64(out, self.at_ns.cast_unsigned());
        put_maybe(out, self.source.as_ref());
        put_maybe(out, self.victim.as_ref());
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            request: take_message(reader)?,
            process: ProcessId::decode(reader)?,
            at_ns: take_u64(reader)?.cast_signed(),
            source: take_maybe(reader)?,
            victim: take_maybe(reader)?,
        })
    }
}

impl Encoded for Answer {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Done(reply) => {
                put_u8(out, 1);
                put_bytes(out, &encode(&**reply));
            }
            Self::Failed(failure) => {
                put_u8(out, 0);
                put_bytes(out, &encode(failure));
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(if take_bool(reader)? {
            Self::Done(Box::new(take_message(reader)?))
        } else {
            Self::Failed(take_message(reader)?)
        })
    }
}
