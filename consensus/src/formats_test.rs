//! The formats of version 1, byte for byte: what is in the fixture is read for ever, and says what
//! is written out here. And no bytes, however signed, make a decoder panic.

use std::fmt::Write;

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot};

use crate::envelope::HEADER_BYTES;
use crate::parts::VoterChange;
use crate::records::{encode_append, encode_checkpoint};
use crate::wire::{self, Piece, PieceTaken};
use crate::{Recovered, VoterNumber};

const V1: &str = include_str!("../tests/fixtures/v1.txt");
const VOTER: VoterNumber = VoterNumber(3);

fn entries() -> Vec<Entry> {
    let change = VoterChange { add: vec![4], learn: vec![5, 6], remove: vec![1, 2] };
    let parts: [(EntryType, &[u8], Vec<u8>); 4] = [
        (EntryType::EntryNormal, b"command", Vec::new()),
        // Its data is the library's own form, which nobody reads.
        (EntryType::EntryConfChangeV2, &[8, 2], change.encode()),
        (EntryType::EntryConfChangeV2, b"", Vec::new()),
        (EntryType::EntryNormal, b"", Vec::new()),
    ];
    let entry = |(index, (kind, data, context)): (u64, (EntryType, &[u8], Vec<u8>))| {
        let data = data.to_vec().into();
        let mut entry = Entry { index, term: 2 + index / 10, data, ..Entry::default() };
        entry.set_entry_type(kind);
        entry.context = context.into();
        entry
    };
    (8..).zip(parts).map(entry).collect()
}

fn hard_state() -> HardState {
    HardState { term: 0x0102_0304, vote: 2, commit: 9, ..HardState::default() }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (8, 2);
    *meta.mut_conf_state() = ConfState {
        voters: vec![3, 4],
        voters_outgoing: vec![1, 2, 3],
        learners: vec![5, 6],
        ..ConfState::default()
    };
    snapshot.data = b"machine".to_vec().into();
    snapshot
}

fn message(kind: MessageType) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    (message.from, message.to, message.term) = (VOTER.0, 4, 9);
    (message.log_term, message.index) = (2, 7);
    (message.commit, message.commit_term, message.reject_hint) = (6, 2, 5);
    message.reject = kind == MessageType::MsgAppendResponse;
    message.context = b"context".to_vec().into();
    match kind {
        MessageType::MsgAppend => message.set_entries(entries().into()),
        MessageType::MsgSnapshot => message.set_snapshot(snapshot()),
        _ => {}
    }
    message
}

/// One of everything: its name, and its bytes as this build writes them.
fn written() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![
        ("checkpoint".to_owned(), encode_checkpoint(VOTER, &hard_state(), &snapshot(), &entries())),
        ("record".to_owned(), encode_append(VOTER, &hard_state(), &entries()).remove(0)),
        ("record, no entries".to_owned(), encode_append(VOTER, &hard_state(), &[]).remove(0)),
    ];
    let piece = Piece { transfer: 77, total_bytes: 1000, offset: 10, data: b"piece".to_vec() };
    all.push(("message Piece".to_owned(), wire::encode_piece(VOTER, &piece)));
    let taken = PieceTaken { transfer: 77, offset: 15 };
    all.push(("message PieceTaken".to_owned(), wire::encode_piece_taken(VOTER, taken)));
    for (_, kind) in wire::KINDS {
        let bytes = wire::encode(&message(kind)).expect("it travels");
        all.push((format!("message {kind:?}"), bytes));
    }
    all
}

fn fixture() -> Vec<(String, Vec<u8>)> {
    let line = |line: &str| {
        let (name, hex) = line.split_once(": ").expect("name: hex");
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (name.to_owned(), (0..hex.len()).step_by(2).map(byte).collect())
    };
    V1.lines().map(line).collect()
}

/// Where the log ends that a record follows.
fn before(name: &str) -> u64 {
    if name == "record, no entries" { 9 } else { 7 }
}

