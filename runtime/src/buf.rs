//! Aligned buffers from one mapped region, so that devices, rings and network cards can be told
//! about them once.
//!
//! The region is cut into pages of 1 MiB; a page serves one slab class (4 KiB, 8 KiB, ... 1 MiB) at
//! a time and goes back when all its slabs are free. So no class has to be sized beforehand.

use std::fmt;
use std::future::Future;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Size of the smallest slab class, in bytes; also the alignment of every buffer.
pub const SLAB_BYTES_MIN: usize = 4 << 10;
/// Size of the largest slab class, in bytes.
pub const SLAB_BYTES_MAX: usize = 1 << 20;

const CLASSES: usize = 9;

/// A pool of buffers. Cheap to clone; may be used from any thread.
#[derive(Clone)]
pub struct BufPool {
    shared: Arc<Shared>,
}

struct Shared {
    region: Region,
    state: Mutex<State>,
}

struct State {
    /// Class of each page, or `None` while the page is free.
    pages: Vec<Page>,
    free_pages: Vec<u32>,
    /// Pages of each class with at least one free slab.
    partial: [Vec<u32>; CLASSES],
    used_bytes: u64,
    used_bytes_max: u64,
    waiting: Vec<Waker>,
    /// Futures of [`BufPool::alloc`] that have found nothing yet.
    waiting_count: usize,
}

struct Page {
    class: u8,
    free_slabs: u16,
    /// A set bit is a free slab.
    free: [u64; 4],
}

struct Region {
    base: NonNull<u8>,
    bytes: usize,
    huge: bool,
}

// SAFETY: the region is plain memory; who may touch which part of it is decided by the pool, which
// hands each slab to one owner at a time.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn map(bytes: usize, try_huge: bool) -> std::io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let base_flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let tries: &[(i32, bool)] = if try_huge {
            &[(libc::MAP_HUGETLB | libc::MAP_POPULATE, true), (libc::MAP_NORESERVE, false)]
        } else {
            &[(libc::MAP_NORESERVE, false)]
        };
        let mut last = std::io::Error::other("no mapping tried");
        for &(extra, huge) in tries {
            // SAFETY: an anonymous mapping at an address of the kernel's choice touches no
            // existing memory.
            let address =
                unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, base_flags | extra, -1, 0) };
            if address != libc::MAP_FAILED
                && let Some(base) = NonNull::new(address.cast::<u8>())
            {
                return Ok(Self { base, bytes, huge });
            }
            last = std::io::Error::last_os_error();
        }
        Err(last)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `map`, and every buffer in it holds an `Arc` of the pool.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Size of the region, in bytes.
    pub total_bytes: u64,
    /// Bytes in slabs that are handed out.
    pub used_bytes: u64,
    /// Largest value of `used_bytes` so far.
    pub used_bytes_max: u64,
    /// True if the region lies in huge pages.
    pub huge_pages: bool,
}

fn class_of(len: usize) -> usize {
    let slab = len.max(SLAB_BYTES_MIN).next_power_of_two();
    (slab.trailing_zeros() - SLAB_BYTES_MIN.trailing_zeros()) as usize
}

const fn class_bytes(class: usize) -> usize {
    SLAB_BYTES_MIN << class
}

impl BufPool {
    /// A pool of `bytes` (rounded up to whole MiB), in huge pages where the machine has them and
    /// `try_huge` asks for them.
    ///
    /// # Errors
    /// The system's, when memory cannot be mapped.
    pub fn new(bytes: usize, try_huge: bool) -> std::io::Result<Self> {
        let pages = bytes.div_ceil(SLAB_BYTES_MAX).max(2).next_multiple_of(2);
        let region = Region::map(pages * SLAB_BYTES_MAX, try_huge)?;
        let count = u32::try_from(pages).map_err(std::io::Error::other)?;
        let state = State {
            pages: (0..count).map(|_| Page { class: 0, free_slabs: 0, free: [0; 4] }).collect(),
            free_pages: (0..count).rev().collect(),
            partial: Default::default(),
            used_bytes: 0,
            used_bytes_max: 0,
            waiting: Vec::new(),
            waiting_count: 0,
        };
        Ok(Self { shared: Arc::new(Shared { region, state: Mutex::new(state) }) })
    }

    /// A buffer of `len` bytes (at most 1 MiB) with undefined contents, or `None` when the pool is
    /// exhausted.
    ///
    /// # Panics
    /// When `len` is larger than [`SLAB_BYTES_MAX`].
    pub fn try_alloc(&self, len: usize) -> Option<BufMut> {
        assert!(len <= SLAB_BYTES_MAX, "a buffer holds at most 1 MiB");
        let class = class_of(len);
        let (page, slab) = self.shared.lock().take(class)?;
        let offset = page as usize * SLAB_BYTES_MAX + slab * class_bytes(class);
        let raw = RawBuf { shared: self.shared.clone(), offset, class };
        Some(BufMut { raw, len })
    }

