//! Buffers and files that the kernel is told about once.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use super::Uring;
use super::fd::RingFd;
use super::ring::Ring;
use crate::buf::BufPool;

/// The kernel takes at most 1 GiB per registered buffer.
const PIECE_BYTES_MAX: usize = 1 << 30;
/// Size of the table of registered buffers: 4 TiB in pieces of 1 GiB.
const PIECES_MAX: u16 = 4096;

#[derive(Default)]
pub(super) struct Registered {
    pools: Vec<Pool>,
    pieces: u16,
    free_files: Vec<u32>,
    warned: bool,
}

struct Pool {
    /// Keeps the region mapped while the ring knows it.
    pool: BufPool,
    base: usize,
    bytes: usize,
    first_piece: u16,
}

impl Registered {
    /// Index of the registered buffer that `len` bytes at `start` lie in. A slab never crosses a
    /// border: slabs lie in pages of 1 MiB, and so do the borders.
    fn piece_of(&self, start: usize, len: usize) -> Option<u16> {
        let pool = self
            .pools
            .iter()
            .find(|pool| start.checked_sub(pool.base).is_some_and(|at| at + len <= pool.bytes))?;
        let piece = u16::try_from((start - pool.base) / PIECE_BYTES_MAX).ok()?;
        Some(pool.first_piece + piece)
    }

    fn warn(&mut self, what: &str, error: &std::io::Error) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(%error, "cannot register {what} with io_uring (LimitMEMLOCK?): going on without, each operation costs a little more");
        }
    }
}

impl Ring {
    pub(super) fn make_file_table(&self, files: u32) {
        if files == 0 {
            return;
        }
        let result = self.uring().submitter().register_files_sparse(files);
        let mut registered = self.registered.borrow_mut();
        match result {
            Ok(()) => registered.free_files = (0..files).rev().collect(),
            Err(error) => registered.warn("files", &error),
        }
    }

    fn register_file(self: &Rc<Self>, fd: OwnedFd) -> RingFd {
        let Some(index) = self.registered.borrow_mut().free_files.pop() else {
            return RingFd::new(fd, None);
        };
        let result = self.uring().submitter().register_files_update(index, &[fd.as_raw_fd()]);
        match result {
            Ok(_) => RingFd::new(fd, Some((Rc::downgrade(self), index))),
            Err(error) => {
                let mut registered = self.registered.borrow_mut();
                registered.free_files.push(index);
                registered.warn("a file", &error);
                RingFd::new(fd, None)
            }
        }
    }

    pub(super) fn unregister_file(&self, index: u32) {
        let result = self.uring().submitter().register_files_update(index, &[-1]);
        match result {
            Ok(_) => self.registered.borrow_mut().free_files.push(index),
            Err(error) => tracing::warn!(%error, "cannot take a file out of the ring's table"),
        }
    }

    fn register_pool(&self, pool: &BufPool) -> bool {
        let mut registered = self.registered.borrow_mut();
        if registered.pools.iter().any(|known| known.pool.same_as(pool)) {
            return true;
        }
        let result = self.add_pool(&mut registered, pool);
        match result {
            Ok(()) => true,
            Err(error) => {
                registered.warn("the buffer pool", &error);
                false
            }
        }
    }

    fn add_pool(&self, registered: &mut Registered, pool: &BufPool) -> std::io::Result<()> {
        let uring = self.uring();
        let submitter = uring.submitter();
        if registered.pools.is_empty() && registered.pieces == 0 {
            submitter.register_buffers_sparse(u32::from(PIECES_MAX))?;
        }
        let (base, bytes) = pool.region();
        let mut pieces = Vec::new();
        for at in (0..bytes).step_by(PIECE_BYTES_MAX) {
            pieces.push(libc::iovec {
                iov_base: base.wrapping_add(at).cast(),
                iov_len: PIECE_BYTES_MAX.min(bytes - at),
            });
        }
        let first_piece = registered.pieces;
        let count = u16::try_from(pieces.len()).map_err(std::io::Error::other)?;
        let end = first_piece.checked_add(count).filter(|end| *end <= PIECES_MAX);
        let end = end.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOSPC))?;
        // Not given back on failure: a part of it may have been registered.
        registered.pieces = end;
        // SAFETY: the region stays mapped: `Pool` keeps the pool alive as long as the ring.
        unsafe { submitter.register_buffers_update(u32::from(first_piece), &pieces, None)? };
        let (base, pool) = (base as usize, pool.clone());
        registered.pools.push(Pool { pool, base, bytes, first_piece });
        Ok(())
    }

    pub(super) fn fixed_buffer(&self, start: *const u8, len: usize) -> Option<u16> {
        self.registered.borrow().piece_of(start as usize, len)
    }
}

impl Uring {
    /// Takes a descriptor, as it is (sockets).
    pub fn adopt(&self, fd: OwnedFd) -> RingFd {
        RingFd::new(fd, None)
    }

    /// Takes a descriptor and registers it where the table has room: for the few that see most of
    /// the traffic (devices).
    pub fn register_fd(&self, fd: OwnedFd) -> RingFd {
        self.ring.register_file(fd)
    }

    /// Registers a pool's memory: reads and writes from its buffers then save pinning pages each
    /// time. This touches and pins the whole pool. False if the kernel refused (a warning is
    /// logged once); everything works without.
    pub fn register_pool(&self, pool: &BufPool) -> bool {
        self.ring.register_pool(pool)
    }

    /// Operations that the kernel has not finished.
    pub fn operations_running(&self) -> usize {
        self.ring.tasks_running()
    }
}