/// What bytes say, in words; an error in its words too.
fn read(name: &str, bytes: &[u8]) -> Result<String, String> {
    if name.starts_with("message") {
        return wire::decode(bytes).map(|said| format!("{said:?}")).map_err(|e| e.to_string());
    }
    let mut recovered = Recovered::new();
    let taken = if name == "checkpoint" {
        recovered.snapshot(bytes)
    } else {
        recovered.snapshot.mut_metadata().index = before(name);
        recovered.record(bytes)
    };
    taken.and_then(|()| recovered.check()).map_err(|error| error.to_string())?;
    Ok(format!("{recovered:?}"))
}

#[test]
fn version_1_is_written_as_ever() {
    let (written, fixture) = (written(), fixture());
    assert_eq!(written.len(), fixture.len());
    for (ours, known) in written.iter().zip(&fixture) {
        assert_eq!(ours, known);
    }
}

#[test]
fn version_1_is_read_for_ever() {
    for (name, bytes) in fixture() {
        let said = read(&name, &bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = match name.strip_prefix("message ") {
            Some("Piece") => "(v3, Piece(Piece { transfer: 77, total_bytes: 1000, offset: 10, \
                              data: [112, 105, 101, 99, 101] }))"
                .to_owned(),
            Some("PieceTaken") => {
                "(v3, PieceTaken(PieceTaken { transfer: 77, offset: 15 }))".to_owned()
            }
            Some(kind) => {
                let kinds = wire::KINDS.map(|(_, kind)| kind);
                let kind = kinds.into_iter().find(|known| format!("{known:?}") == kind);
                format!("(v3, Raft({:?}))", message(kind.expect("a kind that travels")))
            }
            None => {
                let mut recovered = Recovered { voter: Some(VOTER), ..Recovered::new() };
                recovered.hard = hard_state();
                recovered.snapshot.mut_metadata().index = before(&name);
                if name == "checkpoint" {
                    recovered.snapshot = snapshot();
                }
                if name != "record, no entries" {
                    recovered.entries = entries().into();
                }
                recovered.used = true;
                format!("{recovered:?}")
            }
        };
        assert_eq!(said, expected, "{name}");
    }
}

/// Wrong bytes under the right checksum: an older or newer build, or somebody who lies.
fn mutate(rng: &mut fastrand::Rng, bytes: &[u8], others: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.usize(1..4) {
        let body = HEADER_BYTES..bytes.len().max(HEADER_BYTES + 1);
        let at = rng.usize(body).min(bytes.len());
        match rng.u8(..7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, rng.u8(..)),
            2 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            3 if at + 4 <= bytes.len() => bytes[at..at + 4].fill(0xFF),
            4 if at < bytes.len() => bytes[at] = rng.u8(..4),
            5 => {
                // The end of another one.
                let other = &others[rng.usize(..others.len())].1;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.usize(HEADER_BYTES..other.len())..]);
            }
            _ => {
                let kind = HEADER_BYTES - 18 + rng.usize(..2);
                bytes[kind] = rng.u8(..4);
            }
        }
    }
    let body_len = u32::try_from(bytes.len() - HEADER_BYTES).expect("small");
    bytes[12..16].copy_from_slice(&body_len.to_le_bytes());
    bytes[8..12].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn mutations_under_a_good_checksum_are_read_or_refused() {
    let all = fixture();
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (name, bytes) = &all[rng.usize(..all.len())];
        let mutated = mutate(&mut rng, bytes, &all);
        match read(name, &mutated) {
            Ok(said) => {
                taken += 1;
                // What was taken says the same when it is told on.
                if let Ok((from, wire::Incoming::Raft(message))) = wire::decode(&mutated) {
                    assert_eq!(message.from, from.0, "seed {seed}");
                    let again = wire::encode(&message).expect("it travelled");
                    assert_eq!(read(name, &again), Ok(said), "seed {seed}");
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(taken > 1000 && refused > 1000, "{taken} {refused}");
}

/// For a new version's fixture: `cargo test -p bb-consensus -- --ignored --nocapture this_build`.
#[test]
#[ignore = "prints the fixture"]
fn what_this_build_writes() {
    let mut text = String::new();
    for (name, bytes) in written() {
        write!(text, "{name}: ").expect("a string");
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").expect("a string"));
        text.push('\n');
    }
    print!("{text}");
}
