//! Each planted error does the harm that its rule prevents, so that the simulator has something to
//! find.

use bb_proto::meta::{FragmentState, PgStatus, PgStatusReply, decode, encode};
use bb_proto::{Fragment, Incarnation, Kind, NodeId, OpId, TruncateEpoch};
use bb_transport::Role;

use super::fragment_map::Place;
use super::mutation::Mutation;
use super::region_mutation::{ProcessId, Range, RegionId, RegionMutation, Written};
use super::state::PartitionState;
use super::test_world::{EPOCH, REGION_LOG2, commit_of, far_region, pg_at, simulate};
use crate::planted::{self, Planted};

const START: u64 = 1 << REGION_LOG2;

/// Makes the error until it is dropped.
struct Made;

impl Made {
    fn new(error: Planted) -> Self {
        planted::set(Some(error));
        Self
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        planted::set(None);
    }
}

struct Subject {
    state: PartitionState,
    fid: bb_proto::Fid,
    id: RegionId,
}

fn subject() -> Subject {
    let (fid, region, at) = far_region(1);
    let mut subject = Subject { state: PartitionState::new(at), fid, id: RegionId { fid, region } };
    subject.truncate(EPOCH, u64::MAX);
    subject
}

impl Subject {
    fn truncate(&mut self, epoch: TruncateEpoch, size: u64) {
        let id = self.id;
        self.region(RegionMutation::Truncate {
            id,
            region_log2: REGION_LOG2,
            epoch,
            size,
            done: true,
        });
    }

    fn region(&mut self, mutation: RegionMutation) {
        self.state.apply(&Mutation::Region(mutation)).region().unwrap();
    }

    fn commit(&mut self, sequence: u32, stage: u64) {
        let mut commit = commit_of(self.fid, pg_at(self.state.id(), 1, sequence), 0, 10);
        commit.stage = OpId(stage);
        let record = super::pg_mutation::CommitRecord {
            commit,
            absent_members: 0,
            inline: Default::default(),
        };
        let mutation = super::pg_mutation::PgMutation::Commit(Box::new(record));
        self.state.apply(&Mutation::Pg(mutation)).pg().unwrap();
    }

    /// Sequence of the group that the first byte lies in, and its state.
    fn first(&self) -> Option<(u32, FragmentState)> {
        let region = self.state.regions.get(self.id)?;
        match region.fragments().pieces(START, START + 1).next()?.place {
            Place::Pg { pg, state, .. } => {
                Some((self.state.pgs.get(pg).descriptor.pg.sequence, state))
            }
            Place::Placeholder(_) => None,
        }
    }
}

#[test]
fn forget_truncate_epoch_brings_back_what_was_cut() {
    let run = || {
        let mut subject = subject();
        subject.truncate(TruncateEpoch(EPOCH.0 + 1), 0);
        subject.commit(1, 0);
        subject.first()
    };
    assert_eq!(run(), None);
    let _made = Made::new(Planted::ForgetTruncateEpoch);
    assert_eq!(run(), Some((1, FragmentState::Dirty)));
}

#[test]
fn forget_commit_ids_brings_back_what_was_overwritten() {
    let run = || {
        let mut subject = subject();
        subject.commit(1, 0);
        subject.commit(2, 0);
        subject.commit(1, 0);
        subject.first()
    };
    assert_eq!(run(), Some((2, FragmentState::Dirty)));
    let _made = Made::new(Planted::ForgetCommitIds);
    assert_eq!(run(), Some((1, FragmentState::Dirty)));
}

#[test]
fn mark_clean_changed_lets_a_newer_write_be_purged() {
    let run = || {
        let mut subject = subject();
        let (id, op) = (subject.id, OpId(1));
        subject.commit(1, 0);
        let process = ProcessId { node: NodeId(1), incarnation: Incarnation(1) };
        let range = Range { start: START, end: 2 * START };
        subject.region(RegionMutation::SyncBegin { id, op, process, range });
        subject.commit(2, 0);
        let fragment = Fragment { offset: START, pg_offset: 0, len: 10 };
        let written = vec![Written { pg: pg_at(subject.state.id(), 1, 1), fragment }];
        subject.region(RegionMutation::SyncEnd { id, op, written });
        subject.first()
    };
    assert_eq!(run(), Some((2, FragmentState::Dirty)));
    let _made = Made::new(Planted::MarkCleanChanged);
    assert_eq!(run(), Some((2, FragmentState::Clean)));
}

#[test]
fn prestage_overwrites_loses_a_newer_write() {
    let run = || {
        let mut subject = subject();
        subject.commit(1, 0);
        subject.commit(2, 7);
        subject.first()
    };
    assert_eq!(run(), Some((1, FragmentState::Dirty)));
    let _made = Made::new(Planted::PrestageOverwrites);
    assert_eq!(run(), Some((2, FragmentState::Clean)));
}

#[test]
fn skip_horizon_lets_a_commit_follow_the_answer_unknown() {
    let run = || {
        simulate(1, |world| async move {
            let (fid, _, at) = far_region(1);
            world.add_file(fid, EPOCH);
            let life = world.start().await;
            let pg = pg_at(at, 900, 1);
            let body = encode(&PgStatus { pgs: vec![pg.into()], settle: true });
            let answer = life.send(Role::Server, Kind::PgStatus, at, body, None).await.unwrap();
            let reply: PgStatusReply = decode(&answer.body).unwrap();
            assert_eq!(reply.entries[0].state, 0);
            life.commit(at, &commit_of(fid, pg, 0, 10)).await.is_ok()
        })
    };
    assert!(!run());
    let _made = Made::new(Planted::SkipHorizon);
    assert!(run());
}

#[test]
fn free_before_commit_frees_what_a_power_cut_brings_back() {
    let run = || {
        simulate(1, |world| async move {
            let (fid, _, at) = far_region(1);
            world.add_file(fid, EPOCH);
            let life = world.start().await;
            let (first, second) = (pg_at(at, 990, 1), pg_at(at, 990, 2));
            life.commit(at, &commit_of(fid, first, 0, 10)).await.unwrap();
            world.disk.stall();
            let sender = super::test_world::Life::clone_for_test(&life);
            world.rt.spawn(async move {
                let _ = sender.commit(at, &commit_of(fid, second, 0, 10)).await;
            });
            world.wait_s(1).await;
            world.disk.release();
            world.cut(life);
            let life = world.start().await;
            let lives = life.host.partition(at).unwrap().state().pgs.find(first).is_some();
            lives && world.freed(first, 0) > 0
        })
    };
    assert!(!run());
    let _made = Made::new(Planted::FreeBeforeCommit);
    assert!(run());
}
