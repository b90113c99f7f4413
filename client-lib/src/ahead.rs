//! Read-ahead: in the order of the file, at even distances in it, and in the order of writing.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use bb_pgio::ReadOptions;
use bb_proto::{Capability, PgBody, PgId};
use futures_util::future::join;
use futures_util::{StreamExt, stream};

use crate::cache::{Cached, Key, SEGMENT_BYTES};
use crate::client::Inner;
use crate::file::File;
use crate::maps::{Granted, is_later};
use crate::reader::{Plan, Source, index, segments};

/// First window of read-ahead, in bytes; doubles with each turn.
const AHEAD_BYTES_MIN: u64 = 1 << 20;
/// First window in the order of writing: who reads by chance in that order twice loses little.
const GROUP_BYTES_MIN: u64 = SEGMENT_BYTES as u64;
/// Pieces that read-ahead fetches at a time.
const AHEAD_PARALLEL: usize = 8;
/// Reads that one turn looks ahead at the most: at large distances each needs a page of the map. And
/// for each that there was at this distance, at the most:
const STRIDES_MAX: u64 = 512;
const STRIDES_PER_READ: u64 = 8;

/// How a read follows the ones before it, and so how its bytes are best fetched. In any order, what
/// is on its way in whole segments is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// Not at all: what was asked for, and nothing is kept.
    None,
    /// At an even distance: what was asked for, which may be on its way.
    Strided,
    /// What lies beside it will be asked for as well: in whole segments.
    Sequential,
}

/// What an open file's last reads say about the next.
#[derive(Default)]
pub(crate) struct ReadAhead {
    last: Range<u64>,
    /// Distance between the starts of the last two reads, and how many more before had it.
    stride: u64,
    even: u64,
    window: u64,
    /// Fetched or under way is what begins below.
    done: u64,
    running: bool,
    /// What lies at even distances in the file lies side by side in its groups.
    packed: bool,
    writing: Writing,
}

/// A reader that follows the order of writing, which is that of bytes in groups.
#[derive(Default)]
struct Writing {
    /// Where the last read ended, and whether its group ends there.
    at: Option<(PgId, u64, bool)>,
    window: u64,
}

impl ReadAhead {
    /// Takes note of a read; what to fetch ahead of the next ones, as ranges of the file.
    fn follow(&mut self, range: &Range<u64>, size: u64, most: u64) -> (Order, Vec<Range<u64>>) {
        let last = std::mem::replace(&mut self.last, range.clone());
        let from_start = range.start == 0 && range.end >= AHEAD_BYTES_MIN.min(size);
        if (range.start == last.end && range.start > 0) || from_start {
            if std::mem::take(&mut self.even) > 0 {
                (self.window, self.done) = (0, 0);
            }
            return (Order::Sequential, self.contiguous(range, size, most));
        }
        let len = range.end - range.start;
        let stride = range.start.saturating_sub(last.start);
        if stride > len && stride == self.stride && last.end - last.start == len {
            self.even += 1;
        } else {
            (self.stride, self.even, self.packed) = (stride, 0, false);
            (self.window, self.done) = (0, range.end);
            return (Order::None, Vec::new());
        }
        let order = if self.packed { Order::Sequential } else { Order::Strided };
        (order, self.strided(range, size, most))
    }

    /// Twice as far as the last time.
    fn widen(&mut self, most: u64) {
        self.window = (self.window * 2).clamp(AHEAD_BYTES_MIN, most.max(AHEAD_BYTES_MIN));
    }

    /// What comes behind `range`. Not for less than half a window: few large turns instead of many
    /// small ones.
    fn contiguous(&mut self, range: &Range<u64>, size: u64, most: u64) -> Vec<Range<u64>> {
        self.widen(most);
        let from = self.done.max(range.end);
        let to = size.min(range.end + self.window);
        if self.running || from + self.window / 2 > to {
            return Vec::new();
        }
        self.done = to;
        std::iter::once(from..to).collect()
    }

