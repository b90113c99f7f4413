//! The state machine: rules, conditions, and that replay ends where life did.

use bb_proto::meta::{FragmentState, Guard};
use bb_proto::{
    Capability, ClientSequence, Commit, DeviceId, Fid, Fragment, Incarnation, Member, NodeId, OpId,
    PartitionId, PgBody, PgDescriptor, PgId, Reader, RegionIndex, Rights, SessionId, Tick,
    TruncateEpoch, Writer,
};
use proptest::prelude::*;

use crate::files::record::HandleKey;
use crate::files::{FileChange, FileMutation};
use crate::partition::fragment_map::Place;
use crate::partition::mutation::{Mutation, Outcome};
use crate::partition::pg::Fate;
use crate::partition::pg_mutation::{
    CommitRecord, CommitRefusal, FreedMembers, InlineBytes, PgMutation, PgOutcome,
};
use crate::partition::region_mutation::{
    ProcessId, PurgeMode, Range, RegionId, RegionMutation, RegionOutcome, RegionRefusal, Written,
};
use crate::partition::state::PartitionState;
use crate::partition::table::Encoded;

const HOME: PartitionId = PartitionId(4);
const OTHER: PartitionId = PartitionId(9);
const FID: Fid = Fid(77);
const REGION: RegionId = RegionId { fid: FID, region: RegionIndex(0) };
const EPOCH: TruncateEpoch = TruncateEpoch(5);
const OURS: ProcessId = ProcessId { node: NodeId(1), incarnation: Incarnation(3) };
const GONE: ProcessId = ProcessId { node: NodeId(1), incarnation: Incarnation(2) };

fn pg(slot: u64, sequence: u32) -> PgId {
    PgId { slot: Tick(slot), session: SessionId(1), sequence, home: HOME }
}

fn commit(id: PgId, fragments: &[(u64, u32, u32)]) -> Commit {
    Commit {
        capability: Capability {
            session: SessionId(1),
            fid: FID,
            rights: Rights::WRITE,
            signature: [0; 16],
        },
        epoch: EPOCH,
        size_raise: 0,
        mtime_ns: 0,
        closes: 0,
        stage: OpId(0),
        descriptor: PgDescriptor {
            pg: id,
            body: PgBody::Blocks {
                data: 2,
                parity: 1,
                codec: 1,
                block_log2: 16,
                chunk_log2: 14,
                members: (0..3).map(|d| Member { device: DeviceId(d), crc: 0 }).collect(),
            },
        },
        participants: Vec::new(),
        fragments: fragments
            .iter()
            .map(|(offset, pg_offset, len)| Fragment {
                offset: *offset,
                pg_offset: *pg_offset,
                len: *len,
            })
            .collect(),
    }
}

fn logged(commit: Commit) -> Mutation {
    Mutation::Pg(PgMutation::Commit(Box::new(CommitRecord {
        commit,
        absent_members: 0,
        inline: InlineBytes::default(),
    })))
}

fn open(state: &mut PartitionState) {
    truncate(state, EPOCH, u64::MAX, true);
}

fn truncate(state: &mut PartitionState, epoch: TruncateEpoch, size: u64, done: bool) {
    let outcome =
        region(state, RegionMutation::Truncate { id: REGION, region_log2: 20, epoch, size, done });
    assert_eq!(outcome, RegionOutcome::Done);
}

fn region(state: &mut PartitionState, mutation: RegionMutation) -> RegionOutcome {
    state.apply(&Mutation::Region(mutation)).region().unwrap()
}

fn apply(state: &mut PartitionState, mutation: PgMutation) -> PgOutcome {
    state.apply(&Mutation::Pg(mutation)).pg().unwrap()
}

fn write(state: &mut PartitionState, id: PgId, fragments: &[(u64, u32, u32)]) -> PgOutcome {
    state.apply(&logged(commit(id, fragments))).pg().unwrap()
}

fn opened() -> PartitionState {
    let mut state = PartitionState::new(HOME);
    open(&mut state);
    state
}

