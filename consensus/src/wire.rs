//! Messages between voters: Raft's own, and the pieces of those that are too large for one frame.

use raft::eraftpb::{Message, MessageType};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::VoterNumber;
use crate::envelope::{DecodeError, HEADER_BYTES, Place, Writer, open, seal};
use crate::parts::{counted, put_entries, put_snapshot, take_entries, take_snapshot};

const KIND_RAFT: u16 = 1;
const KIND_PIECE: u16 = 2;
const KIND_PIECE_TAKEN: u16 = 3;

/// What came in one message.
#[derive(Debug)]
pub(crate) enum Incoming {
    Raft(Box<Message>),
    Piece(Piece),
    PieceTaken(PieceTaken),
}

/// A part of an encoded message.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) transfer: u64,
    pub(crate) total_bytes: u64,
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

/// The receiver has all bytes of a transfer up to here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PieceTaken {
    pub(crate) transfer: u64,
    pub(crate) offset: u64,
}

/// What a piece costs besides its data.
pub(crate) const PIECE_OVERHEAD_BYTES: usize = HEADER_BYTES + 24;
/// What an append message costs besides its entries.
pub(crate) const APPEND_OVERHEAD_BYTES: usize = HEADER_BYTES + size_of::<Body>() + 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Body {
    to: U64,
    term: U64,
    log_term: U64,
    index: U64,
    commit: U64,
    commit_term: U64,
    reject_hint: U64,
    kind: U16,
    /// 0 or 1.
    reject: U16,
    /// A snapshot follows the context: 0 or 1.
    snapshot: U32,
}
const _: () = assert!(size_of::<Body>() == 64);

/// The numbers of the types that travel. All others are for one process only, and a peer that
/// sends them is refused: proposals and reads are never forwarded here.
pub(crate) const KINDS: [(u16, MessageType); 10] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgSnapshot),
    (6, MessageType::MsgHeartbeat),
    (7, MessageType::MsgHeartbeatResponse),
    (8, MessageType::MsgTimeoutNow),
    (9, MessageType::MsgRequestPreVote),
    (10, MessageType::MsgRequestPreVoteResponse),
];

/// Nothing where the message is of a type that doesn't travel.
pub(crate) fn encode(message: &Message) -> Option<Vec<u8>> {
    let (kind, _) = KINDS.iter().find(|(_, kind)| *kind == message.get_msg_type())?;
    let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
    let mut out = Writer::default();
    out.put(&Body {
        to: message.to.into(),
        term: message.term.into(),
        log_term: message.log_term.into(),
        index: message.index.into(),
        commit: message.commit.into(),
        commit_term: message.commit_term.into(),
        reject_hint: message.reject_hint.into(),
        kind: U16::new(*kind),
        reject: U16::new(message.reject.into()),
        snapshot: U32::new(snapshot.into()),
    });
    put_entries(&mut out, &message.entries);
    out.blob(&message.context);
    if snapshot {
        put_snapshot(&mut out, message.get_snapshot());
    }
    Some(seal(Place::Message, KIND_RAFT, VoterNumber(message.from), &out))
}

pub(crate) fn encode_piece(from: VoterNumber, piece: &Piece) -> Vec<u8> {
    let mut out = Writer::default();
    out.put(&[piece.transfer, piece.total_bytes, piece.offset].map(U64::new));
    out.raw(&piece.data);
    seal(Place::Message, KIND_PIECE, from, &out)
}

pub(crate) fn encode_piece_taken(from: VoterNumber, taken: PieceTaken) -> Vec<u8> {
    let mut out = Writer::default();
    out.put(&[taken.transfer, taken.offset].map(U64::new));
    seal(Place::Message, KIND_PIECE_TAKEN, from, &out)
}