    /// Waits until a buffer of `len` bytes can be had.
    pub fn alloc(&self, len: usize) -> impl Future<Output = BufMut> + use<> {
        let pool = self.clone();
        let mut counted = None;
        std::future::poll_fn(move |cx| {
            if let Some(buf) = pool.try_alloc(len) {
                counted = None;
                return Poll::Ready(buf);
            }
            counted.get_or_insert_with(|| Counted::new(&pool));
            crate::sync::remember(&mut pool.shared.lock().waiting, cx.waker());
            // A slab may have come back between the look and the registration.
            match pool.try_alloc(len) {
                Some(buf) => {
                    counted = None;
                    Poll::Ready(buf)
                }
                None => Poll::Pending,
            }
        })
    }

    /// True while somebody waits for a buffer: no time to keep any for later.
    pub fn is_waited_for(&self) -> bool {
        self.shared.lock().waiting_count > 0
    }

    /// A zeroed buffer of `len` bytes, or `None` when the pool is exhausted.
    pub fn try_alloc_zeroed(&self, len: usize) -> Option<BufMut> {
        let mut buf = self.try_alloc(len)?;
        buf.fill(0);
        Some(buf)
    }

    /// Figures of the pool.
    pub fn stats(&self) -> PoolStats {
        let state = self.shared.lock();
        PoolStats {
            total_bytes: self.shared.region.bytes as u64,
            used_bytes: state.used_bytes,
            used_bytes_max: state.used_bytes_max,
            huge_pages: self.shared.region.huge,
        }
    }

    /// Start and length of the region, for registration with a ring or a card.
    pub fn region(&self) -> (*mut u8, usize) {
        (self.shared.region.base.as_ptr(), self.shared.region.bytes)
    }

    /// True if `other` is the same pool.
    pub fn same_as(&self, other: &BufPool) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

/// Somebody waits for a buffer.
struct Counted(BufPool);

impl Counted {
    fn new(pool: &BufPool) -> Self {
        pool.shared.lock().waiting_count += 1;
        Self(pool.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.shared.lock().waiting_count -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, class: usize) -> Option<(u32, usize)> {
        if self.partial[class].is_empty() {
            let page = self.free_pages.pop()?;
            let slabs = SLAB_BYTES_MAX / class_bytes(class);
            let entry = &mut self.pages[page as usize];
            entry.class = u8::try_from(class).unwrap_or(u8::MAX);
            entry.free_slabs = u16::try_from(slabs).unwrap_or(u16::MAX);
            for (word, bits) in entry.free.iter_mut().enumerate() {
                let left = slabs.saturating_sub(word * 64).min(64);
                *bits = if left == 64 { u64::MAX } else { (1_u64 << left) - 1 };
            }
            self.partial[class].push(page);
        }
        let page = *self.partial[class].last()?;
        let entry = &mut self.pages[page as usize];
        let word = entry.free.iter().position(|bits| *bits != 0)?;
        let bit = entry.free[word].trailing_zeros() as usize;
        entry.free[word] &= !(1_u64 << bit);
        entry.free_slabs -= 1;
        if entry.free_slabs == 0 {
            self.partial[class].pop();
        }
        self.used_bytes += class_bytes(class) as u64;
        self.used_bytes_max = self.used_bytes_max.max(self.used_bytes);
        Some((page, word * 64 + bit))
    }

    fn give(&mut self, page: u32, slab: usize, class: usize) {
        let slabs = SLAB_BYTES_MAX / class_bytes(class);
        let entry = &mut self.pages[page as usize];
        let mask = 1_u64 << (slab % 64);
        assert!(entry.free[slab / 64] & mask == 0, "a slab was given back twice");
        entry.free[slab / 64] |= mask;
        entry.free_slabs += 1;
        let now_free = entry.free_slabs as usize;
        if now_free == slabs {
            self.partial[class].retain(|p| *p != page);
            self.free_pages.push(page);
        } else if now_free == 1 {
            self.partial[class].push(page);
        }
        self.used_bytes -= class_bytes(class) as u64;
    }
}

struct RawBuf {
    shared: Arc<Shared>,
    offset: usize,
    class: usize,
}

impl RawBuf {
    fn ptr(&self) -> *mut u8 {
        // SAFETY: `offset` lies inside the region: it was computed from a page of the pool.
        unsafe { self.shared.region.base.as_ptr().add(self.offset) }
    }
}

impl Drop for RawBuf {
    fn drop(&mut self) {
        let page = u32::try_from(self.offset / SLAB_BYTES_MAX).unwrap_or(u32::MAX);
        let slab = (self.offset % SLAB_BYTES_MAX) / class_bytes(self.class);
        let wakers = {
            let mut state = self.shared.lock();
            state.give(page, slab, self.class);
            std::mem::take(&mut state.waiting)
        };
        for waker in wakers {
            waker.wake();
        }
    }
}

/// A buffer with one owner, who may write to it.
pub struct BufMut {
    raw: RawBuf,
    len: usize,
}

impl BufMut {
    /// Bytes that fit without another buffer.
    pub fn capacity(&self) -> usize {
        class_bytes(self.raw.class)
    }