fn at_participant() -> PartitionState {
    let mut state = PartitionState::new(OTHER);
    open(&mut state);
    state
}

fn state_at(state: &PartitionState, offset: u64) -> Option<(PgId, FragmentState)> {
    let piece = state.regions.get(REGION)?.fragments().pieces(offset, offset + 1).next()?;
    let Place::Pg { pg, state: fragment, .. } = piece.place else { return None };
    Some((state.pgs.get(pg).descriptor.pg, fragment))
}

const APPLIED: PgOutcome = PgOutcome::Committed { duplicate: false };
const DUPLICATE: PgOutcome = PgOutcome::Committed { duplicate: true };
const ALL: Range = Range { start: 0, end: 1 << 20 };

#[test]
fn rule_1_a_first_commit_at_or_below_the_horizon_is_refused_and_changes_nothing() {
    let mut state = opened();
    apply(&mut state, PgMutation::Horizon { slot: Tick(10) });
    let refused = PgOutcome::Refused(CommitRefusal::BehindHorizon);
    assert_eq!(write(&mut state, pg(10, 1), &[(0, 0, 10)]), refused);
    assert_eq!(state_at(&state, 0), None);
    assert_eq!(write(&mut state, pg(11, 1), &[(0, 0, 10)]), APPLIED);
    apply(&mut state, PgMutation::Horizon { slot: Tick(3) });
    assert_eq!(state.horizon(), Tick(10), "a horizon never goes back");
}

#[test]
fn rule_2_home_frees_when_the_set_of_participants_has_released_however_often_one_says_so() {
    let mut state = opened();
    let mut spread = commit(pg(1, 1), &[(0, 0, 10)]);
    spread.participants = vec![OTHER, PartitionId(2), OTHER];
    state.apply(&logged(spread));
    write(&mut state, pg(1, 2), &[(0, 0, 10)]);
    let release = |p| PgMutation::Release { participant: p, pgs: vec![pg(1, 1)] };
    for _ in 0..3 {
        apply(&mut state, release(OTHER));
        assert_eq!(state.pgs.dead().count(), 0);
    }
    assert_eq!(state.pgs.silent().count(), 1, "one participant is left to be asked");
    apply(&mut state, release(PartitionId(2)));
    assert_eq!(state.pgs.dead().count(), 1);
    assert_eq!(state.pgs.silent().count(), 0);
}

#[test]
fn rule_2_a_participant_owes_its_release_until_home_has_logged_it() {
    let mut state = at_participant();
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), APPLIED);
    assert!(state.pgs.find(pg(1, 1)).unwrap().home.is_none(), "a stub");
    region(&mut state, RegionMutation::Purge { id: REGION, range: ALL, mode: PurgeMode::All });
    assert!(state.pgs.find(pg(1, 1)).is_none());
    assert_eq!(state.pgs.owed().collect::<Vec<_>>(), [pg(1, 1)]);
    apply(&mut state, PgMutation::ReleaseAcked { pgs: vec![pg(1, 1)] });
    assert_eq!(state.pgs.owed().count(), 0);
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), DUPLICATE, "it stays released");
}

#[test]
fn rule_3_a_commit_that_comes_again_changes_nothing_also_when_the_group_is_gone() {
    let mut state = opened();
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), APPLIED);
    assert_eq!(write(&mut state, pg(1, 2), &[(0, 0, 10)]), APPLIED);
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), DUPLICATE);
    assert_eq!(state_at(&state, 0), Some((pg(1, 2), FragmentState::Dirty)));
    let groups = vec![FreedMembers { pg: pg(1, 1), members: 7 }];
    apply(&mut state, PgMutation::Freed { groups });
    assert_eq!(state.pgs.fate(pg(1, 1)), Some(Fate::Gone));
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), DUPLICATE);
    apply(&mut state, PgMutation::Horizon { slot: Tick(1) });
    assert_eq!(state.pgs.fate(pg(1, 1)), None, "forgotten once the horizon has passed");
    let refused = PgOutcome::Refused(CommitRefusal::BehindHorizon);
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), refused);
    assert_eq!(write(&mut state, pg(1, 2), &[(0, 0, 10)]), DUPLICATE, "this one still lives");
}

