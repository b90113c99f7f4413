//! Operations on files and block devices.

use std::future::Future;
use std::io;
use std::ops::Range;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::Uring;
use super::fd::RingFd;
use super::op::{Payload, Policy, count};
use crate::buf::{Buf, BufMut};

/// Builds a request for a descriptor by its number or by its index in the ring's table.
macro_rules! on_fd {
    ($fd:expr, |$target:ident| $entry:expr) => {
        match $fd.index() {
            Some(index) => {
                let $target = io_uring::types::Fixed(index);
                $entry
            }
            None => {
                let $target = io_uring::types::Fd(std::os::fd::AsRawFd::as_raw_fd($fd));
                $entry
            }
        }
    };
}
pub(super) use on_fd;

/// The kernel's lengths have 32 bits; a slab has at most 1 MiB.
pub(super) fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Uring {
    /// Reads at `offset` of a file into a part of `buf`. Gives the buffer back, and how many bytes
    /// there were (fewer than asked for at the end of a file, or after a signal).
    ///
    /// # Panics
    /// When `range` does not lie within `buf`.
    pub fn read_at(
        &self,
        fd: &RingFd,
        offset: u64,
        mut buf: BufMut,
        range: Range<usize>,
    ) -> impl Future<Output = (io::Result<usize>, BufMut)> + use<> {
        let target = &mut buf[range];
        let (start, len) = (target.as_mut_ptr(), length(target.len()));
        let entry = match self.ring.fixed_buffer(start, target.len()) {
            Some(piece) => on_fd!(fd, |file| opcode::ReadFixed::new(file, start, len, piece)
                .offset(offset)
                .build()),
            None => {
                on_fd!(fd, |file| opcode::Read::new(file, start, len).offset(offset).build())
            }
        };
        let op = self.ring.start(entry, Some(fd.clone()), Payload::BufMut(buf), Policy::STORAGE);
        async move {
            match op.await {
                (result, Payload::BufMut(buf)) => (count(result), buf),
                _ => unreachable!("an operation keeps its payload"),
            }
        }
    }

    /// Writes `buf` at `offset` of a file and says how many bytes were taken. With `durable`
    /// (`RWF_DSYNC`) they would survive a power cut when it returns.
    pub fn write_at(
        &self,
        fd: &RingFd,
        offset: u64,
        buf: Buf,
        durable: bool,
    ) -> impl Future<Output = io::Result<usize>> + use<> {
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let (start, len) = (buf.as_ptr(), length(buf.len()));
        let entry = match self.ring.fixed_buffer(start, buf.len()) {
            Some(piece) => on_fd!(fd, |file| opcode::WriteFixed::new(file, start, len, piece)
                .offset(offset)
                .rw_flags(flags)
                .build()),
            None => on_fd!(fd, |file| opcode::Write::new(file, start, len)
                .offset(offset)
                .rw_flags(flags)
                .build()),
        };
        self.counted(entry, fd, Payload::Buf(buf), Policy::STORAGE)
    }

    /// Makes durable what was written before (`fdatasync`).
    pub fn fdatasync(&self, fd: &RingFd) -> impl Future<Output = io::Result<()>> + use<> {
        let flags = types::FsyncFlags::DATASYNC;
        let entry = on_fd!(fd, |file| opcode::Fsync::new(file).flags(flags).build());
        self.plain(entry, fd)
    }

    /// Makes durable what was written before, and the file's attributes.
    pub fn fsync(&self, fd: &RingFd) -> impl Future<Output = io::Result<()>> + use<> {
        let entry = on_fd!(fd, |file| opcode::Fsync::new(file).build());
        self.plain(entry, fd)
    }

    /// Allocates a range of a file (`mode` 0), or does what `mode` says.
    pub fn fallocate(
        &self,
        fd: &RingFd,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        let entry =
            on_fd!(fd, |file| opcode::Fallocate::new(file, len).offset(offset).mode(mode).build());
        self.plain(entry, fd)
    }

    /// Frees a range of a file, which then reads as zeros. The file keeps its size.
    pub fn punch_hole(
        &self,
        fd: &RingFd,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(fd, mode, offset, len)
    }

    pub(super) fn counted(
        &self,
        entry: Entry,
        fd: &RingFd,
        payload: Payload,
        policy: Policy,
    ) -> impl Future<Output = io::Result<usize>> + use<> {
        let op = self.ring.start(entry, Some(fd.clone()), payload, policy);
        async move { count(op.await.0) }
    }

    fn plain(&self, entry: Entry, fd: &RingFd) -> impl Future<Output = io::Result<()>> + use<> {
        let op = self.counted(entry, fd, Payload::None, Policy::STORAGE);
        async move { op.await.map(|_| ()) }
    }
}
