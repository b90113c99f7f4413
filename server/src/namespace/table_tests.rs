//! Sessions through log and snapshot.

use bb_proto::meta::{Binding, Credentials, Namespace, SessionOpen};
use bb_proto::{
    ClientSequence, Code, Failure, Fid, Incarnation, NodeId, PartitionId, Reader, SessionId, Writer,
};
use proptest::prelude::*;

use super::*;
use crate::partition::region_mutation::ProcessId;
use crate::partition::table::{ApplyContext, Encoded, Table};

fn context() -> ApplyContext {
    ApplyContext { partition: PartitionId(0), sequence: 1 }
}

fn open(byte: u8) -> SessionChange {
    SessionChange::Open(SessionOpen {
        key: vec![byte; 16],
        host: "h".into(),
        pid: 1,
        job: 2,
        owner: None,
    })
}

fn binding(byte: u8) -> Binding {
    Binding { bfs: vec![1; 16], handle_type: 1, handle: vec![byte; 8], birth_ns: 0 }
}

fn intent() -> Intent {
    let credentials = Credentials { uid: 1, gid: 2, groups: vec![3], umask: 0 };
    let process = ProcessId { node: NodeId(1), incarnation: Incarnation(2) };
    let request =
        Namespace { session: 1, sequence: 1, acknowledged: 0, credentials, owner: None, op: None };
    Intent { request, process, at_ns: 5, source: Some(binding(1)), victim: None }
}

fn begin(sequence: u64, acknowledged: u64) -> SessionChange {
    SessionChange::Begin {
        sequence: ClientSequence(sequence),
        acknowledged: ClientSequence(acknowledged),
        intent: Box::new(intent()),
    }
}

fn end(sequence: u64, ok: bool, gone: Vec<(Fid, Binding)>) -> SessionChange {
    let answer = if ok {
        Answer::Done(Box::default())
    } else {
        Answer::Failed(Failure::new(Code::Denied, "no"))
    };
    SessionChange::End { sequence: ClientSequence(sequence), answer, gone }
}

fn apply(table: &mut SessionTable, change: SessionChange) -> SessionOutcome {
    table.apply(&context(), &SessionMutation { session: SessionId(1), change })
}

#[test]
fn rule_8_an_operation_is_begun_once_and_its_answer_kept_until_it_is_acknowledged() {
    let mut table = SessionTable::default();
    assert_eq!(apply(&mut table, begin(1, 0)), SessionOutcome::NoSession);
    apply(&mut table, open(1));
    assert_eq!(apply(&mut table, begin(1, 0)), SessionOutcome::Done);
    assert_eq!(apply(&mut table, begin(1, 0)), SessionOutcome::Known);
    apply(&mut table, end(1, true, vec![]));
    assert_eq!(apply(&mut table, begin(1, 0)), SessionOutcome::Known);
    let session = table.get(SessionId(1)).expect("open");
    let kept = session.operation(ClientSequence(1));
    assert!(matches!(kept, Some(Operation::Ended(Answer::Done(_)))));
    assert_eq!(apply(&mut table, begin(2, 1)), SessionOutcome::Done);
    assert!(table.get(SessionId(1)).expect("open").operation(ClientSequence(1)).is_none());
    assert_eq!(apply(&mut table, begin(1, 1)), SessionOutcome::Known, "not a second time");
}

#[test]
fn rule_8_a_rename_may_meet_a_file_after_it_was_begun_and_nothing_else_may_change() {
    let mut table = SessionTable::default();
    apply(&mut table, open(1));
    let begin_with = |intent: Intent| SessionChange::Begin {
        sequence: ClientSequence(1),
        acknowledged: ClientSequence(0),
        intent: Box::new(intent),
    };
    let met = Intent { victim: Some(binding(2)), ..intent() };
    let other = Intent { source: Some(binding(3)), ..met.clone() };
    assert_eq!(apply(&mut table, begin_with(intent())), SessionOutcome::Done);
    assert_eq!(apply(&mut table, begin_with(other)), SessionOutcome::Known);
    assert_eq!(apply(&mut table, begin_with(met.clone())), SessionOutcome::Done);
    assert_eq!(apply(&mut table, begin_with(met.clone())), SessionOutcome::Known);
    let kept = table.get(SessionId(1)).and_then(|s| s.operation(ClientSequence(1)).cloned());
    assert_eq!(kept, Some(Operation::Begun(Box::new(met))));
}

