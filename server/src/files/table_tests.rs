//! File records against a simple model, through log and snapshot.

use bb_proto::meta::Guard;
use bb_proto::{
    ClientSequence, Fid, Incarnation, NodeId, OpId, PartitionId, Reader, RegionIndex, SessionId,
    Tick, TruncateEpoch, Writer,
};
use proptest::prelude::*;

use super::record::HandleKey;
use super::*;
use crate::partition::region_mutation::ProcessId;
use crate::partition::table::{ApplyContext, Encoded, FileRecords, Table};

const PROCESS: ProcessId = ProcessId { node: NodeId(1), incarnation: Incarnation(3) };

fn context() -> ApplyContext {
    ApplyContext { partition: PartitionId(0), sequence: 1 }
}

fn key(byte: u8) -> HandleKey {
    HandleKey { handle_type: 1, handle: vec![byte; 8].into(), birth_ns: 0 }
}

fn meet(byte: u8, tick: u64) -> FileChange {
    let guard = Guard { size: 100, mtime_ns: 5 };
    FileChange::Meet { key: key(byte), region_log2: 26, tick: Tick(tick), guard }
}

fn apply(table: &mut FileTable, change: FileChange) -> FileOutcome {
    table.apply(&context(), &FileMutation { fid: Fid(7), change })
}

fn truncate(size: u64, sequence: u64) -> FileChange {
    FileChange::TruncateBegin {
        size,
        session: SessionId(1),
        sequence: ClientSequence(sequence),
        process: PROCESS,
    }
}

fn done(epoch: TruncateEpoch) -> FileChange {
    FileChange::TruncateDone { epoch, guard: None }
}

fn raise(epoch: u64, size: u64) -> FileChange {
    FileChange::Raise { epoch: TruncateEpoch(epoch), size, mtime_ns: 0 }
}

#[test]
fn rule_7_a_size_raise_with_an_old_epoch_is_dropped() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    apply(&mut table, raise(40, 500));
    assert_eq!(table.get(Fid(7)).map(|r| r.size), Some(500));
    let begun = FileOutcome::Truncating { epoch: TruncateEpoch(41), again: false };
    assert_eq!(apply(&mut table, truncate(10, 1)), begun);
    apply(&mut table, raise(40, 500));
    table.raise(Fid(7), TruncateEpoch(40), 600, 0);
    assert_eq!(table.get(Fid(7)).map(|r| r.size), Some(10));
    table.raise(Fid(7), TruncateEpoch(41), 20, 0);
    assert_eq!(table.get(Fid(7)).map(|r| r.size), Some(20));
}

#[test]
fn rule_7_a_retried_truncate_is_not_done_again_and_two_never_overlap() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    apply(&mut table, truncate(10, 1));
    let busy = FileOutcome::Refused(FileRefusal::Truncating);
    assert_eq!(apply(&mut table, truncate(5, 2)), busy);
    apply(&mut table, done(TruncateEpoch(41)));
    apply(&mut table, raise(41, 700));
    let again = FileOutcome::Truncating { epoch: TruncateEpoch(41), again: true };
    assert_eq!(apply(&mut table, truncate(10, 1)), again);
    assert_eq!(table.get(Fid(7)).map(|r| r.size), Some(700), "written since");
}

#[test]
fn rule_7_a_region_that_missed_some_gets_the_smallest_size() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    for (sequence, size) in [(1, 300), (2, 50), (3, 900)] {
        apply(&mut table, truncate(size, sequence));
        apply(&mut table, done(TruncateEpoch(40 + sequence)));
    }
    let size = |after| table.region_terms(Fid(7), TruncateEpoch(after)).map(|terms| terms.size);
    assert_eq!(
        [size(39), size(41), size(42), size(43)],
        [Some(50), Some(50), Some(900), Some(u64::MAX)]
    );
    assert_eq!(table.region_terms(Fid(8), TruncateEpoch(0)), None);
}

#[test]
fn rule_7_a_record_that_comes_back_starts_above_every_epoch_it_had() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    for sequence in 1..=100 {
        apply(&mut table, truncate(100, sequence));
        apply(&mut table, done(TruncateEpoch(40 + sequence)));
    }
    assert_eq!(apply(&mut table, FileChange::DropEnd), FileOutcome::Refused(FileRefusal::Needed));
    apply(&mut table, FileChange::DropBegin);
    apply(&mut table, FileChange::DropEnd);
    assert!(table.get(Fid(7)).is_none());
    apply(&mut table, meet(1, 41));
    assert_eq!(table.get(Fid(7)).map(|r| r.epoch), Some(TruncateEpoch(141)));
}

#[test]
fn a_file_made_again_behind_our_back_is_another() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    assert_eq!(apply(&mut table, meet(1, 41)), FileOutcome::Done);
    assert_eq!(apply(&mut table, meet(2, 41)), FileOutcome::Refused(FileRefusal::OtherFile));
}