#[test]
fn rule_3_a_cancelled_commit_is_never_applied_and_an_applied_one_is_never_cancelled() {
    let mut state = opened();
    let cancel = |id| PgMutation::Cancel { pg: id };
    let outcome = apply(&mut state, cancel(pg(1, 1)));
    assert_eq!(outcome, PgOutcome::Cancelled { committed: false });
    let refused = PgOutcome::Refused(CommitRefusal::Cancelled);
    assert_eq!(write(&mut state, pg(1, 1), &[(0, 0, 10)]), refused);
    write(&mut state, pg(1, 2), &[(0, 0, 10)]);
    let outcome = apply(&mut state, cancel(pg(1, 2)));
    assert_eq!(outcome, PgOutcome::Cancelled { committed: true });
    assert_eq!(state_at(&state, 0), Some((pg(1, 2), FragmentState::Dirty)));
}

#[test]
fn rule_4_a_dead_record_stays_until_every_member_has_acked() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 10)]);
    let freed =
        |members| PgMutation::Freed { groups: vec![FreedMembers { pg: pg(1, 1), members }] };
    apply(&mut state, freed(7));
    assert!(state.pgs.find(pg(1, 1)).is_some(), "acks for a living group mean nothing");
    write(&mut state, pg(1, 2), &[(0, 0, 10)]);
    apply(&mut state, freed(3));
    assert!(state.pgs.find(pg(1, 1)).is_some());
    apply(&mut state, freed(4));
    assert!(state.pgs.find(pg(1, 1)).is_none());
    assert_eq!(state.pgs.totals().allocated_bytes, 3 << 16, "of the second group");
}

#[test]
fn rule_7_a_commit_of_an_old_epoch_is_refused_with_the_current_one() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    truncate(&mut state, TruncateEpoch(6), 40, false);
    assert_eq!(state.regions.get(REGION).unwrap().fragments().end(), 40);
    let refused = PgOutcome::Refused(CommitRefusal::OldEpoch(TruncateEpoch(6)));
    assert_eq!(write(&mut state, pg(1, 2), &[(50, 0, 10)]), refused);
    let mut again = commit(pg(1, 2), &[(50, 0, 10)]);
    again.epoch = TruncateEpoch(6);
    assert_eq!(state.apply(&logged(again)), Outcome::Pg(APPLIED));
    truncate(&mut state, TruncateEpoch(6), 40, true);
    assert_eq!(state.regions.get(REGION).unwrap().fragments().end(), 60, "once per epoch");
}

#[test]
fn rule_7_a_region_that_missed_a_truncate_takes_no_commit_of_the_new_epoch_before_it_learns() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    let mut newer = commit(pg(1, 2), &[(50, 0, 10)]);
    newer.epoch = TruncateEpoch(8);
    let behind = Outcome::Pg(PgOutcome::Refused(CommitRefusal::RegionBehind(EPOCH)));
    assert_eq!(state.apply(&logged(newer.clone())), behind);
    truncate(&mut state, TruncateEpoch(8), 10, true);
    assert_eq!(state.apply(&logged(newer)), Outcome::Pg(APPLIED));
    assert_eq!(state_at(&state, 9), Some((pg(1, 1), FragmentState::Dirty)));
    assert_eq!(state_at(&state, 10), None);
}

#[test]
fn rule_7_nothing_is_synchronized_between_a_truncate_and_its_end() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    truncate(&mut state, TruncateEpoch(6), 40, false);
    assert_eq!(state.regions.get(REGION).unwrap().truncating(), Some(40));
    let begin = RegionMutation::SyncBegin { id: REGION, op: OpId(1), process: OURS, range: ALL };
    let refused = RegionOutcome::Refused(RegionRefusal::Truncating);
    assert_eq!(region(&mut state, begin.clone()), refused);
    region(&mut state, RegionMutation::TruncateDone { id: REGION, epoch: EPOCH });
    assert_eq!(region(&mut state, begin.clone()), refused, "the end of an older one");
    region(&mut state, RegionMutation::TruncateDone { id: REGION, epoch: TruncateEpoch(6) });
    assert_eq!(region(&mut state, begin), RegionOutcome::Bytes(40));
}

