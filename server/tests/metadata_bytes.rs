//! What metadata costs (rule 16): memory as an allocator sees it, and bytes of log. Run with
//! `--no-capture` to see the figures.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bb_proto::{
    Capability, Commit, DeviceId, Fid, Fragment, Member, OpId, PartitionId, PgBody, PgDescriptor,
    PgId, RegionIndex, Rights, SessionId, Tick, TruncateEpoch,
};
use bb_server::partition::mutation::Mutation;
use bb_server::partition::pg_mutation::{CommitRecord, PgMutation};
use bb_server::partition::record::RECORD_HEADER_BYTES;
use bb_server::partition::region_mutation::{RegionId, RegionMutation};
use bb_server::partition::{Outcome, PartitionState};

struct Counting;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

/// An allocation takes what it asks for, in units of 16 bytes, and a word of overhead.
fn cost(layout: Layout) -> i64 {
    i64::try_from((layout.size() + 8).next_multiple_of(16)).unwrap_or(0)
}

// SAFETY: forwards to the system's allocator; the count does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LIVE.try_with(|live| live.set(live.get() + cost(layout)));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _ = LIVE.try_with(|live| live.set(live.get() - cost(layout)));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HOME: PartitionId = PartitionId(0);
const FID: Fid = Fid(1);

fn live() -> i64 {
    LIVE.get()
}

fn state() -> PartitionState {
    let mut state = PartitionState::new(HOME);
    state.apply(&Mutation::Region(RegionMutation::Truncate {
        id: RegionId { fid: FID, region: RegionIndex(0) },
        region_log2: 40,
        epoch: TruncateEpoch(1),
        size: u64::MAX,
        done: true,
    }));
    state
}

fn commit(sequence: u32, members: u8, fragments: Vec<Fragment>) -> Mutation {
    let commit = Commit {
        capability: Capability {
            session: SessionId(1),
            fid: FID,
            rights: Rights::WRITE,
            signature: [0; 16],
        },
        epoch: TruncateEpoch(1),
        size_raise: 0,
        stage: OpId(0),
        descriptor: PgDescriptor {
            pg: PgId { slot: Tick(1), session: SessionId(1), sequence, home: HOME },
            body: PgBody::Blocks {
                data: members - 2,
                parity: 2,
                codec: 1,
                block_log2: 20,
                chunk_log2: 14,
                members: (0..u32::from(members))
                    .map(|d| Member { device: DeviceId(d), crc: d })
                    .collect(),
            },
        },
        participants: Vec::new(),
        fragments,
    };
    let record = CommitRecord { commit, absent_members: 0, inline: Vec::new() };
    Mutation::Pg(PgMutation::Commit(Box::new(record)))
}

/// Where the fragments of a group begin, and how far apart they are.
type Order = fn(u32) -> (u64, u64);

/// Fragments that never continue each other: every second kilobyte, from `first`, `step` apart.
fn scattered(first: u64, step: u64, count: u32) -> Vec<Fragment> {
    (0..count)
        .map(|i| Fragment {
            offset: first + u64::from(i) * step,
            pg_offset: (i * 1024) % (1 << 20),
            len: 1024,
        })
        .collect()
}

fn apply(state: &mut PartitionState, mutation: &Mutation) {
    assert!(matches!(state.apply(mutation), Outcome::Pg(_)));
}

#[test]
fn a_fragment_takes_at_most_64_bytes_of_memory_in_whatever_order_it_comes() {
    const GROUPS: u32 = 100;
    const EACH: u32 = 1000;
    // Ascending; interleaved (each group's fragments lie between those of others, as IOR-hard's
    // do); and descending blocks.
    let orders: [(&str, Order); 3] = [
        ("ascending", |n| (u64::from(n) * 2048 * u64::from(EACH), 2048)),
        ("interleaved", |n| (u64::from(n) * 2048, 2048 * u64::from(GROUPS))),
        ("descending", |n| (u64::from(GROUPS - n) * 2048 * u64::from(EACH), 2048)),
    ];
    for (name, order) in orders {
        let mut state = state();
        let groups: Vec<Mutation> = (0..GROUPS)
            .map(|n| {
                let (first, step) = order(n);
                commit(n, 10, scattered(first, step, EACH))
            })
            .collect();
        let before = live();
        let counted_before = state.memory_bytes();
        groups.iter().for_each(|group| apply(&mut state, group));
        let fragments = u64::from(GROUPS * EACH);
        assert_eq!(state.regions.totals().fragments, fragments);
        let used = u64::try_from(live() - before).unwrap();
        let counted = state.memory_bytes() - counted_before;
        println!("{name}: {:.1} bytes a fragment, groups included", used as f64 / fragments as f64);
        assert!(used <= 64 * fragments, "{name}: {used} bytes for {fragments} fragments");
        assert!(used <= counted, "{name}: the budget counts {counted}, {used} are used");
    }
}

#[test]
fn rule_16_the_budget_counts_what_groups_take_or_more() {
    const GROUPS: u32 = 10_000;
    for members in [3, 10, 20] {
        let mut state = state();
        let groups: Vec<Mutation> =
            (0..GROUPS).map(|n| commit(n, members, scattered(u64::from(n) * 4096, 1, 1))).collect();
        let (before, counted_before) = (live(), state.memory_bytes());
        groups.iter().for_each(|group| apply(&mut state, group));
        let used = u64::try_from(live() - before).unwrap() / u64::from(GROUPS);
        let counted = (state.memory_bytes() - counted_before) / u64::from(GROUPS);
        println!("{members} members: {used} bytes a group with one fragment, {counted} counted");
        assert!(used <= counted);
        assert!(counted <= 2 * used, "the budget should not be wasted either");
    }
}

#[test]
fn a_fragment_takes_16_bytes_of_log_beyond_its_groups_record() {
    let bytes = |mutation: &Mutation| RECORD_HEADER_BYTES + mutation.encode_body().len();
    let one = bytes(&commit(1, 10, scattered(0, 2048, 1)));
    let many = bytes(&commit(1, 10, scattered(0, 2048, 101)));
    println!("a commit of an 8+2 group: {one} bytes of log with one fragment");
    assert_eq!(many - one, 100 * 16);
    assert!(one <= 300);
}