    /// Changes the length. Bytes that come into view have undefined (but initialised) contents.
    ///
    /// # Panics
    /// When `len` is larger than the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer cannot grow past its slab");
        self.len = len;
    }

    /// Gives up the right to write, so that the bytes can be shared.
    pub fn freeze(self) -> Buf {
        let len = self.len;
        Buf { raw: Arc::new(self.raw), start: 0, len }
    }
}

impl Deref for BufMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slab is mapped, initialised (anonymous memory is zeroed) and ours alone.
        unsafe { std::slice::from_raw_parts(self.raw.ptr(), self.len) }
    }
}

impl DerefMut for BufMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.raw.ptr(), self.len) }
    }
}

/// A shared, read-only view of a buffer. Clones and slices share the same slab.
#[derive(Clone)]
pub struct Buf {
    raw: Arc<RawBuf>,
    start: usize,
    len: usize,
}

impl Buf {
    /// A view of a part of this one.
    ///
    /// # Panics
    /// When the range does not lie within.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Buf {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => self.len,
        };
        assert!(from <= to && to <= self.len, "slice outside of the buffer");
        Buf { raw: self.raw.clone(), start: self.start + from, len: to - from }
    }

    /// What it takes of the pool, whatever part of it is in view, in bytes.
    pub fn slab_bytes(&self) -> usize {
        class_bytes(self.raw.class)
    }

    /// The buffer for writing again, if nobody else holds a view of it.
    ///
    /// # Errors
    /// The view itself, while it is shared.
    pub fn try_into_mut(self) -> Result<BufMut, Buf> {
        let (start, len) = (self.start, self.len);
        if start != 0 {
            return Err(self);
        }
        match Arc::try_unwrap(self.raw) {
            Ok(raw) => Ok(BufMut { raw, len }),
            Err(raw) => Err(Buf { raw, start, len }),
        }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slab is mapped and initialised, and nobody may write while views exist.
        unsafe { std::slice::from_raw_parts(self.raw.ptr().add(self.start), self.len) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

impl fmt::Debug for BufMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufMut({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_aligned_distinct_and_come_back() {
        let pool = BufPool::new(2 << 20, false).expect("memory");
        let mut held = Vec::new();
        while let Some(mut buf) = pool.try_alloc(4096) {
            assert_eq!(buf.as_ptr() as usize % SLAB_BYTES_MIN, 0);
            let tag = u8::try_from(held.len() % 251).expect("small");
            buf.fill(tag);
            held.push((tag, buf));
        }
        assert_eq!(held.len(), 512);
        assert!(held.iter().all(|(tag, buf)| buf.iter().all(|b| b == tag)));
        assert!(pool.try_alloc(SLAB_BYTES_MAX).is_none());
        held.truncate(256);
        assert!(pool.try_alloc(SLAB_BYTES_MAX).is_some(), "an empty page serves any class");
        drop(held);
        assert_eq!(pool.stats().used_bytes, 0);
    }

    #[test]
    fn a_view_keeps_its_slab_and_gives_it_back_for_writing_when_alone() {
        let pool = BufPool::new(2 << 20, false).expect("memory");
        let mut buf = pool.try_alloc(10_000).expect("room");
        buf[..4].copy_from_slice(b"abcd");
        let view = buf.freeze();
        let tail = view.slice(2..4);
        let view = view.try_into_mut().expect_err("shared");
        assert_eq!(&tail[..], b"cd");
        drop(tail);
        assert!(view.try_into_mut().is_ok());
    }

    #[test]
    fn a_waiter_gets_the_slab_that_comes_back() {
        let executor = crate::Executor::simulated(1);
        let rt = executor.rt();
        let pool = BufPool::new(2 << 20, false).expect("memory");
        let first = pool.try_alloc(SLAB_BYTES_MAX).expect("room");
        let _second = pool.try_alloc(SLAB_BYTES_MAX).expect("room");
        executor.block_on(async {
            let waiting = rt.spawn(pool.alloc(4096));
            assert!(!pool.is_waited_for());
            rt.yield_now().await;
            assert!(!waiting.is_finished() && pool.is_waited_for());
            drop(first);
            let got = waiting.await.expect("runs");
            assert!(got.len() == 4096 && !pool.is_waited_for());
            let _rest = pool.try_alloc(SLAB_BYTES_MAX);
            drop(rt.timeout(std::time::Duration::from_secs(1), pool.alloc(SLAB_BYTES_MAX)).await);
            assert!(!pool.is_waited_for(), "who gives up does not wait");
        });
    }
}