#[test]
fn rule_7_two_truncates_whose_ends_were_missed_read_as_zeros_from_the_smaller_size() {
    let mut state = opened();
    truncate(&mut state, TruncateEpoch(6), 40, false);
    truncate(&mut state, TruncateEpoch(7), 90, false);
    assert_eq!(state.regions.get(REGION).unwrap().truncating(), Some(40));
}

#[test]
fn rule_8_a_dropped_file_is_not_opened_again_by_what_is_still_on_its_way() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    region(&mut state, RegionMutation::Drop { id: REGION, tick: Tick(9) });
    assert_eq!(state.pgs.dead().count(), 1);
    let refused = PgOutcome::Refused(CommitRefusal::FileDropped);
    assert_eq!(write(&mut state, pg(2, 2), &[(0, 0, 10)]), refused);
    let again = RegionMutation::Truncate {
        id: REGION,
        region_log2: 20,
        epoch: EPOCH,
        size: u64::MAX,
        done: true,
    };
    let dropped = RegionOutcome::Refused(RegionRefusal::Dropped);
    assert_eq!(region(&mut state, again.clone()), dropped);
    apply(&mut state, PgMutation::Horizon { slot: Tick(9) });
    assert_eq!(region(&mut state, again), RegionOutcome::Done);
}

fn begin(state: &mut PartitionState, op: u64, process: ProcessId, range: Range) -> RegionOutcome {
    region(state, RegionMutation::SyncBegin { id: REGION, op: OpId(op), process, range })
}

fn written(id: PgId, offset: u64, pg_offset: u32, len: u32) -> Written {
    Written { pg: id, fragment: Fragment { offset, pg_offset, len } }
}

#[test]
fn rule_9_sync_marks_clean_only_what_is_unchanged() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    assert_eq!(begin(&mut state, 1, OURS, ALL), RegionOutcome::Bytes(100));
    write(&mut state, pg(1, 2), &[(20, 0, 10)]);
    // Same group and range, other place in the group: not what was written.
    let written = vec![written(pg(1, 1), 0, 0, 50), written(pg(1, 1), 50, 51, 10)];
    let end = RegionMutation::SyncEnd { id: REGION, op: OpId(1), written };
    assert_eq!(
        region(&mut state, end.clone()),
        RegionOutcome::Synced { clean: 40, dirty_again: 50 }
    );
    assert_eq!(state_at(&state, 19), Some((pg(1, 1), FragmentState::Clean)));
    assert_eq!(state_at(&state, 20), Some((pg(1, 2), FragmentState::Dirty)));
    assert_eq!(state_at(&state, 30), Some((pg(1, 1), FragmentState::Clean)));
    assert_eq!(state_at(&state, 55), Some((pg(1, 1), FragmentState::Dirty)));
    assert_eq!(region(&mut state, end), RegionOutcome::Refused(RegionRefusal::UnknownOperation));
    let totals = state.regions.totals();
    assert_eq!((totals.dirty, totals.pending, totals.clean), (60, 0, 40));
}

#[test]
fn rule_9_a_failed_sync_turns_pending_back_to_dirty() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    begin(&mut state, 1, OURS, ALL);
    assert_eq!(state.regions.totals().pending, 100);
    region(&mut state, RegionMutation::SyncEnd { id: REGION, op: OpId(1), written: vec![] });
    assert_eq!(state.regions.totals().dirty, 100);
}

