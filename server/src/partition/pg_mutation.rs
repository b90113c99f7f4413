//! Changes of parity groups, as they are logged.

use std::ops::Deref;
use std::rc::Rc;

use bb_proto::{
    Commit, DecodeError, PartitionId, PgBody, PgId, Reader, Tick, TruncateEpoch, Writer,
};

use super::table::{
    Encoded, put_bytes, put_list, put_u8, put_u32, put_u64, take_bytes, take_list, take_u8,
    take_u32, take_u64,
};

/// Bytes of an inline group, held once by the record that brings them and by the table that keeps
/// them. None take no memory.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InlineBytes(Option<Rc<[u8]>>);

impl From<&[u8]> for InlineBytes {
    fn from(bytes: &[u8]) -> Self {
        Self((!bytes.is_empty()).then(|| Rc::from(bytes)))
    }
}

impl Deref for InlineBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A commit, with what its conditions need besides the partition's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitRecord {
    /// As the client sent it.
    pub commit: Commit,
    /// Members (bit = index) that the map did not have as active when this was logged: the group
    /// is born in need of a rebuild (rule 5).
    pub absent_members: u32,
    /// Bytes of an inline group, at home; else empty.
    pub inline: InlineBytes,
}

/// Members of one dead group that have freed their blocks, or never will have to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FreedMembers {
    /// The group.
    pub pg: PgId,
    /// Bit = index.
    pub members: u32,
}

/// A change of parity groups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PgMutation {
    /// Puts a group on record (at home, or its stub at a participant) and its fragments into the
    /// maps of the regions.
    Commit(Box<CommitRecord>),
    /// Forbids a commit that has not been applied (rule 3).
    Cancel {
        /// The group.
        pg: PgId,
    },
    /// No group of a slot up to this one is accepted any more; ids up to it are forgotten.
    Horizon {
        /// The slot.
        slot: Tick,
    },
    /// A participant holds no fragment of these groups (rule 2). At home.
    Release {
        /// The participant.
        participant: PartitionId,
        /// The groups.
        pgs: Vec<PgId>,
    },
    /// Home has logged that these were released here. At the participant.
    ReleaseAcked {
        /// The groups.
        pgs: Vec<PgId>,
    },
    /// Members have freed blocks of dead groups (rule 4). At home.
    Freed {
        /// Which.
        groups: Vec<FreedMembers>,
    },
}

/// Why a commit was not applied. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitRefusal {
    /// Its slot is at or below the horizon.
    BehindHorizon,
    /// It was cancelled.
    Cancelled,
    /// A region is at this newer truncate epoch.
    OldEpoch(TruncateEpoch),
    /// A region is not open here, or at this older epoch: it has to learn the file's terms first.
    RegionBehind(TruncateEpoch),
    /// The file was dropped.
    FileDropped,
    /// It breaks a rule of the protocol.
    Invalid(&'static str),
}

/// What a change of parity groups answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PgOutcome {
    /// The commit is applied.
    Committed {
        /// True if it had been applied before.
        duplicate: bool,
    },
    /// The commit is not applied.
    Refused(CommitRefusal),
    /// Answer to a cancel.
    Cancelled {
        /// True if the commit had been applied before: the cancel has no effect.
        committed: bool,
    },
    /// Nothing to say.
    Done,
}

impl Encoded for FreedMembers {
    fn encode(&self, out: &mut Writer) {
        self.pg.encode(out);
        put_u32(out, self.members);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { pg: PgId::decode(reader)?, members: take_u32(reader)? })
    }
}

impl PgMutation {
    /// About how many bytes it takes: room for those that are large.
    pub(super) fn encoded_bytes(&self) -> usize {
        match self {
            Self::Commit(record) => {
                let commit = &record.commit;
                let members = match &commit.descriptor.body {
                    PgBody::Blocks { members, .. } => members.len(),
                    PgBody::Inline { .. } => 0,
                };
                let lists = members * 8 + commit.participants.len() * 4;
                160 + lists + commit.fragments.len() * 16 + record.inline.len()
            }
            _ => 64,
        }
    }
}

impl Encoded for PgMutation {
    fn encode(&self, out: &mut Writer) {
        match self {
            Self::Commit(record) => {
                put_u8(out, 1);
                put_u32(out, record.absent_members);
                // The layout of the wire: it is fixed, checked on decoding, and versioned with
                // the record around it.
                put_bytes(out, &record.commit.encode());
                put_bytes(out, &record.inline);
            }
            Self::Cancel { pg } => {
                put_u8(out, 2);
                pg.encode(out);
            }
            Self::Horizon { slot } => {
                put_u8(out, 3);
                put_u64(out, slot.0);
            }
            Self::Release { participant, pgs } => {
                put_u8(out, 4);
                put_u32(out, participant.0);
                put_list(out, pgs);
            }
            Self::ReleaseAcked { pgs } => {
                put_u8(out, 5);
                put_list(out, pgs);
            }
            Self::Freed { groups } => {
                put_u8(out, 6);
                put_list(out, groups);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match take_u8(reader)? {
            1 => Self::Commit(Box::new(CommitRecord {
                absent_members: take_u32(reader)?,
                commit: Commit::decode(take_bytes(reader)?)?,
                inline: take_bytes(reader)?.into(),
            })),
            2 => Self::Cancel { pg: PgId::decode(reader)? },
            3 => Self::Horizon { slot: Tick(take_u64(reader)?) },
            4 => Self::Release {
                participant: PartitionId(take_u32(reader)?),
                pgs: take_list(reader)?,
            },
            5 => Self::ReleaseAcked { pgs: take_list(reader)? },
            6 => Self::Freed { groups: take_list(reader)? },
            _ => return Err(DecodeError::Field("pg mutation")),
        })
    }
}
