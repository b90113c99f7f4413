//! Byte ranges of a file.

use std::ops::Range;

/// What is left of `ranges` (sorted, apart) without `hole`.
pub(crate) fn subtract(ranges: &mut Vec<Range<u64>>, hole: &Range<u64>) {
    if ranges.iter().all(|r| hole.end <= r.start || r.end <= hole.start) {
        return;
    }
    let cut = |r: &Range<u64>| {
        let before = r.start..r.end.min(hole.start).max(r.start);
        let after = r.start.max(hole.end).min(r.end)..r.end;
        if hole.end <= r.start || r.end <= hole.start {
            [r.clone(), r.end..r.end]
        } else {
            [before, after]
        }
    };
    *ranges = ranges.iter().flat_map(cut).filter(|r| r.start < r.end).collect();
}

/// True if a range of `a` and one of `b` (both sorted, apart) have a byte in common.
pub(crate) fn overlap(a: &[Range<u64>], b: &[Range<u64>]) -> bool {
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if a[i].end <= b[j].start {
            i += 1;
        } else if b[j].end <= a[i].start {
            j += 1;
        } else {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtracting_cuts_ends_middles_and_wholes() {
        let mut ranges = vec![0..10, 20..30, 40..50];
        subtract(&mut ranges, &(5..25));
        subtract(&mut ranges, &(43..45));
        subtract(&mut ranges, &(100..200));
        assert_eq!(ranges, [0..5, 25..30, 40..43, 45..50]);
        subtract(&mut ranges, &(0..60));
        assert!(ranges.is_empty());
    }

    #[test]
    fn touching_ranges_do_not_overlap() {
        assert!(!overlap(&[0..10, 20..30], &[10..20, 30..40]));
        assert!(overlap(&[0..10, 20..30], &[12..13, 29..40]));
    }
}