#[test]
fn rule_9_a_prestage_replaces_only_bytes_still_under_its_placeholders() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 10)]);
    let stage = |op: u64| RegionMutation::StageBegin {
        id: REGION,
        op: OpId(op),
        process: OURS,
        range: Range { start: 0, end: 60 },
        epoch: EPOCH,
    };
    assert_eq!(region(&mut state, stage(1)), RegionOutcome::Bytes(50));
    write(&mut state, pg(1, 2), &[(30, 0, 10)]);
    let mut staged = commit(pg(1, 3), &[(0, 0, 100)]);
    staged.stage = OpId(1);
    assert_eq!(state.apply(&logged(staged)), Outcome::Pg(APPLIED));
    assert_eq!(state_at(&state, 5), Some((pg(1, 1), FragmentState::Dirty)));
    assert_eq!(state_at(&state, 15), Some((pg(1, 3), FragmentState::Clean)));
    assert_eq!(state_at(&state, 35), Some((pg(1, 2), FragmentState::Dirty)));
    assert_eq!(state_at(&state, 59), Some((pg(1, 3), FragmentState::Clean)));
    assert_eq!(state_at(&state, 60), None);
    assert_eq!(state.pgs.find(pg(1, 3)).unwrap().live_bytes(), 40);
    assert_eq!(
        region(&mut state, RegionMutation::StageEnd { id: REGION, op: OpId(1) }),
        RegionOutcome::Bytes(0)
    );
    let mut late = commit(pg(1, 4), &[(70, 0, 10)]);
    late.stage = OpId(1);
    assert_eq!(state.apply(&logged(late)), Outcome::Pg(APPLIED));
    assert_eq!(state_at(&state, 70), None);
    let dead: Vec<PgId> = state.pgs.dead().map(|pg| pg.descriptor.pg).collect();
    assert_eq!(dead, [pg(1, 4)], "a group of which nothing was taken is freed");
}

#[test]
fn rule_10_ranges_under_a_predecessors_intent_wait_for_the_proof_of_its_death() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100)]);
    begin(&mut state, 1, GONE, Range { start: 0, end: 50 });
    write(&mut state, pg(1, 2), &[(10, 0, 10)]);
    let unproven = RegionOutcome::Refused(RegionRefusal::PredecessorUnproven);
    assert_eq!(begin(&mut state, 2, OURS, ALL), unproven);
    let free = Range { start: 50, end: 100 };
    assert_eq!(begin(&mut state, 3, OURS, free), RegionOutcome::Bytes(50));
    let overlap = RegionOutcome::Refused(RegionRefusal::Overlap);
    assert_eq!(begin(&mut state, 4, OURS, free), overlap);
    region(&mut state, RegionMutation::ProcessGone { process: GONE });
    let totals = state.regions.totals();
    assert_eq!((totals.dirty, totals.pending), (50, 50), "only the predecessor's are dirty again");
    let range = Range { start: 0, end: 50 };
    assert_eq!(begin(&mut state, 5, OURS, range), RegionOutcome::Bytes(50));
}

#[test]
fn rule_9_a_prestage_brings_nothing_that_it_read_before_a_purge() {
    let mut state = opened();
    let range = Range { start: 0, end: 60 };
    let stage =
        RegionMutation::StageBegin { id: REGION, op: OpId(1), process: OURS, range, epoch: EPOCH };
    assert_eq!(region(&mut state, stage), RegionOutcome::Bytes(60));
    // The file changed behind our back: what was read of it is out of date.
    region(&mut state, RegionMutation::Purge { id: REGION, range: ALL, mode: PurgeMode::Clean });
    let mut staged = commit(pg(1, 3), &[(0, 0, 60)]);
    staged.stage = OpId(1);
    assert_eq!(state.apply(&logged(staged)), Outcome::Pg(APPLIED));
    assert_eq!(state_at(&state, 5), None);
}