#[test]
fn rule_8_what_is_in_doubt_outlives_acknowledgement_and_session() {
    let mut table = SessionTable::default();
    apply(&mut table, open(1));
    apply(&mut table, begin(1, 0));
    apply(&mut table, begin(2, 1));
    apply(&mut table, SessionChange::Close);
    assert!(table.get(SessionId(1)).is_none(), "closed for its client");
    assert_eq!(table.iter().next().map(|(_, s)| s.operations().count()), Some(2));
    apply(&mut table, end(1, true, vec![(Fid(9), binding(9))]));
    apply(&mut table, end(2, true, vec![]));
    assert_eq!(table.iter().count(), 0);
    assert_eq!(table.gone().count(), 1, "until the file's partition knows");
    apply(&mut table, SessionChange::GoneTold { fid: Fid(9) });
    assert_eq!(table.memory_bytes(), 0);
}

#[test]
fn the_same_key_opens_the_same_session_and_another_key_none() {
    let mut table = SessionTable::default();
    assert_eq!(apply(&mut table, open(1)), SessionOutcome::Done);
    assert_eq!(apply(&mut table, open(1)), SessionOutcome::Done);
    assert_eq!(apply(&mut table, open(2)), SessionOutcome::OtherKey);
    assert_eq!(table.iter().count(), 1);
}

fn changes() -> impl Strategy<Value = SessionChange> {
    let process = ProcessId { node: NodeId(1), incarnation: Incarnation(4) };
    prop_oneof![
        (0..2_u8).prop_map(open),
        (1..8_u64, 0..6_u64).prop_map(|(sequence, acknowledged)| begin(sequence, acknowledged)),
        (1..8_u64, any::<bool>(), prop::collection::vec(0..3_u8, 0..2)).prop_map(
            |(sequence, ok, gone)| {
                let gone = gone.iter().map(|b| (Fid(u128::from(*b)), binding(*b))).collect();
                end(sequence, ok, gone)
            }
        ),
        (1..8_u64).prop_map(move |sequence| SessionChange::Resume {
            sequence: ClientSequence(sequence),
            process
        }),
        (0..3_u128).prop_map(|fid| SessionChange::GoneTold { fid: Fid(fid) }),
        Just(SessionChange::Close),
    ]
}

fn bytes<T: Encoded>(value: &T) -> Vec<u8> {
    let mut out = Writer::default();
    value.encode(&mut out);
    out.finish()
}

proptest! {
    #[test]
    fn replay_from_log_and_from_any_snapshot_gives_the_same_sessions(
        changes in prop::collection::vec((1..3_u64, changes()), 1..100),
        at in any::<prop::sample::Index>(),
    ) {
        let at = at.index(changes.len());
        let (mut live, mut restored) = (SessionTable::default(), SessionTable::default());
        for (index, (session, change)) in changes.into_iter().enumerate() {
            let mutation = SessionMutation { session: SessionId(session), change };
            if index == at {
                let snapshot = bytes(&live);
                let mut reader = Reader::new(&snapshot);
                restored = SessionTable::decode(&mut reader).expect("snapshot");
                reader.finish().expect("whole");
            }
            let logged = bytes(&mutation);
            let mut reader = Reader::new(&logged);
            let again = SessionMutation::decode(&mut reader).expect("record");
            reader.finish().expect("whole");
            prop_assert_eq!(&again, &mutation);
            let outcome = live.apply(&context(), &mutation);
            if index >= at {
                prop_assert_eq!(restored.apply(&context(), &again), outcome);
            }
        }
        prop_assert_eq!(bytes(&live), bytes(&restored));
        prop_assert_eq!(live.memory_bytes(), restored.memory_bytes());
    }

    #[test]
    fn damaged_bytes_are_refused_and_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = SessionMutation::decode(&mut Reader::new(&noise));
        let _ = SessionTable::decode(&mut Reader::new(&noise));
    }
}
