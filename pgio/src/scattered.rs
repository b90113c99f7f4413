//! Pieces of one block that lie apart, in one request: for somebody who reads ahead.

use std::ops::Range;

use bb_erasure::crc32c_chunks;
use bb_proto::{Capability, GetBlock, GetBlockReply, Kind, PgDescriptor};
use bb_transport::Outgoing;

use crate::devices::Work;
use crate::io::{PgIo, Place};
use crate::layout::BlockLayout;
use crate::read::Piece;

/// Chunks of a block, first and end.
type Run = Range<usize>;

impl PgIo {
    /// Bytes of a group's data, in `ranges` that are sorted, apart from each other, and all in one
    /// block: one piece for each. Nothing is tried twice or computed from other blocks: where this
    /// gives nothing, [`PgIo::fetch`] says why, or has the bytes.
    pub async fn fetch_scattered(
        &self,
        capability: &Capability,
        descriptor: &PgDescriptor,
        ranges: &[Range<usize>],
    ) -> Option<Vec<Piece>> {
        let layout = BlockLayout::of(&descriptor.body).ok()??;
        let shape = layout.shape;
        let index = ranges.first()?.start / shape.block_bytes();
        let base = index * shape.block_bytes();
        let inside = |range: &Range<usize>| {
            base <= range.start
                && range.start < range.end
                && range.end <= base + shape.block_bytes()
        };
        let apart = ranges.is_sorted_by(|one, next| one.end <= next.start);
        if index >= shape.geometry.data() || !ranges.iter().all(inside) || !apart {
            return None;
        }
        let runs = runs_of(ranges, base, shape.chunk_log2);
        let device = layout.members[index].device;
        let (map, now) = (self.view.map(), self.rt.now());
        let Place::At(address, fence) = self.place(device) else { return None };
        if self.devices.is_silent(&map, device, now) {
            return None;
        }
        let small = |n: usize| u16::try_from(n).ok();
        let numbers = runs.iter().map(|run| Some((small(run.start)?, small(run.len())?)));
        let mut numbers = numbers.collect::<Option<Vec<_>>>()?.into_iter();
        let (chunk_first, chunk_count) = numbers.next()?;
        let body = GetBlock {
            pg: descriptor.pg,
            capability: *capability,
            index: u8::try_from(index).ok()?,
            chunk_log2: shape.chunk_log2,
            chunk_first,
            chunk_count,
            more: numbers.collect(),
        }
        .encode();
        let bytes = runs.iter().map(Run::len).sum::<usize>() << shape.chunk_log2;
        let (mut sinks, _under_way) = self.take_for_read(&[bytes]).await;
        let mut sink = sinks.pop()?;
        sink.set_len(bytes);
        self.count(|stats| stats.gets += 1);
        let asked = self.rt.now();
        let _begun = self.devices.begin(&map, device, Work::Read, asked);
        let request =
            Outgoing::new(Kind::GetBlock, self.limits.class, self.limits.get_timeout, body)
                .to(device.0, fence)
                .with_sink(sink);
        let answer = match self.caller.call(&address, request).await {
            Ok(answer) => answer,
            Err(error) => {
                self.note_error(device, &error);
                return None;
            }
        };
        let now = self.rt.now();
        self.note(device, answer.vitals);
        self.devices.well(device, Work::Read, now.since(asked), now);
        let (payload, crcs) = (answer.payload?.freeze(), GetBlockReply::decode(&answer.body).ok()?);
        let right = payload.len() == bytes
            && crc32c_chunks(&payload, 1 << shape.chunk_log2).eq(crcs.chunk_crcs.iter().copied());
        if !right {
            tracing::warn!(device = device.0, index, "chunks do not match their checksums");
            return None;
        }
        let cut = |range: &Range<usize>| {
            let at = place_in(&runs, range.start - base, shape.chunk_log2);
            Piece { pg_offset: range.start, bytes: payload.slice(at..at + range.len()) }
        };
        Some(ranges.iter().map(cut).collect())
    }
}

/// The chunks that hold these ranges of a block that begins at `base`. Neighbours become one run.
fn runs_of(ranges: &[Range<usize>], base: usize, chunk_log2: u8) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let first = (range.start - base) >> chunk_log2;
        let end = (range.end - base).div_ceil(1 << chunk_log2);
        match runs.last_mut() {
            Some(last) if first <= last.end => last.end = last.end.max(end),
            _ => runs.push(first..end),
        }
    }
    runs
}

/// Where the byte at `within` of the block lies in the payload of these runs, one after the other.
fn place_in(runs: &[Run], within: usize, chunk_log2: u8) -> usize {
    let chunk = within >> chunk_log2;
    let before: usize = runs.iter().take_while(|run| run.end <= chunk).map(Run::len).sum();
    let start = runs.iter().find(|run| run.contains(&chunk)).map_or(0, |run| run.start);
    within - (start << chunk_log2) + (before << chunk_log2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_byte_is_found_where_its_chunk_lies_in_the_payload(
            lens in proptest::collection::vec((1_usize..9_000, 0_usize..20_000), 1..12),
            base in 0_usize..3,
        ) {
            const LOG2: u8 = 12;
            let base = base << 20;
            let (mut at, mut ranges) = (base, Vec::new());
            for (len, gap) in lens {
                at += gap;
                ranges.push(at..at + len);
                at += len;
            }
            let runs = runs_of(&ranges, base, LOG2);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            // The payload, as offsets in the block.
            let offsets = |run: &Run| run.start << LOG2..run.end << LOG2;
            let payload: Vec<usize> = runs.iter().flat_map(offsets).collect();
            for range in &ranges {
                let from = place_in(&runs, range.start - base, LOG2);
                let found = &payload[from..from + range.len()];
                prop_assert!(found.iter().copied().eq(range.start - base..range.end - base));
            }
        }
    }
}
