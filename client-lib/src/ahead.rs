//! Read-ahead: in the order of the file, and in the order of writing inside a group.

use std::ops::Range;
use std::rc::Rc;

use bb_pgio::ReadOptions;
use bb_proto::Capability;
use futures_util::{StreamExt, stream};

use crate::cache::SEGMENT_BYTES;
use crate::client::Inner;
use crate::file::File;
use crate::maps::Granted;
use crate::reader::{Plan, Source, index};

/// First window of read-ahead, in bytes; doubles with each sequential read.
const AHEAD_BYTES_MIN: u64 = 1 << 20;
/// Segments that read-ahead fetches at a time.
const AHEAD_PARALLEL: usize = 8;

/// What an open file's last reads say about the next.
#[derive(Default)]
pub(crate) struct ReadAhead {
    /// Where the last read ended, in the file.
    next: u64,
    /// Where it ended in its group: a reader that follows the order of writing.
    group: Option<(bb_proto::PgId, u64)>,
    window: u64,
    /// Fetched or under way up to here.
    done: u64,
    running: bool,
}

impl Inner {
    /// True if this read follows the last one; starts to read ahead then. Without read-ahead no read
    /// fetches more than it was asked for.
    pub fn follow(self: &Rc<Self>, file: &File, range: &Range<u64>) -> bool {
        if self.options.read_ahead_bytes == 0 {
            return false;
        }
        let size = file.node.size();
        let mut ahead = file.ahead().borrow_mut();
        let follows = range.start == ahead.next && range.start > 0
            || range.start == 0 && range.end >= AHEAD_BYTES_MIN.min(size);
        ahead.next = range.end;
        if !follows {
            ahead.window = 0;
            ahead.done = range.end;
            return false;
        }
        ahead.window = (ahead.window * 2)
            .clamp(AHEAD_BYTES_MIN, self.options.read_ahead_bytes.max(AHEAD_BYTES_MIN));
        let from = ahead.done.max(range.end);
        let to = size.min(range.end + ahead.window);
        // Not for less than half a window: few large turns instead of many small ones.
        if !ahead.running && from + ahead.window / 2 <= to {
            ahead.done = to;
            ahead.running = true;
            self.start_ahead(file, from..to);
        }
        true
    }

    /// A reader that follows the order of writing inside a group is sequential for that group.
    pub fn follow_group(self: &Rc<Self>, file: &File, plans: &[Plan]) {
        let [Plan { range, source: Source::Group { descriptor, pg_offset } }] = plans else {
            return;
        };
        let end = *pg_offset as u64 + (range.end - range.start);
        let mut ahead = file.ahead().borrow_mut();
        let follows = ahead.group == Some((descriptor.pg, *pg_offset as u64));
        ahead.group = Some((descriptor.pg, end));
        drop(ahead);
        if follows && self.options.read_ahead_bytes > 0 && end < descriptor.data_bytes() {
            let (inner, descriptor) = (self.clone(), descriptor.clone());
            let capability = self.capability_of(&file.node, &file.opened.capability.get());
            let segment = u32::try_from(index(end) / SEGMENT_BYTES).unwrap_or(u32::MAX);
            if self.cache.peek((descriptor.pg, segment)).is_none() {
                self.link.count(|counters| counters.read_ahead += 1);
                self.rt().spawn(async move {
                    // Who reads it meets its errors.
                    let options = ReadOptions::default();
                    let capability = descriptor.capability(&capability);
                    let _ = inner.segment(&capability, &descriptor, segment, options).await;
                });
            }
        }
    }

    fn start_ahead(self: &Rc<Self>, file: &File, range: Range<u64>) {
        let (inner, node) = (self.clone(), file.node.clone());
        let opened = file.opened.clone();
        let ahead = file.ahead().clone();
        self.rt().spawn(async move {
            let capability = inner.capability_of(&node, &opened.capability.get());
            let mut plans = Vec::new();
            if inner.plan(&node, &capability, &range, &mut plans).await.is_ok() {
                inner.fetch_ahead(&capability, &plans).await;
            }
            ahead.borrow_mut().running = false;
        });
    }

    async fn fetch_ahead(self: &Rc<Self>, capability: &Capability, plans: &[Plan]) {
        let mut wanted: Vec<(Rc<Granted>, u32)> = Vec::new();
        for plan in plans {
            let Source::Group { descriptor, pg_offset } = &plan.source else { continue };
            let end = pg_offset + index(plan.range.end - plan.range.start);
            for segment in pg_offset / SEGMENT_BYTES..end.div_ceil(SEGMENT_BYTES) {
                let segment = u32::try_from(segment).unwrap_or(u32::MAX);
                let known = |(d, s): &(Rc<Granted>, u32)| d.pg == descriptor.pg && *s == segment;
                if !wanted.iter().rev().take(64).any(known) {
                    wanted.push((descriptor.clone(), segment));
                }
            }
        }
        self.link.count(|counters| counters.read_ahead += wanted.len() as u64);
        stream::iter(wanted)
            .for_each_concurrent(AHEAD_PARALLEL, |(descriptor, segment)| async move {
                // Who reads it meets its errors.
                let options = ReadOptions::default();
                let capability = descriptor.capability(capability);
                let _ = self.segment(&capability, &descriptor, segment, options).await;
            })
            .await;
    }
}