#[test]
fn rule_15_live_and_allocated_bytes_follow_every_change() {
    let mut state = opened();
    write(&mut state, pg(1, 1), &[(0, 0, 100), (200, 100, 100)]);
    write(&mut state, pg(1, 2), &[(50, 0, 100)]);
    assert_eq!(state.pgs.find(pg(1, 1)).unwrap().live_bytes(), 150);
    assert_eq!(state.pgs.totals().live_bytes, 250);
    assert_eq!(state.pgs.totals().allocated_bytes, 2 * (3 << 16));
    region(&mut state, RegionMutation::Purge { id: REGION, range: ALL, mode: PurgeMode::Clean });
    assert_eq!(state.pgs.totals().live_bytes, 250, "dirty bytes are not purged");
    region(&mut state, RegionMutation::Purge { id: REGION, range: ALL, mode: PurgeMode::All });
    assert_eq!(state.pgs.totals().live_bytes, 0);
    let groups = (1..=2).map(|n| FreedMembers { pg: pg(1, n), members: 7 }).collect();
    apply(&mut state, PgMutation::Freed { groups });
    assert_eq!(state.pgs.totals().allocated_bytes, 0);
    assert!(state.pgs.is_empty());
}

fn any_range() -> impl Strategy<Value = Range> {
    (0..100_u64, 1..60_u64).prop_map(|(start, len)| Range { start, end: start + len })
}

fn any_commit() -> impl Strategy<Value = Mutation> {
    let fragments = proptest::collection::vec((0..30_u64, 1..20_u32), 1..4);
    (0..30_u64, 0..12_u32, 4..9_u64, 0..3_u64, fragments, any::<bool>()).prop_map(
        |(slot, sequence, epoch, stage, steps, spread)| {
            let (mut offset, mut pg_offset, mut fragments) = (0, 0, Vec::new());
            for (gap, len) in steps {
                fragments.push((offset + gap, pg_offset, len));
                offset += gap + u64::from(len);
                pg_offset += len;
            }
            let mut made = commit(pg(slot, sequence), &fragments);
            made.epoch = TruncateEpoch(epoch);
            made.stage = OpId(stage);
            made.participants = if spread { vec![OTHER] } else { vec![] };
            logged(made)
        },
    )
}

fn any_region_mutation() -> impl Strategy<Value = RegionMutation> {
    let id = REGION;
    let process = || prop_oneof![Just(OURS), Just(GONE)];
    prop_oneof![
        (4..9_u64, 0..100_u64, any::<bool>()).prop_map(move |(epoch, size, done)| {
            let epoch = TruncateEpoch(epoch);
            RegionMutation::Truncate { id, region_log2: 20, epoch, size, done }
        }),
        (4..9_u64).prop_map(move |e| RegionMutation::TruncateDone { id, epoch: TruncateEpoch(e) }),
        (1..4_u64, process(), any_range()).prop_map(move |(op, process, range)| {
            RegionMutation::SyncBegin { id, op: OpId(op), process, range }
        }),
        (1..4_u64, 0..30_u64, 0..12_u32, 0..60_u64).prop_map(move |(op, slot, n, offset)| {
            let written = vec![written(pg(slot, n), offset, 0, 40)];
            RegionMutation::SyncEnd { id, op: OpId(op), written }
        }),
        process().prop_map(|process| RegionMutation::ProcessGone { process }),
        (1..3_u64, process(), any_range(), 4..9_u64).prop_map(move |(op, process, range, e)| {
            let epoch = TruncateEpoch(e);
            RegionMutation::StageBegin { id, op: OpId(op), process, range, epoch }
        }),
        (1..3_u64).prop_map(move |op| RegionMutation::StageEnd { id, op: OpId(op) }),
        (any_range(), 0..3_u8).prop_map(move |(range, mode)| {
            let mode = [PurgeMode::Mark, PurgeMode::Clean, PurgeMode::All][usize::from(mode)];
            RegionMutation::Purge { id, range, mode }
        }),
        (0..12_u64).prop_map(move |tick| RegionMutation::Drop { id, tick: Tick(tick) }),
    ]
}

