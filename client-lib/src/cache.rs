//! Bytes of parity groups kept for reading. Groups never change, so nothing here is ever out of
//! date; what a file's bytes are is for its fragment map to say.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use bb_pgio::Piece;
use bb_proto::PgId;
use bb_runtime::BufPool;
use bb_runtime::sync::Notify;

/// Size of the pieces that are kept, in bytes.
pub(crate) const SEGMENT_BYTES: usize = 256 << 10;

/// Pieces of which it is remembered, at the most, that they were read: more than one turn of read-ahead
/// fetches.
const READ_REMEMBERED: u64 = 128;

/// A piece of a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Key {
    pg: PgId,
    from: u32,
    len: u32,
}

impl Key {
    /// `len` bytes from `from` of the group's data. No group is as large as a `u32` can say.
    pub fn new(pg: PgId, from: usize, len: usize) -> Self {
        let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { pg, from: small(from), len: small(len) }
    }

    /// The segment that `at` lies in, of a group with `data_bytes`.
    pub fn segment(pg: PgId, at: usize, data_bytes: usize) -> Self {
        let from = at - at % SEGMENT_BYTES;
        Self::new(pg, from, SEGMENT_BYTES.min(data_bytes.saturating_sub(from)))
    }

    /// True for a whole one.
    pub const fn is_segment(&self) -> bool {
        self.len() == SEGMENT_BYTES && self.from().is_multiple_of(SEGMENT_BYTES)
    }

    /// Where in the group's data, in bytes.
    pub const fn from(&self) -> usize {
        self.from as usize
    }

    /// Bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// The same as a range.
    pub const fn range(&self) -> Range<usize> {
        self.from()..self.from() + self.len()
    }
}

/// What is known of a piece.
pub(crate) enum Cached {
    /// Here.
    Here(Rc<Vec<Piece>>),
    /// Being fetched.
    Coming(Notify),
    /// Not here: the caller fetches it, and says so by the guard.
    Fetch(Fetching),
}

enum Entry {
    Here { pieces: Rc<Vec<Piece>>, bytes: u64, stamp: u64, taken: usize },
    Coming(Notify),
}

/// Pieces, least recently used first out.
pub(crate) struct PgCache {
    pool: BufPool,
    /// Limit of the memory that they take, which is more than what is in them.
    limit_bytes: u64,
    used_bytes: Cell<u64>,
    used_bytes_max: Cell<u64>,
    stamp: Cell<u64>,
    entries: RefCell<BTreeMap<Key, Entry>>,
    order: RefCell<BTreeMap<u64, Key>>,
    /// Pieces of streams that went because all of them was read, the latest last.
    read: RefCell<VecDeque<Key>>,
}

/// Somebody fetches a piece. Dropped without [`Fetching::done`], others fetch it themselves.
pub(crate) struct Fetching {
    cache: Rc<PgCache>,
    key: Key,
}

impl PgCache {
    /// Pieces in buffers of `pool`.
    pub fn new(pool: BufPool, limit_bytes: u64) -> Rc<Self> {
        Rc::new(Self {
            pool,
            limit_bytes,
            used_bytes: Cell::new(0),
            used_bytes_max: Cell::new(0),
            stamp: Cell::new(0),
            entries: RefCell::default(),
            order: RefCell::default(),
            read: RefCell::default(),
        })
    }

    fn tick(&self) -> u64 {
        self.stamp.set(self.stamp.get() + 1);
        self.stamp.get()
    }

    /// The piece, if it is here.
    pub fn peek(&self, key: Key) -> Option<Rc<Vec<Piece>>> {
        let next = self.tick();
        match self.entries.borrow_mut().get_mut(&key) {
            Some(Entry::Here { pieces, stamp, .. }) => {
                let mut order = self.order.borrow_mut();
                order.remove(stamp);
                order.insert(next, key);
                *stamp = next;
                Some(pieces.clone())
            }
            _ => None,
        }
    }

