//! The parts that messages and records share: entries, voters, snapshots.

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Snapshot};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::envelope::{DecodeError, Reader, Writer};

/// Terms and indexes beyond this are never reached by counting: such a number is an error, and
/// adding to one within the limit can't overflow.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// More voters than this are never wanted (the design stops at 7; a joint configuration has two
/// sets of them).
pub const VOTERS_MAX: usize = 16;

/// A term or an index.
pub(crate) fn counted(value: U64, what: &'static str) -> Result<u64, DecodeError> {
    let value = value.get();
    if value > COUNT_MAX { Err(DecodeError::Impossible { what, value }) } else { Ok(value) }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EntryHead {
    index: U64,
    term: U64,
    kind: U16,
    reserved: U16,
    data_len: U32,
    context_len: U32,
}

/// What an entry costs besides its data.
pub(crate) const ENTRY_HEAD_BYTES: usize = 28;
const _: () = assert!(size_of::<EntryHead>() == ENTRY_HEAD_BYTES);

fn length(bytes: &[u8]) -> U32 {
    u32::try_from(bytes.len()).expect("proposals are limited to far less").into()
}

pub(crate) fn put_entries(out: &mut Writer, entries: &[Entry]) {
    out.count(entries.len());
    for entry in entries {
        let kind = match entry.get_entry_type() {
            EntryType::EntryNormal => 0,
            EntryType::EntryConfChange => 1,
            EntryType::EntryConfChangeV2 => 2,
        };
        out.put(&EntryHead {
            index: entry.index.into(),
            term: entry.term.into(),
            kind: U16::new(kind),
            reserved: U16::ZERO,
            data_len: length(&entry.data),
            context_len: length(&entry.context),
        });
        out.raw(&entry.data);
        out.raw(&entry.context);
    }
}

/// Entries whose indexes follow each other and whose terms never fall, as in every Raft log.
pub(crate) fn take_entries(from: &mut Reader<'_>) -> Result<Vec<Entry>, DecodeError> {
    let count = from.count(ENTRY_HEAD_BYTES, "entries")?;
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    for _ in 0..count {
        let head: &EntryHead = from.take("entry")?;
        let (index, term) =
            (counted(head.index, "entry index")?, counted(head.term, "entry term")?);
        let mut entry = Entry { index, term, ..Entry::default() };
        entry.set_entry_type(match head.kind.get() {
            0 => EntryType::EntryNormal,
            // 1, a change of one voter in the old form, is never written here.
            2 => EntryType::EntryConfChangeV2,
            kind => {
                return Err(DecodeError::Impossible { what: "entry kind", value: kind.into() });
            }
        });
        let bytes = |from: &mut Reader<'_>, len: U32| {
            let len = usize::try_from(len.get()).expect("a u32 fits");
            Ok(from.raw(len, "entry data")?.to_vec())
        };
        entry.data = bytes(from, head.data_len)?.into();
        entry.context = bytes(from, head.context_len)?.into();
        if entry.get_entry_type() == EntryType::EntryConfChangeV2 && !entry.data.is_empty() {
            // Applied later, where an error could only stop the voter.
            VoterChange::decode(&entry.context)?;
        }
        let follows = entries.last().is_none_or(|e| e.index + 1 == index && e.term <= term);
        if index == 0 || term == 0 || !follows {
            return Err(DecodeError::Impossible { what: "order of entries", value: index });
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HardStateBytes {
    term: U64,
    vote: U64,
    commit: U64,
}

pub(crate) fn put_hard_state(out: &mut Writer, hard: &HardState) {
    out.put(&HardStateBytes {
        term: hard.term.into(),
        vote: hard.vote.into(),
        commit: hard.commit.into(),
    });
}

pub(crate) fn take_hard_state(from: &mut Reader<'_>) -> Result<HardState, DecodeError> {
    let bytes: &HardStateBytes = from.take("hard state")?;
    let (term, commit) = (counted(bytes.term, "term")?, counted(bytes.commit, "commit")?);
    Ok(HardState { term, vote: bytes.vote.get(), commit, ..HardState::default() })
}

fn put_set(out: &mut Writer, voters: &[u64]) {
    out.count(voters.len());
    for &voter in voters {
        out.put(&U64::new(voter));
    }
}

/// A set of voters: none twice, no zero, not more than are ever wanted.
fn take_set(from: &mut Reader<'_>) -> Result<Vec<u64>, DecodeError> {
    let count = from.count(size_of::<U64>(), "voters")?;
    if count > VOTERS_MAX {
        return Err(DecodeError::Impossible { what: "number of voters", value: count as u64 });
    }
    let mut voters = Vec::with_capacity(count);
    for _ in 0..count {
        let voter = from.take::<U64>("voter")?.get();
        if voter == 0 || voters.contains(&voter) {
            return Err(DecodeError::Impossible { what: "voter", value: voter });
        }
        voters.push(voter);
    }
    Ok(voters)
}

pub(crate) fn put_conf_state(out: &mut Writer, conf: &ConfState) {
    // Nobody is demoted here, and a joint configuration is left by us, not by itself.
    debug_assert!(conf.learners_next.is_empty() && !conf.auto_leave);
    put_set(out, &conf.voters);
    put_set(out, &conf.voters_outgoing);
    put_set(out, &conf.learners);
}

pub(crate) fn take_conf_state(from: &mut Reader<'_>) -> Result<ConfState, DecodeError> {
    let (voters, voters_outgoing) = (take_set(from)?, take_set(from)?);
    let learners = take_set(from)?;
    if let Some(both) = learners.iter().find(|l| voters.contains(l) || voters_outgoing.contains(l))
    {
        return Err(DecodeError::Impossible { what: "learner that votes", value: *both });
    }
    let conf = ConfState { voters, voters_outgoing, learners, ..ConfState::default() };
    if conf.voters.is_empty() {
        return Err(DecodeError::Impossible { what: "number of voters", value: 0 });
    }
    Ok(conf)
}

pub(crate) fn put_snapshot(out: &mut Writer, snapshot: &Snapshot) {
    let meta = snapshot.get_metadata();
    out.put(&[U64::new(meta.index), U64::new(meta.term)]);
    put_conf_state(out, meta.get_conf_state());
    out.blob(&snapshot.data);
}

pub(crate) fn take_snapshot(from: &mut Reader<'_>) -> Result<Snapshot, DecodeError> {
    let &[index, term] = from.take::<[U64; 2]>("snapshot")?;
    let mut snapshot = Snapshot::default();
    let meta = snapshot.mut_metadata();
    meta.index = counted(index, "snapshot index")?;
    meta.term = counted(term, "snapshot term")?;
    if meta.index == 0 || meta.term == 0 {
        return Err(DecodeError::Impossible { what: "snapshot index", value: meta.index });
    }
    *meta.mut_conf_state() = take_conf_state(from)?;
    snapshot.data = from.blob("snapshot data")?.to_vec().into();
    Ok(snapshot)
}

/// What an entry that begins a change of voters carries in its context, in our own layout: the
/// library's own form of it is protobuf, which is read by the library only, and only at the leader
/// that wrote it. An entry that ends a change (leaves the joint configuration) is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct VoterChange {
    pub(crate) add: Vec<u64>,
    /// Who shall have the log, and no vote yet.
    pub(crate) learn: Vec<u64>,
    pub(crate) remove: Vec<u64>,
}

const VOTER_CHANGE_VERSION: u32 = 1;

impl VoterChange {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.put(&U32::new(VOTER_CHANGE_VERSION));
        put_set(&mut out, &self.add);
        put_set(&mut out, &self.learn);
        put_set(&mut out, &self.remove);
        out.into_bytes()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let version = from.take::<U32>("change of voters")?.get();
        if version != VOTER_CHANGE_VERSION {
            let value = u64::from(version);
            return Err(DecodeError::Impossible { what: "version of a change of voters", value });
        }
        let (add, learn) = (take_set(&mut from)?, take_set(&mut from)?);
        let change = Self { add, learn, remove: take_set(&mut from)? };
        from.end("change of voters")?;
        if change.add.is_empty() && change.learn.is_empty() && change.remove.is_empty() {
            return Err(DecodeError::Impossible { what: "change of no voter", value: 0 });
        }
        Ok(change)
    }
}
