//! Which reads and writes bring fragments to the backing file system: pure arithmetic.
//!
//! Fragments are sorted by file offset and cut into batches. A batch is what is in memory at once:
//! buffers of up to [`BATCH_BYTES`], that lie in one aligned stretch of the file. What lies side by
//! side in the file shares a buffer; what lies close together in one group is read with one call.

use std::collections::BTreeMap;

use bb_proto::{Fragment, PgDescriptor, PgId};
use bb_runtime::{SLAB_BYTES_MAX, SLAB_BYTES_MIN};

use crate::partition::region_mutation::Written;

/// Bytes of a batch, and how the file is cut into batches.
pub(super) const BATCH_BYTES: u64 = 4 << 20;
/// Largest buffer; buffers don't cross multiples of it.
const BUFFER_BYTES: u64 = SLAB_BYTES_MAX as u64;
/// Two ranges of a group with at most so much between them are read at once: a call costs as much
/// as reading that.
const GAP_BYTES: u32 = 64 << 10;
/// Longest read: half of a full group.
const READ_BYTES_MAX: u32 = 1 << 20;

/// Bytes of the file, and where they lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// Which of the round's groups.
    pub group: usize,
    pub fragment: Fragment,
}

/// A buffer of a batch: it holds the bytes of the file from `offset` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub offset: u64,
    pub len: usize,
}

/// A range of a group, and the parts that are in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Read {
    pub group: usize,
    pub from: u32,
    pub to: u32,
    pub parts: Vec<Part>,
}

/// What is read, held and written together.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Batch {
    pub spans: Vec<Span>,
    /// Sorted by file offset; each lies in one span.
    pub parts: Vec<Part>,
}

/// All that one round of a sync writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub groups: Vec<PgDescriptor>,
    /// Sorted by file offset, without overlap.
    pub parts: Vec<Part>,
}

impl Part {
    fn cut(self, from: u64, to: u64) -> Self {
        let Fragment { offset, pg_offset, .. } = self.fragment;
        let skipped = u32::try_from(from - offset).expect("within the part");
        let len = u32::try_from(to - from).expect("within the part");
        let fragment = Fragment { offset: from, pg_offset: pg_offset + skipped, len };
        Self { group: self.group, fragment }
    }
}

impl Span {
    const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

impl Batch {
    /// Cuts parts, sorted by file offset, into batches.
    pub(super) fn all_of(parts: &[Part]) -> Vec<Self> {
        let mut batches: Vec<Self> = Vec::new();
        for whole in parts {
            let (mut at, end) = (whole.fragment.offset, whole.fragment.end());
            while at < end {
                let border = (at / BUFFER_BYTES + 1) * BUFFER_BYTES;
                let part = whole.cut(at, end.min(border));
                let fits = batches.last().is_some_and(|batch| batch.takes(&part));
                if !fits {
                    batches.push(Self::default());
                }
                if let Some(batch) = batches.last_mut() {
                    batch.push(part);
                }
                at = part.fragment.end();
            }
        }
        batches
    }

    fn takes(&self, part: &Part) -> bool {
        let Some(first) = self.spans.first() else { return true };
        let same = first.offset / BATCH_BYTES == part.fragment.offset / BATCH_BYTES;
        same && (self.continues(part) || self.buffer_bytes() < BATCH_BYTES)
    }

    fn continues(&self, part: &Part) -> bool {
        let at = part.fragment.offset;
        self.spans.last().is_some_and(|s| s.end() == at && !at.is_multiple_of(BUFFER_BYTES))
    }

    fn push(&mut self, part: Part) {
        let len = part.fragment.len as usize;
        if self.continues(&part) {
            if let Some(span) = self.spans.last_mut() {
                span.len += len;
            }
        } else {
            self.spans.push(Span { offset: part.fragment.offset, len });
        }
        self.parts.push(part);
    }

    /// Memory of its buffers: slabs are powers of two.
    pub(super) fn buffer_bytes(&self) -> u64 {
        self.spans.iter().map(|s| s.len.next_power_of_two().max(SLAB_BYTES_MIN) as u64).sum()
    }

    /// The span that holds an offset.
    pub(super) fn span_of(&self, offset: u64) -> usize {
        self.spans.partition_point(|span| span.offset <= offset).saturating_sub(1)
    }

    /// What is read for it: by group, ranges that lie close together joined.
    pub(super) fn reads(&self) -> Vec<Read> {
        let mut by_group: BTreeMap<usize, Vec<Part>> = BTreeMap::new();
        for part in &self.parts {
            by_group.entry(part.group).or_default().push(*part);
        }
        let mut reads: Vec<Read> = Vec::new();
        for (group, mut parts) in by_group {
            parts.sort_unstable_by_key(|part| part.fragment.pg_offset);
            for part in parts {
                let from = part.fragment.pg_offset;
                let to = from + part.fragment.len;
                match reads.last_mut() {
                    Some(read)
                        if read.group == group
                            && from <= read.to.saturating_add(GAP_BYTES)
                            && to.max(read.to) - read.from <= READ_BYTES_MAX =>
                    {
                        read.to = read.to.max(to);
                        read.parts.push(part);
                    }
                    _ => reads.push(Read { group, from, to, parts: vec![part] }),
                }
            }
        }
        reads
    }
}

/// Ranges of the file, in order, that `parts` (sorted) cover without a gap.
pub(super) fn runs(parts: &[Part]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for part in parts {
        match runs.last_mut() {
            Some(run) if run.1 == part.fragment.offset => run.1 = part.fragment.end(),
            _ => runs.push((part.fragment.offset, part.fragment.end())),
        }
    }
    runs
}

/// What the log is told of `parts` (sorted): pieces that continue each other are one.
pub(super) fn written(groups: &[PgDescriptor], parts: &[Part]) -> Vec<Written> {
    let mut list: Vec<Written> = Vec::new();
    let name = |part: &Part| -> PgId { groups[part.group].pg };
    for part in parts {
        let (pg, next) = (name(part), part.fragment);
        if let Some(last) = list.last_mut()
            && last.pg == pg
            && last.fragment.end() == next.offset
            && last.fragment.pg_offset + last.fragment.len == next.pg_offset
        {
            last.fragment.len += next.len;
        } else {
            list.push(Written { pg, fragment: next });
        }
    }
    list
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