fn any_pg_mutation() -> impl Strategy<Value = PgMutation> {
    let id = || (0..30_u64, 0..12_u32).prop_map(|(slot, n)| pg(slot, n));
    prop_oneof![
        id().prop_map(|pg| PgMutation::Cancel { pg }),
        (0..20_u64).prop_map(|slot| PgMutation::Horizon { slot: Tick(slot) }),
        proptest::collection::vec(id(), 1..5)
            .prop_map(|pgs| PgMutation::Release { participant: OTHER, pgs }),
        proptest::collection::vec(id(), 1..5).prop_map(|pgs| PgMutation::ReleaseAcked { pgs }),
        proptest::collection::vec((id(), 0..8_u32), 1..5).prop_map(|list| PgMutation::Freed {
            groups: list.into_iter().map(|(pg, members)| FreedMembers { pg, members }).collect(),
        }),
    ]
}

fn any_mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        6 => any_commit(),
        4 => any_region_mutation().prop_map(Mutation::Region),
        2 => any_pg_mutation().prop_map(Mutation::Pg),
    ]
}

fn bytes(state: &PartitionState) -> Vec<u8> {
    let mut out = Writer::default();
    state.encode(&mut out);
    out.finish()
}

/// What must hold whatever was applied.
fn check_invariants(state: &PartitionState) {
    let (mut named, mut fragments) = (std::collections::BTreeMap::new(), 0);
    for (_, region) in state.regions.iter() {
        for piece in region.fragments().pieces(0, u64::MAX) {
            fragments += 1;
            if let Place::Pg { pg, .. } = piece.place {
                *named.entry(pg).or_insert(0) += u64::from(piece.len);
            }
        }
    }
    assert_eq!(state.regions.totals().fragments, fragments);
    assert_eq!(state.regions.totals().bytes(), state.pgs.totals().live_bytes);
    for (at, pg) in state.pgs.iter() {
        let live = named.remove(&at).unwrap_or(0);
        assert_eq!(pg.live_bytes(), live);
        let waits = pg.home.as_ref().is_some_and(|home| {
            home.dead || home.participants.iter().any(|participant| !participant.released)
        });
        assert!(live > 0 || waits, "{:?} is leaked", pg.descriptor.pg);
        assert!(live == 0 || !pg.home.as_ref().is_some_and(|home| home.dead));
        assert_eq!(state.pgs.fate(pg.descriptor.pg), None, "on record and remembered");
    }
    assert!(named.is_empty(), "fragments name a group that is not on record");
}

proptest! {
    #[test]
    fn replay_from_any_point_ends_in_the_same_state(
        home in prop_oneof![Just(HOME), Just(OTHER)],
        mutations in proptest::collection::vec(any_mutation(), 1..80),
        cut in 0..80_usize,
    ) {
        let mut lived = PartitionState::new(home);
        open(&mut lived);
        let mut restored = None;
        for (number, mutation) in mutations.iter().enumerate() {
            if number == cut % mutations.len() {
                let snapshot = bytes(&lived);
                restored = Some(PartitionState::decode(&mut Reader::new(&snapshot)).unwrap());
            }
            let logged = mutation.encode_body();
            let read = Mutation::decode_body(mutation.table() as u8, &logged).unwrap();
            prop_assert_eq!(&read, mutation);
            let outcome = lived.apply(mutation);
            if let Some(restored) = &mut restored {
                prop_assert_eq!(restored.apply(&read), outcome);
            }
            check_invariants(&lived);
        }
        let restored = restored.unwrap();
        prop_assert_eq!(bytes(&restored), bytes(&lived));
        prop_assert_eq!(restored.pgs.totals(), lived.pgs.totals());
        prop_assert_eq!(restored.regions.totals(), lived.regions.totals());
        prop_assert_eq!(restored.memory_bytes(), lived.memory_bytes());
    }

    #[test]
    fn damaged_snapshots_are_refused_without_a_panic(
        mutations in proptest::collection::vec(any_mutation(), 1..20),
        at in any::<prop::sample::Index>(),
        with in 1..=255_u8,
    ) {
        let mut state = opened();
        for mutation in &mutations {
            state.apply(mutation);
        }
        let mut damaged = bytes(&state);
        let at = at.index(damaged.len());
        damaged[at] ^= with;
        // Behind the checksum of a snapshot this cannot happen; it must not panic all the same.
        let _ = PartitionState::decode(&mut Reader::new(&damaged));
    }
}