    /// The next reads at the same distance, as many as fill the window.
    fn strided(&mut self, range: &Range<u64>, size: u64, most: u64) -> Vec<Range<u64>> {
        if self.running {
            return Vec::new();
        }
        let (len, stride) = (range.end - range.start, self.stride);
        let window = self.window.clamp(AHEAD_BYTES_MIN, most.max(AHEAD_BYTES_MIN));
        let reads = (window / len).clamp(1, STRIDES_MAX.min(STRIDES_PER_READ * self.even));
        let ahead = self.done.saturating_sub(range.end).div_ceil(stride);
        if ahead > reads / 2 {
            return Vec::new();
        }
        self.widen(most);
        let starts = (ahead + 1..=reads).map(|n| range.start.saturating_add(n * stride));
        let wanted: Vec<_> = starts
            .take_while(|start| *start < size)
            .map(|start| start..size.min(start + len))
            .collect();
        self.done = wanted.last().map_or(self.done, |last| last.end);
        wanted
    }
}

impl Inner {
    /// How this read follows the last ones; starts to read ahead of the next. Without read-ahead no
    /// read fetches more than it was asked for.
    pub fn follow(self: &Rc<Self>, file: &File, range: &Range<u64>) -> Order {
        let most = self.options.read_ahead_bytes;
        if most == 0 || range.is_empty() {
            return Order::None;
        }
        let mut ahead = file.ahead().borrow_mut();
        let (order, wanted) = ahead.follow(range, file.node.size(), most);
        if !wanted.is_empty() {
            ahead.running = true;
            let strided = ahead.even > 0;
            self.start_ahead(file, wanted, strided);
        }
        order
    }

    /// Reads ahead of one that follows the order of writing: the rest of its group, and then the
    /// session's next one.
    pub fn follow_writing(self: &Rc<Self>, file: &File, plans: &[Plan]) {
        let (Some(first), Some(last)) = (plans.first(), plans.last()) else { return };
        let (Some(first), Some(last)) = (Place::of(first), Place::of(last)) else { return };
        let most = self.options.read_ahead_bytes;
        let mut ahead = file.ahead().borrow_mut();
        let writing = &mut ahead.writing;
        let ends = last.end == last.group.data_bytes();
        let before = writing.at.replace((last.group.pg, last.end, ends));
        let follows = before.is_some_and(|(pg, end, ended)| {
            (pg, end) == (first.group.pg, first.from)
                || ended && first.from == 0 && is_later(first.group.pg, pg)
        });
        if !follows || most == 0 {
            writing.window = 0;
            return;
        }
        let segment = |at: u64| at / SEGMENT_BYTES as u64;
        if writing.window > 0 && segment(last.end) == segment(first.from) {
            return;
        }
        writing.window = (writing.window * 2).clamp(GROUP_BYTES_MIN, most.max(GROUP_BYTES_MIN));
        let end = last.end + writing.window;
        drop(ahead);
        let mut pieces = Vec::new();
        let mut want = |group: &Rc<Granted>, range: Range<u64>| {
            let len = index(range.end.saturating_sub(range.start));
            let keys = segments(group, index(range.start), len);
            pieces
                .extend(keys.filter(|key| !self.cache.knows(*key)).map(|key| (group.clone(), key)));
        };
        want(last.group, last.end..end.min(last.group.data_bytes()));
        if end > last.group.data_bytes()
            && let Some(next) = file.node.maps.borrow().group_after(last.group.pg)
        {
            want(&next, 0..(end - last.group.data_bytes()).min(next.data_bytes()));
        }
        if pieces.is_empty() {
            return;
        }
        let (inner, capability) = (self.clone(), file.opened.capability.get());
        let capability = self.capability_of(&file.node, &capability);
        self.rt().spawn(async move { inner.fetch_pieces(&capability, pieces).await });
    }

