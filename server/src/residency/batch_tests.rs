//! Batches against their parts.

use proptest::prelude::*;

use super::*;

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let one = (0_u64..3_000_000, 1_u32..2_000_000, 0_usize..4, 0_u32..100_000);
    prop::collection::vec(one, 0..40).prop_map(|list| {
        let mut at = 0;
        let mut parts = Vec::new();
        for (gap, len, group, pg_offset) in list {
            // Every third part continues the one before.
            at += if gap % 3 == 0 { 0 } else { gap };
            parts.push(Part { group, fragment: Fragment { offset: at, pg_offset, len } });
            at += u64::from(len);
        }
        parts
    })
}

/// For each byte range: which bytes of which group.
fn joined(parts: &[Part]) -> Vec<Part> {
    let mut list: Vec<Part> = Vec::new();
    for part in parts {
        let next = part.fragment;
        match list.last_mut() {
            Some(last)
                if last.group == part.group
                    && last.fragment.end() == next.offset
                    && last.fragment.pg_offset + last.fragment.len == next.pg_offset =>
            {
                last.fragment.len += next.len;
            }
            _ => list.push(*part),
        }
    }
    list
}

proptest! {
    #[test]
    fn batches_hold_every_byte_once_in_order_and_stay_within_their_memory(parts in parts()) {
        let batches = Batch::all_of(&parts);
        let all: Vec<Part> = batches.iter().flat_map(|b| b.parts.clone()).collect();
        prop_assert_eq!(joined(&all), joined(&parts));
        for batch in &batches {
            prop_assert!(batch.buffer_bytes() <= BATCH_BYTES + BUFFER_BYTES);
            for part in &batch.parts {
                let span = batch.spans[batch.span_of(part.fragment.offset)];
                prop_assert!(span.offset <= part.fragment.offset);
                prop_assert!(part.fragment.end() <= span.end());
                prop_assert!(span.len <= SLAB_BYTES_MAX);
            }
        }
    }

    #[test]
    fn reads_cover_every_part_once(parts in parts()) {
        for batch in Batch::all_of(&parts) {
            let mut read: Vec<Part> = Vec::new();
            for one in batch.reads() {
                prop_assert!(one.to - one.from <= READ_BYTES_MAX);
                for part in &one.parts {
                    prop_assert_eq!(part.group, one.group);
                    prop_assert!(one.from <= part.fragment.pg_offset);
                    prop_assert!(part.fragment.pg_offset + part.fragment.len <= one.to);
                }
                read.extend(one.parts);
            }
            read.sort_unstable_by_key(|part| part.fragment.offset);
            prop_assert_eq!(read, batch.parts);
        }
    }
}