/// Who wrote a message, and what it says. Everything that can be judged without knowing the state
/// of the voter is checked here; the rest in `sanity.rs`.
pub(crate) fn decode(bytes: &[u8]) -> Result<(VoterNumber, Incoming), DecodeError> {
    let (kind, from, mut body) = open(Place::Message, bytes)?;
    let incoming = match kind {
        KIND_RAFT => Incoming::Raft(Box::new(decode_raft(from, body)?)),
        KIND_PIECE => {
            let &[transfer, total_bytes, offset] = body.take::<[U64; 3]>("piece")?;
            let piece = Piece {
                transfer: transfer.get(),
                total_bytes: total_bytes.get(),
                offset: offset.get(),
                data: body.rest().to_vec(),
            };
            let end = piece.offset.checked_add(piece.data.len() as u64);
            if piece.data.is_empty() || end.is_none_or(|end| end > piece.total_bytes) {
                return Err(DecodeError::Impossible { what: "piece", value: piece.offset });
            }
            Incoming::Piece(piece)
        }
        KIND_PIECE_TAKEN => {
            let &[transfer, offset] = body.take::<[U64; 2]>("answer to a piece")?;
            body.end("answer to a piece")?;
            Incoming::PieceTaken(PieceTaken { transfer: transfer.get(), offset: offset.get() })
        }
        kind => return Err(DecodeError::Impossible { what: "message", value: kind.into() }),
    };
    Ok((from, incoming))
}

fn decode_raft(
    from: VoterNumber,
    mut bytes: crate::envelope::Reader<'_>,
) -> Result<Message, DecodeError> {
    let body: &Body = bytes.take("message")?;
    let kind = KINDS.iter().find(|(number, _)| *number == body.kind.get());
    let Some((_, kind)) = kind else {
        let value = body.kind.get().into();
        return Err(DecodeError::Impossible { what: "kind of message", value });
    };
    let mut message = Message::default();
    message.set_msg_type(*kind);
    message.from = from.0;
    message.to = body.to.get();
    message.term = counted(body.term, "term")?;
    message.log_term = counted(body.log_term, "term of the log")?;
    message.index = counted(body.index, "index")?;
    message.commit = counted(body.commit, "commit")?;
    message.commit_term = counted(body.commit_term, "term of the commit")?;
    message.reject_hint = counted(body.reject_hint, "hint")?;
    message.reject = body.reject.get() != 0;
    message.set_entries(take_entries(&mut bytes)?.into());
    message.context = bytes.blob("context")?.to_vec().into();
    let has_snapshot = body.snapshot.get() != 0;
    if has_snapshot != (*kind == MessageType::MsgSnapshot) {
        return Err(DecodeError::Impossible {
            what: "snapshot",
            value: body.snapshot.get().into(),
        });
    }
    if has_snapshot {
        message.set_snapshot(take_snapshot(&mut bytes)?);
    }
    bytes.end("message")?;
    consistent(&message)?;
    Ok(message)
}

/// What holds of every message that the library writes, and what it relies on when it reads one.
fn consistent(message: &Message) -> Result<(), DecodeError> {
    let impossible = |what, value| Err(DecodeError::Impossible { what, value });
    // Term 0 means "from this very process" to the library: such a message would not be checked.
    if message.term == 0 {
        return impossible("term", 0);
    }
    // A request for a vote may announce a term that its sender hasn't begun; its log has not.
    if message.log_term > message.term && message.get_msg_type() != MessageType::MsgAppendResponse {
        return impossible("term of the log", message.log_term);
    }
    match message.get_msg_type() {
        MessageType::MsgAppend => {
            // (index, term 0) would match every index past the end of the log.
            if (message.index == 0) != (message.log_term == 0) {
                return impossible("term of the log", message.log_term);
            }
            let mut last = (message.index, message.log_term);
            for entry in message.entries.iter() {
                let next = (entry.index, entry.term);
                if next.0 != last.0 + 1 || next.1 < last.1 || next.1 > message.term {
                    return impossible("entry index", entry.index);
                }
                last = next;
            }
            Ok(())
        }
        _ if !message.entries.is_empty() => {
            impossible("number of entries", message.entries.len() as u64)
        }
        MessageType::MsgSnapshot if message.get_snapshot().get_metadata().term > message.term => {
            impossible("snapshot term", message.get_snapshot().get_metadata().term)
        }
        _ => Ok(()),
    }
}
