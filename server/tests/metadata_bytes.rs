//! What metadata costs (rule 16): memory as an allocator sees it, and bytes of log. Run with
//! `--no-capture` to see the figures.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bb_proto::{
    Capability, Commit, DeviceId, Fid, Fragment, Member, OpId, PartitionId, PgBody, PgDescriptor,
    PgId, RegionIndex, Rights, SessionId, Tick, TruncateEpoch,
};
use bb_server::partition::mutation::Mutation;
use bb_server::partition::pg_mutation::{CommitRecord, InlineBytes, PgMutation};
use bb_server::partition::record::RECORD_HEADER_BYTES;
use bb_server::partition::region_mutation::{RegionId, RegionMutation};
use bb_server::partition::snapshot::encode_snapshot;
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
    open(&mut state, RegionIndex(0), 40);
    state
}

fn open(state: &mut PartitionState, region: RegionIndex, region_log2: u8) {
    state.apply(&Mutation::Region(RegionMutation::Truncate {
        id: RegionId { fid: FID, region },
        region_log2,
        epoch: TruncateEpoch(1),
        size: u64::MAX,
        done: true,
    }));
}

/// Processor time of this thread, in seconds: other processes take none of it.
fn now() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call, and the clock exists.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
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
        mtime_ns: 0,
        closes: 0,
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
    let record = CommitRecord { commit, absent_members: 0, inline: InlineBytes::default() };
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
fn a_fragment_takes_at_most_24_bytes_of_memory_in_whatever_order_it_comes() {
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
        assert!(used <= 24 * fragments, "{name}: {used} bytes for {fragments} fragments");
        assert!(used <= counted, "{name}: the budget counts {counted}, {used} are used");
        // What the log can keep is measured by the budget (server/src/node/start.rs).
        let logged = encode_snapshot(&state, std::iter::empty::<&[u8]>()).len() as u64;
        println!("{name}: {:.1} bytes in a snapshot", logged as f64 / fragments as f64);
        assert!(logged <= state.memory_bytes(), "{name}: a snapshot of {logged} bytes");
    }
}

const RECORD: u64 = 47_008;
const GROUP: u64 = 2 << 20;
const REGION_LOG2: u8 = 26;

/// The groups that `ranks` ranks make of a shared file of strictly interleaved records, so many of
/// each rank. A record that does not fit goes on in the next group; fragments end at the borders of
/// regions.
fn shared_file(ranks: u64, groups_each: u32) -> Vec<Vec<Fragment>> {
    let mut groups = Vec::new();
    for rank in 0..ranks {
        let (mut record, mut done) = (rank, 0);
        for _ in 0..groups_each {
            let mut fragments = Vec::new();
            let mut used = 0;
            while used < GROUP {
                let offset = record * RECORD + done;
                let border = ((offset >> REGION_LOG2) + 1) << REGION_LOG2;
                let len = (RECORD - done).min(GROUP - used).min(border - offset);
                let narrow = |bytes: u64| u32::try_from(bytes).expect("less than a group");
                fragments.push(Fragment { offset, pg_offset: narrow(used), len: narrow(len) });
                used += len;
                done += len;
                if done == RECORD {
                    (record, done) = (record + ranks, 0);
                }
            }
            groups.push(fragments);
        }
    }
    groups
}

/// In the order in which they arrive: ranks advance at about the same speed.
fn arrivals(groups: usize, each: usize) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> = (0..groups)
        .map(|group| {
            let luck = (group as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 62;
            ((group % each) as u64 + luck, group)
        })
        .collect();
    order.sort_by_key(|(turn, group)| (*turn, (*group as u64).wrapping_mul(0x2545_F491_4F6C_DD1D)));
    order.into_iter().map(|(_, group)| group).collect()
}

#[test]
fn an_additional_fragment_of_a_shared_file_takes_at_most_24_bytes() {
    for (ranks, each) in [(4, 700_u32), (16, 175), (64, 360)] {
        let groups = shared_file(ranks, each);
        let end = groups.iter().flatten().map(Fragment::end).max().unwrap();
        let order = arrivals(groups.len(), each as usize);
        let fill = |few: bool| {
            let mut state = PartitionState::new(HOME);
            for region in 0..=u32::try_from((end - 1) >> REGION_LOG2).unwrap() {
                open(&mut state, RegionIndex(region), REGION_LOG2);
            }
            let mutations: Vec<Mutation> = order
                .iter()
                .zip(0..)
                .map(|(group, sequence)| {
                    let mut fragments = groups[*group].clone();
                    if few {
                        fragments.truncate(1);
                    }
                    commit(sequence, 3, fragments)
                })
                .collect();
            let (before, start) = (live(), now());
            mutations.iter().for_each(|mutation| apply(&mut state, mutation));
            let seconds = now() - start;
            let used = u64::try_from(live() - before).unwrap();
            (state, used, seconds)
        };
        let (sparse, used_sparse, _) = fill(true);
        let (full, used_full, seconds) = fill(false);
        let fragments = full.regions.totals().fragments;
        let more = fragments - sparse.regions.totals().fragments;
        let used = used_full - used_sparse;
        let counted = full.memory_bytes() - sparse.memory_bytes();
        println!(
            "{ranks} ranks, {fragments} fragments: {:.1} bytes more for each, {:.1} counted; {:.0} ns \
             to apply one, {:.0} ns to find one",
            used as f64 / more as f64,
            counted as f64 / more as f64,
            seconds * 1e9 / fragments as f64,
            look_up_ns(&full, end),
        );
        assert!(used <= 24 * more, "{used} bytes for {more} fragments");
        assert!(used <= counted, "the budget counts {counted}, {used} are used");
    }
}

/// Of a page of a megabyte.
fn look_up_ns(state: &PartitionState, end: u64) -> f64 {
    const LOOKS: u64 = 100_000;
    let (mut found, start) = (0, now());
    for look in 0..LOOKS {
        let at = look.wrapping_mul(0x9E37_79B9_7F4A_7C15) % end;
        let region = RegionIndex(u32::try_from(at >> REGION_LOG2).expect("a small file"));
        let region = state.regions.get(RegionId { fid: FID, region }).expect("opened");
        found += region
            .fragments()
            .pieces(at, at + RECORD)
            .map(|piece| u64::from(piece.len))
            .sum::<u64>();
    }
    let ns = (now() - start) * 1e9 / LOOKS as f64;
    assert!(found > LOOKS * RECORD / 2);
    ns
}

#[test]
fn rule_16_the_budget_counts_what_regions_of_few_fragments_take_or_more() {
    const REGIONS: u32 = 2_000;
    for each in [1, 2, 3, 5, 9, 17, 40, 130, 260] {
        let mut state = PartitionState::new(HOME);
        let groups: Vec<Mutation> = (0..REGIONS)
            .map(|n| commit(n, 3, scattered(u64::from(n) << REGION_LOG2, 2048, each)))
            .collect();
        let (before, counted_before) = (live(), state.memory_bytes());
        (0..REGIONS).for_each(|n| open(&mut state, RegionIndex(n), REGION_LOG2));
        groups.iter().for_each(|group| apply(&mut state, group));
        let used = u64::try_from(live() - before).unwrap() / u64::from(REGIONS);
        let counted = (state.memory_bytes() - counted_before) / u64::from(REGIONS);
        println!("a region and its group, {each} fragments: {used} bytes, {counted} counted");
        assert!(used <= counted);
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
        let logged = encode_snapshot(&state, std::iter::empty::<&[u8]>()).len() as u64;
        assert!(logged <= state.memory_bytes(), "a snapshot of {logged} bytes");
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