    fn start_ahead(self: &Rc<Self>, file: &File, wanted: Vec<Range<u64>>, strided: bool) {
        let (inner, node) = (self.clone(), file.node.clone());
        let opened = file.opened.clone();
        let ahead = file.ahead().clone();
        self.rt().spawn(async move {
            let capability = inner.capability_of(&node, &opened.capability.get());
            let mut plans = Vec::new();
            for range in &wanted {
                if inner.plan(&node, &capability, range, &mut plans).await.is_err() {
                    // Who reads it meets its errors.
                    break;
                }
            }
            let packed = !strided || are_packed(&plans);
            // Before anything is fetched: the next read may want what has not begun yet.
            ahead.borrow_mut().packed = strided && packed;
            inner.fetch_ahead(&capability, &plans, packed).await;
            ahead.borrow_mut().running = false;
        });
    }

    /// Fetches pieces of a file: in whole segments where they lie side by side in a group, else only
    /// themselves.
    async fn fetch_ahead(self: &Rc<Self>, capability: &Capability, plans: &[Plan], packed: bool) {
        let mut keys = BTreeSet::new();
        let mut wanted = Vec::new();
        for plan in plans {
            let Source::Group { descriptor, pg_offset } = &plan.source else { continue };
            let len = index(plan.range.end - plan.range.start);
            let mut want = |key| {
                if keys.insert(key) {
                    wanted.push((descriptor.clone(), key));
                }
            };
            if packed {
                segments(descriptor, *pg_offset, len).for_each(want);
            } else {
                want(Key::new(descriptor.pg, *pg_offset, len));
            }
        }
        if packed {
            self.fetch_pieces(capability, wanted).await;
        } else {
            self.fetch_scattered(capability, wanted).await;
        }
    }

    /// Pieces that lie apart, in a request for each block.
    async fn fetch_scattered(
        self: &Rc<Self>,
        capability: &Capability,
        wanted: Vec<(Rc<Granted>, Key)>,
    ) {
        let mut blocks: BTreeMap<(PgId, usize), (Rc<Granted>, Vec<Key>)> = BTreeMap::new();
        let mut others = Vec::new();
        for (descriptor, key) in wanted {
            match block_of(&descriptor, key) {
                Some(block) => {
                    let (_, keys) =
                        blocks.entry((descriptor.pg, block)).or_insert((descriptor, Vec::new()));
                    keys.push(key);
                }
                // In two blocks, or in none.
                None => others.push((descriptor, key)),
            }
        }
        self.link.count(|counters| {
            counters.read_ahead += blocks.values().map(|(_, keys)| keys.len() as u64).sum::<u64>();
        });
        let in_blocks = stream::iter(blocks.into_values()).for_each_concurrent(
            AHEAD_PARALLEL,
            |(descriptor, mut keys)| async move {
                keys.sort_by_key(Key::from);
                let get = |key: Key| match self.cache.get(key) {
                    Cached::Fetch(fetching) => Some((key.range(), fetching)),
                    Cached::Here(_) | Cached::Coming(_) => None,
                };
                keys.retain(|key| !self.cache.was_read(*key));
                let (ranges, fetching): (Vec<_>, Vec<_>) = keys.into_iter().filter_map(get).unzip();
                let capability = descriptor.capability(capability);
                let got = self.io.fetch_scattered(&capability, &descriptor, &ranges).await;
                // Where nothing came, who reads it asks for it again.
                for (fetching, piece) in fetching.into_iter().zip(got.into_iter().flatten()) {
                    let bytes = piece.bytes.len() as u64;
                    fetching.done_with_share(&Rc::new(vec![piece]), bytes);
                }
            },
        );
        join(in_blocks, self.fetch_pieces(capability, others)).await;
    }

    async fn fetch_pieces(
        self: &Rc<Self>,
        capability: &Capability,
        pieces: Vec<(Rc<Granted>, Key)>,
    ) {
        self.link.count(|counters| counters.read_ahead += pieces.len() as u64);
        stream::iter(pieces)
            .for_each_concurrent(AHEAD_PARALLEL, |(descriptor, key)| async move {
                if self.cache.knows(key) || self.cache.was_read(key) {
                    return;
                }
                // Who reads it meets its errors.
                let options = ReadOptions::default();
                let capability = descriptor.capability(capability);
                let _ = self.kept(&capability, &descriptor, key, options).await;
            })
            .await;
    }
}