    /// True if the piece is here or on its way.
    pub fn knows(&self, key: Key) -> bool {
        self.entries.borrow().contains_key(&key)
    }

    /// The piece, or who fetches it.
    pub fn get(self: &Rc<Self>, key: Key) -> Cached {
        if let Some(pieces) = self.peek(key) {
            return Cached::Here(pieces);
        }
        let mut entries = self.entries.borrow_mut();
        if let Some(Entry::Coming(notify)) = entries.get(&key) {
            return Cached::Coming(notify.clone());
        }
        entries.insert(key, Entry::Coming(Notify::new()));
        Cached::Fetch(Fetching { cache: self.clone(), key })
    }

    /// True for what is read through rather than kept: of so much, nothing would be here any more when it
    /// is read again.
    pub const fn is_stream(&self, file_bytes: u64) -> bool {
        file_bytes > self.limit_bytes
    }

    /// So many bytes of a piece of a stream were read. It goes with the last of them: its memory, which
    /// the processor still has at hand, takes what is fetched next.
    pub fn took(&self, key: Key, len: usize) {
        let mut entries = self.entries.borrow_mut();
        let Some(Entry::Here { taken, stamp, bytes, .. }) = entries.get_mut(&key) else { return };
        *taken += len;
        if *taken >= key.len() {
            self.order.borrow_mut().remove(stamp);
            self.used_bytes.set(self.used_bytes.get() - *bytes);
            entries.remove(&key);
            let mut read = self.read.borrow_mut();
            read.push_back(key);
            // No more than the shortest stream has: who begins anew is not too late.
            if read.len() as u64 > READ_REMEMBERED.min(self.limit_bytes / SEGMENT_BYTES as u64) {
                read.pop_front();
            }
        }
    }

    /// True if all of a piece was read just now: who wanted it ahead of that has come too late.
    pub fn was_read(&self, key: Key) -> bool {
        self.read.borrow().contains(&key)
    }

    /// The most that was kept.
    pub fn used_bytes_max(&self) -> u64 {
        self.used_bytes_max.get()
    }

    /// Gives up the least recently used piece. False if there is none.
    pub fn evict(&self) -> bool {
        let Some((_, key)) = self.order.borrow_mut().pop_first() else { return false };
        if let Some(Entry::Here { bytes, .. }) = self.entries.borrow_mut().remove(&key) {
            self.used_bytes.set(self.used_bytes.get() - bytes);
        }
        true
    }
}

impl Fetching {
    /// It is here. It is not kept while somebody waits for memory, who has seen everything go that
    /// was kept before: nobody would give it up again for them.
    pub fn done(self, pieces: &Rc<Vec<Piece>>) {
        let bytes = pieces.iter().map(|p| p.bytes.slab_bytes() as u64).sum();
        self.done_with_share(pieces, bytes);
    }

    /// The same for pieces that take `bytes` of memory, as their share of what they lie in.
    pub fn done_with_share(self, pieces: &Rc<Vec<Piece>>, bytes: u64) {
        let cache = self.cache.clone();
        if cache.pool.is_waited_for() {
            return;
        }
        while cache.used_bytes.get() + bytes > cache.limit_bytes && cache.evict() {}
        if bytes > cache.limit_bytes {
            return;
        }
        let stamp = cache.tick();
        let entry = Entry::Here { pieces: pieces.clone(), bytes, stamp, taken: 0 };
        let before = cache.entries.borrow_mut().insert(self.key, entry);
        cache.order.borrow_mut().insert(stamp, self.key);
        cache.used_bytes.set(cache.used_bytes.get() + bytes);
        cache.used_bytes_max.set(cache.used_bytes_max.get().max(cache.used_bytes.get()));
        if let Some(Entry::Coming(notify)) = before {
            notify.notify_all();
        }
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        let mut entries = self.cache.entries.borrow_mut();
        if matches!(entries.get(&self.key), Some(Entry::Coming(_)))
            && let Some(Entry::Coming(notify)) = entries.remove(&self.key)
        {
            drop(entries);
            notify.notify_all();
        }
    }
}
