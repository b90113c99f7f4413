//! Coefficient tables: one per geometry for encoding, a bounded cache of them for decoding.

use std::sync::OnceLock;

use super::ffi;
use crate::geometry::{MAX_DATA, MAX_PARITY};
use crate::{ErasureError, Geometry};

/// A coefficient matrix in the library's form.
pub(super) struct Tables {
    columns: usize,
    rows: usize,
    bytes: Box<[u8]>,
}

impl Tables {
    fn new(matrix: &[u8], columns: usize, rows: usize) -> Self {
        Self { columns, rows, bytes: ffi::expanded(matrix, columns, rows) }
    }

    /// Source blocks.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Target blocks.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Encoding tables, each made at its first use: at most 2 KiB each.
#[derive(Default)]
pub(super) struct EncodeTables {
    by_geometry: [[OnceLock<Tables>; MAX_PARITY + 1]; MAX_DATA],
}

impl EncodeTables {
    pub(super) fn get(&self, geometry: Geometry) -> &Tables {
        let (data, parity) = (geometry.data(), geometry.parity());
        self.by_geometry[data - 1][parity].get_or_init(|| {
            let matrix = ffi::cauchy_matrix(data, parity);
            Tables::new(&matrix[data * data..], data, parity)
        })
    }
}

/// Which blocks are computed from which: bit i is block i.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct DecodeKey {
    pub(super) geometry: Geometry,
    pub(super) sources_mask: u32,
    pub(super) wanted_mask: u32,
}

/// A failed node or device gives at most N+K patterns per geometry, so 64 hold two failures at a
/// time; 128 KiB at most. A miss costs some microseconds (inverting a 16 x 16 matrix).
const CACHED: usize = 64;

/// The most recently used decoding tables, latest last.
#[derive(Default)]
pub(super) struct DecodeCache {
    entries: Vec<(DecodeKey, Tables)>,
}

impl DecodeCache {
    pub(super) fn get(&mut self, key: DecodeKey) -> Result<&Tables, ErasureError> {
        match self.entries.iter().rposition(|(cached, _)| *cached == key) {
            Some(hit) => self.entries[hit..].rotate_left(1),
            None => {
                let tables = decode_tables(key)?;
                if self.entries.len() == CACHED {
                    self.entries.remove(0);
                }
                self.entries.push((key, tables));
            }
        }
        Ok(&self.entries[self.entries.len() - 1].1)
    }
}

/// With S the generator's rows of the source blocks: sources = S x data, so data = S^-1 x sources,
/// and any block = its generator row x S^-1 x sources.
fn decode_tables(key: DecodeKey) -> Result<Tables, ErasureError> {
    let n = key.geometry.data();
    let generator = ffi::cauchy_matrix(n, key.geometry.parity());
    let rows_of = |mask: u32| {
        let of_mask = move |index: &usize| mask & (1 << index) != 0;
        (0..key.geometry.total()).filter(of_mask).map(|index| &generator[index * n..][..n])
    };
    let inverse = ffi::inverted(rows_of(key.sources_mask).flatten().copied().collect(), n)
        .ok_or_else(|| ErasureError::Library {
            codec: "isal",
            reason: format!("singular matrix for sources {:#x}", key.sources_mask),
        })?;
    let mut matrix = Vec::with_capacity(n * MAX_PARITY);
    for row in rows_of(key.wanted_mask) {
        for column in 0..n {
            let products = (0..n).map(|i| ffi::product(row[i], inverse[i * n + column]));
            matrix.push(products.fold(0, |sum, product| sum ^ product));
        }
    }
    Ok(Tables::new(&matrix, n, matrix.len() / n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(geometry: Geometry, lost: usize) -> DecodeKey {
        let all = (1 << geometry.total()) - 1;
        let spare = 1 << (geometry.total() - 1);
        DecodeKey { geometry, sources_mask: all ^ (1 << lost) ^ spare, wanted_mask: 1 << lost }
    }

    #[test]
    fn decode_cache_is_bounded_and_forgets_the_least_recently_used() {
        let mut cache = DecodeCache::default();
        let kept = key(Geometry::new(2, 2).unwrap(), 0);
        cache.get(kept).unwrap();
        for data in 2..=16 {
            let geometry = Geometry::new(data, 2).unwrap();
            for lost in 0..geometry.data() {
                cache.get(key(geometry, lost)).unwrap();
                cache.get(kept).unwrap();
            }
        }
        assert_eq!(cache.entries.len(), CACHED);
        assert!(cache.entries.iter().any(|(cached, _)| *cached == kept));
        assert!(!cache.entries.iter().any(|(cached, _)| cached.geometry.data() == 3));
    }
}
