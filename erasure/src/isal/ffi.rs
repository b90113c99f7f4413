//! The few functions of libisal that we call, declared by hand from its documentation.

use std::ffi::c_int;

use super::tables::Tables;
use crate::geometry::{MAX_DATA, MAX_PARITY};

#[link(name = "isal")]
unsafe extern "C" {
    fn ec_init_tables(k: c_int, rows: c_int, a: *const u8, gftbls: *mut u8);
    fn ec_encode_data(
        len: c_int,
        k: c_int,
        rows: c_int,
        gftbls: *const u8,
        data: *const *const u8,
        coding: *const *mut u8,
    );
    fn gf_gen_cauchy1_matrix(a: *mut u8, m: c_int, k: c_int);
    fn gf_invert_matrix(input: *mut u8, out: *mut u8, n: c_int) -> c_int;
    fn gf_mul(a: u8, b: u8) -> u8;
    fn crc32_iscsi(buffer: *const u8, len: c_int, init_crc: u32) -> u32;
}

fn int(value: usize) -> c_int {
    c_int::try_from(value).expect("callers keep counts and lengths within a C int")
}

/// The generator: N rows of identity, then K Cauchy rows; N columns.
pub(super) fn cauchy_matrix(data: usize, parity: usize) -> Vec<u8> {
    let mut matrix = vec![0; (data + parity) * data];
    // SAFETY: the matrix has m * k bytes, as the function wants.
    unsafe { gf_gen_cauchy1_matrix(matrix.as_mut_ptr(), int(data + parity), int(data)) };
    matrix
}

/// The inverse of an n x n matrix, or None for a singular one.
pub(super) fn inverted(mut matrix: Vec<u8>, n: usize) -> Option<Vec<u8>> {
    assert_eq!(matrix.len(), n * n, "a square matrix");
    let mut inverse = vec![0; n * n];
    // SAFETY: both matrices have n * n bytes; the first one is ours to destroy.
    let result = unsafe { gf_invert_matrix(matrix.as_mut_ptr(), inverse.as_mut_ptr(), int(n)) };
    (result == 0).then_some(inverse)
}

/// Product in GF(2^8).
pub(super) fn product(a: u8, b: u8) -> u8 {
    // SAFETY: a pure function of two bytes.
    unsafe { gf_mul(a, b) }
}

/// The form of a coefficient matrix that `encode_data` wants: 32 bytes for each coefficient.
pub(super) fn expanded(matrix: &[u8], columns: usize, rows: usize) -> Box<[u8]> {
    assert_eq!(matrix.len(), rows * columns, "one coefficient for each row and column");
    let mut tables = vec![0; 32 * rows * columns].into_boxed_slice();
    // SAFETY: the lengths are as the function wants: rows * k in, 32 * rows * k out.
    unsafe { ec_init_tables(int(columns), int(rows), matrix.as_ptr(), tables.as_mut_ptr()) };
    tables
}

/// targets = tables x sources.
///
/// # Safety
/// The first `columns` sources and `rows` targets point to `len` bytes; no target overlaps another
/// block.
pub(super) unsafe fn encode_data(
    tables: &Tables,
    len: usize,
    sources: &[*const u8; MAX_DATA],
    targets: &[*mut u8; MAX_PARITY],
) {
    assert!(tables.columns() <= MAX_DATA && tables.rows() <= MAX_PARITY, "pointers for all");
    // SAFETY: see above; the tables hold 32 bytes per row and column (`expanded`).
    unsafe {
        ec_encode_data(
            int(len),
            int(tables.columns()),
            int(tables.rows()),
            tables.bytes().as_ptr(),
            sources.as_ptr(),
            targets.as_ptr(),
        );
    }
}

/// CRC32C of `bytes` after bytes whose CRC32C is `crc`.
pub(crate) fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    // The library leaves out the inversions before and after that CRC32C has.
    let mut state = !crc;
    for piece in bytes.chunks(1 << 30) {
        // SAFETY: reads `piece.len()` bytes of a live slice.
        state = unsafe { crc32_iscsi(piece.as_ptr(), int(piece.len()), state) };
    }
    !state
}