/// The data block that a piece lies in, if it is one.
fn block_of(descriptor: &Granted, key: Key) -> Option<usize> {
    let PgBody::Blocks { block_log2, .. } = &descriptor.body else { return None };
    let range = key.range();
    let block = range.start.checked_shr(u32::from(*block_log2))?;
    (block == (range.end - 1).checked_shr(u32::from(*block_log2))?).then_some(block)
}

/// Where a piece lies in its group.
struct Place<'a> {
    group: &'a Rc<Granted>,
    from: u64,
    end: u64,
}

impl<'a> Place<'a> {
    fn of(plan: &'a Plan) -> Option<Self> {
        let Source::Group { descriptor: group, pg_offset } = &plan.source else { return None };
        let from = *pg_offset as u64;
        Some(Self { group, from, end: from + (plan.range.end - plan.range.start) })
    }
}

/// True if most of these pieces continue the one before them in its group.
fn are_packed(plans: &[Plan]) -> bool {
    let continues = |pair: &&[Plan]| match (Place::of(&pair[0]), Place::of(&pair[1])) {
        (Some(one), Some(other)) => one.group.pg == other.group.pg && one.end == other.from,
        _ => false,
    };
    plans.windows(2).filter(continues).count() * 2 > plans.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 8 << 20;
    const SIZE: u64 = 1 << 40;

    /// Reads of `len` bytes at multiples of `stride`; how many lie ahead of each that was asked for
    /// in the same turn. Each turn has ended when the next read comes.
    fn ahead_of(len: u64, stride: u64, reads: u64) -> Vec<u64> {
        let mut ahead = ReadAhead::default();
        let mut wanted = |n: u64| {
            let range = n * stride..n * stride + len;
            let (_, wanted) = ahead.follow(&range, SIZE, MOST);
            assert!(wanted.iter().all(|w| w.start % stride == 0 && w.end - w.start == len));
            wanted.len() as u64
        };
        (10..10 + reads).map(&mut wanted).collect()
    }

    #[test]
    fn reads_at_a_distance_look_ahead_from_the_third_one_on_and_further_the_longer_it_lasts() {
        let counts = ahead_of(4096, 1 << 30, 400);
        assert_eq!(counts[..3], [0, 0, 8]);
        let mut total = 0;
        for (seen, count) in (1..).zip(&counts) {
            total += count;
            assert!(total <= seen + 8 * seen, "{total} after {seen}: a chance costs little");
        }
        assert!(total > 400, "all of them are asked for ahead of their turn");
    }

    #[test]
    fn no_more_is_ahead_than_the_window_holds_and_nothing_twice() {
        let (len, stride) = (47_008, 4 * 47_008);
        let mut ahead = ReadAhead::default();
        let mut end = 0;
        for n in 0..2_000 {
            let range = n * stride..n * stride + len;
            let (order, wanted) = ahead.follow(&range, 1_500 * stride, MOST);
            assert!(n < 2 || order == Order::Strided);
            for one in wanted {
                assert!(one.start >= end && one.start > range.start, "read {n}: {one:?}");
                assert!(one.start < 1_500 * stride, "behind the end of the file");
                end = one.end;
            }
            assert!(end.saturating_sub(range.end) / stride * len <= MOST);
        }
        assert_eq!(end, 1_499 * stride + len);
    }

    #[test]
    fn chance_is_no_order_and_a_read_where_the_last_ended_is_sequential() {
        let mut ahead = ReadAhead::default();
        for at in [7_u64, 3, 9, 1, 8, 2, 30, 4] {
            let range = at << 20..(at << 20) + 4096;
            assert_eq!(ahead.follow(&range, SIZE, MOST), (Order::None, Vec::new()));
        }
        let (order, wanted) = ahead.follow(&((4 << 20) + 4096..(4 << 20) + 8192), SIZE, MOST);
        assert_eq!((order, wanted.len()), (Order::Sequential, 1));
    }
}