/// The file's record, as its open makes it.
fn meet(state: &mut PartitionState) {
    change(
        state,
        FileChange::Meet {
            key: HandleKey { handle_type: 1, handle: vec![1; 8].into(), birth_ns: 0 },
            region_log2: 20,
            tick: Tick(EPOCH.0),
            guard: Guard { size: 0, mtime_ns: 0 },
        },
    );
}

fn change(state: &mut PartitionState, change: FileChange) {
    state.apply(&Mutation::File(FileMutation { fid: FID, change }));
}

#[test]
fn a_region_is_registered_and_opened_in_one_step_with_what_the_record_says_then() {
    let mut state = PartitionState::new(HOME);
    meet(&mut state);
    assert_eq!(region(&mut state, RegionMutation::Open { id: REGION }), RegionOutcome::Done);
    assert!(state.files.get(FID).unwrap().is_registered(REGION.region));
    let told = Commit { size_raise: 10, mtime_ns: 99, ..commit(pg(10, 1), &[(0, 0, 10)]) };
    assert_eq!(state.apply(&logged(told)).pg().unwrap(), APPLIED);
    let record = state.files.get(FID).unwrap();
    assert_eq!((record.size, record.mtime_ns), (10, 99));
    // Again, as from another commit that met it at the same time.
    assert_eq!(region(&mut state, RegionMutation::Open { id: REGION }), RegionOutcome::Done);
    assert!(state_at(&state, 0).is_some());
}

#[test]
fn rule_7_a_truncate_that_comes_before_a_region_is_opened_refuses_what_was_written_before_it() {
    let mut state = PartitionState::new(HOME);
    meet(&mut state);
    // Between the look at the record, and what was logged because of it.
    let begin = FileChange::TruncateBegin {
        size: 0,
        session: SessionId(2),
        sequence: ClientSequence(1),
        process: OURS,
    };
    change(&mut state, begin);
    assert_eq!(region(&mut state, RegionMutation::Open { id: REGION }), RegionOutcome::Done);
    let next = TruncateEpoch(EPOCH.0 + 1);
    let opened = state.regions.get(REGION).unwrap();
    assert_eq!((opened.epoch(), opened.truncating()), (next, Some(0)));
    let refused = PgOutcome::Refused(CommitRefusal::OldEpoch(next));
    assert_eq!(write(&mut state, pg(10, 1), &[(0, 0, 10)]), refused);
}

#[test]
fn a_region_of_a_file_that_is_being_dropped_is_not_opened() {
    let gone = RegionOutcome::Refused(RegionRefusal::Dropped);
    let mut state = PartitionState::new(HOME);
    assert_eq!(region(&mut state, RegionMutation::Open { id: REGION }), gone, "no record");
    meet(&mut state);
    change(&mut state, FileChange::DropBegin);
    // Nobody would ask it to drop anything: the list of regions was made.
    assert_eq!(region(&mut state, RegionMutation::Open { id: REGION }), gone);
    assert!(state.regions.get(REGION).is_none());
    change(&mut state, FileChange::DropEnd);
    assert_eq!(region(&mut state, RegionMutation::Open { id: REGION }), gone);
}

#[test]
fn a_prestage_covers_no_more_than_a_region() {
    let mut state = opened();
    let range = Range { start: 0, end: u64::MAX };
    let begin =
        RegionMutation::StageBegin { id: REGION, op: OpId(1), process: OURS, range, epoch: EPOCH };
    let refused = region(&mut state, begin);
    assert!(matches!(refused, RegionOutcome::Refused(RegionRefusal::Invalid(_))), "{refused:?}");
    assert_eq!(state.regions.totals().fragments, 0);
}