#[test]
fn a_record_is_forgotten_only_when_it_says_nothing() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    apply(&mut table, FileChange::Register { run: 0, regions: 1 });
    let needed = FileOutcome::Refused(FileRefusal::Needed);
    assert_eq!(apply(&mut table, FileChange::Forget), needed);
    assert!(table.get(Fid(7)).unwrap().is_registered(RegionIndex(0)));
    assert!(!table.get(Fid(7)).unwrap().is_registered(RegionIndex(1)));
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    apply(&mut table, FileChange::Forget);
    assert!(table.is_empty());
    assert_eq!(table.memory_bytes(), 0);
}

#[test]
fn an_append_reserves_at_the_end_and_never_past_the_largest_offset() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    assert_eq!(
        apply(&mut table, FileChange::Append { len: 10 }),
        FileOutcome::Reserved { at: 100 }
    );
    assert_eq!(
        apply(&mut table, FileChange::Append { len: 10 }),
        FileOutcome::Reserved { at: 110 }
    );
    let large = FileChange::Append { len: FILE_BYTES_MAX };
    assert_eq!(apply(&mut table, large), FileOutcome::Refused(FileRefusal::TooLarge));
}

#[test]
fn a_usual_record_costs_less_than_256_bytes() {
    let mut table = FileTable::default();
    apply(&mut table, meet(1, 40));
    apply(&mut table, FileChange::Register { run: 0, regions: 1024 });
    let bytes = table.memory_bytes();
    assert!((64..=256).contains(&bytes), "{bytes}");
}

fn changes() -> impl Strategy<Value = FileChange> {
    let guard = || (0..1000_u64, 0..5_i64).prop_map(|(size, mtime_ns)| Guard { size, mtime_ns });
    prop_oneof![
        (0..2_u8, 0..100_u64).prop_map(|(byte, tick)| meet(byte, tick)),
        (0..4_u32, 1..=1024_u32).prop_map(|(run, regions)| FileChange::Register { run, regions }),
        (0..120_u64, 0..2000_u64).prop_map(|(epoch, size)| raise(epoch, size)),
        (0..2000_u64).prop_map(|len| FileChange::Append { len }),
        (0..2000_u64, 0..40_u64).prop_map(|(size, sequence)| truncate(size, sequence)),
        Just(FileChange::TruncateResume { process: PROCESS }),
        (0..120_u64).prop_map(|epoch| done(TruncateEpoch(epoch))),
        guard().prop_map(|guard| FileChange::SetGuard { guard }),
        guard().prop_map(|guard| FileChange::Rebase { guard }),
        (0..3_u64).prop_map(|op| FileChange::SyncBegin { op: OpId(op), process: PROCESS }),
        (0..3_u64).prop_map(|op| FileChange::SyncEnd { op: OpId(op), guard: None }),
        any::<bool>().prop_map(|conflict| FileChange::SetConflict { conflict }),
        any::<bool>().prop_map(|pinned| FileChange::SetPinned { pinned }),
        any::<bool>().prop_map(|hidden| FileChange::SetHidden { hidden }),
        Just(FileChange::DropBegin),
        Just(FileChange::DropEnd),
        Just(FileChange::Forget),
    ]
}

fn bytes<T: Encoded>(value: &T) -> Vec<u8> {
    let mut out = Writer::default();
    value.encode(&mut out);
    out.finish()
}

proptest! {
    #[test]
    fn replay_from_log_and_from_any_snapshot_gives_the_same_table(
        changes in prop::collection::vec((0..3_u128, changes()), 1..200),
        at in any::<prop::sample::Index>(),
    ) {
        let mutations: Vec<FileMutation> = changes
            .into_iter()
            .map(|(fid, change)| FileMutation { fid: Fid(fid), change })
            .collect();
        let at = at.index(mutations.len());
        let (mut live, mut restored) = (FileTable::default(), FileTable::default());
        for (index, mutation) in mutations.iter().enumerate() {
            if index == at {
                let snapshot = bytes(&live);
                let mut reader = Reader::new(&snapshot);
                restored = FileTable::decode(&mut reader).expect("snapshot");
                reader.finish().expect("whole");
            }
            let logged = bytes(mutation);
            let mut reader = Reader::new(&logged);
            let again = FileMutation::decode(&mut reader).expect("record");
            reader.finish().expect("whole");
            prop_assert_eq!(&again, mutation);
            let before: Vec<(Fid, TruncateEpoch)> =
                live.iter().map(|(fid, record)| (fid, record.epoch)).collect();
            let outcome = live.apply(&context(), mutation);
            if index >= at {
                prop_assert_eq!(restored.apply(&context(), &again), outcome);
            }
            for (fid, epoch) in before {
                let after = live.get(fid).map_or(epoch, |record| record.epoch);
                prop_assert!(after >= epoch, "an epoch never goes back");
            }
            let counted: u64 = live.iter().map(|(_, record)| record.memory_bytes()).sum();
            prop_assert_eq!(live.memory_bytes(), counted);
        }
        prop_assert_eq!(bytes(&live), bytes(&restored));
    }

    #[test]
    fn damaged_bytes_are_refused_and_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = FileMutation::decode(&mut Reader::new(&noise));
        let _ = FileTable::decode(&mut Reader::new(&noise));
    }
}
