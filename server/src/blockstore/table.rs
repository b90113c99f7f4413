//! What a device holds: every block by its name, and by the page of the device that it lies in.
//!
//! Memory per block (rule 16): 64 bytes of entry, 4 in its page's list, 5 to 10 in the index, and
//! where it has more than one chunk 4 per chunk in an allocation of its own. Nothing here ever
//! moves all entries at once: the index is cut into shards that grow one at a time, the entries
//! lie in slabs.

use std::hash::BuildHasher;

use bb_commitlog::Lsn;
use bb_proto::PgId;
use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use super::space::Address;

/// Name of a block: a parity group and an index in it. Never an address (rule 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockKey {
    /// The group.
    pub pg: PgId,
    /// Which of its blocks.
    pub index: u8,
}

impl std::fmt::Display for BlockKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.pg, self.index)
    }
}

/// CRC32C of each chunk of a block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChunkCrcs {
    /// A block of one chunk: small blocks are the many ones.
    One(u32),
    /// A block of several.
    Many(Box<[u32]>),
}

impl ChunkCrcs {
    /// As a slice.
    pub fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(crc) => std::slice::from_ref(crc),
            Self::Many(crcs) => crcs,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(crcs) => size_of_val::<[u32]>(crcs),
        }
    }
}

impl From<&[u32]> for ChunkCrcs {
    fn from(crcs: &[u32]) -> Self {
        match crcs {
            [crc] => Self::One(*crc),
            crcs => Self::Many(crcs.into()),
        }
    }
}

/// Where a block is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Its data or its record is not durable yet; nobody was told that it is here.
    Pending,
    /// Here.
    Live,
    /// Home says free; the record of that is not durable yet.
    Freeing,
    /// Freed, and out of the index, but somebody still reads its space.
    Zombie,
}

/// A block.
#[derive(Debug)]
pub struct Entry {
    /// The group.
    pub pg: PgId,
    /// Log position of its put record: its data needs no check after a restart where that lies
    /// below what was "durable elsewhere" (rule 12).
    pub lsn: Lsn,
    /// Checksums of its chunks.
    pub crcs: ChunkCrcs,
    /// Its chunk of the device.
    pub chunk: u32,
    /// Where it stands in its page's list.
    position: u32,
    /// How many are reading it.
    pub pins: u16,
    /// Its slot of the chunk.
    pub slot: u8,
    /// Which block of the group.
    pub index: u8,
    /// log2 of its size, in bytes.
    pub block_log2: u8,
    /// log2 of its chunks' size, in bytes.
    pub chunk_log2: u8,
    /// Where it is in its life.
    pub state: State,
    /// What home has said of it.
    pub standing: Standing,
}

const _: () = assert!(size_of::<Option<Entry>>() == 64, "one cache line");

/// What is known of a block's commit (rule 1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Home was not asked, or has not decided.
    Unconfirmed,
    /// The same, and it was put after the device had confirmed everything through its slot: a
    /// restart must ask about it all the same.
    UnconfirmedLate,
    /// Home said that the group is committed and names this device.
    Confirmed,
}

impl Entry {
    /// A block that has just been given space.
    pub fn new(key: BlockKey, address: Address, logs: Logs, crcs: ChunkCrcs) -> Self {
        Self {
            pg: key.pg,
            lsn: Lsn(0),
            crcs,
            chunk: address.chunk,
            position: 0,
            pins: 0,
            slot: address.slot,
            index: key.index,
            block_log2: logs.block,
            chunk_log2: logs.chunk,
            state: State::Pending,
            standing: Standing::Unconfirmed,
        }
    }

    /// Its name.
    pub const fn key(&self) -> BlockKey {
        BlockKey { pg: self.pg, index: self.index }
    }

    /// Where it lies.
    pub const fn address(&self) -> Address {
        Address { chunk: self.chunk, slot: self.slot }
    }

    /// Size, in bytes.
    pub const fn bytes(&self) -> usize {
        1 << self.block_log2
    }
}

/// Sizes of a block and of its chunks, as powers of two in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Logs {
    /// log2 of the block's size.
    pub block: u8,
    /// log2 of the chunks' size.
    pub chunk: u8,
}

/// Where an entry is in memory. Used again after the entry is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EntryId(u32);

/// Entries of a slab: a page of memory.
const SLAB: usize = 64;
const SHARDS: usize = 64;

/// All blocks of a device.
pub struct Table {
    slabs: Vec<Vec<Option<Entry>>>,
    vacant: Vec<EntryId>,
    index: Vec<HashTable<EntryId>>,
    pages: Vec<Vec<EntryId>>,
    /// log2 of a page's size, in chunks.
    page_log2: u8,
    crc_bytes: usize,
}

fn hash_of(key: BlockKey) -> u64 {
    FxBuildHasher.hash_one(key)
}

fn shard_of(hash: u64) -> usize {
    // Bits that the shard itself uses least: neither its lowest nor its seven highest.
    usize::try_from(hash >> 40).unwrap_or(0) % SHARDS
}

fn entry_at(slabs: &[Vec<Option<Entry>>], id: EntryId) -> &Entry {
    slabs[id.0 as usize / SLAB][id.0 as usize % SLAB].as_ref().expect("the id of an entry")
}

impl Table {
    /// Nothing yet, on a device of `pages` pages of `2^page_log2` chunks.
    pub fn new(pages: u32, page_log2: u8) -> Self {
        Self {
            slabs: Vec::new(),
            vacant: Vec::new(),
            index: (0..SHARDS).map(|_| HashTable::new()).collect(),
            pages: (0..pages).map(|_| Vec::new()).collect(),
            page_log2,
            crc_bytes: 0,
        }
    }

    /// The page that a chunk lies in.
    pub fn page_of(&self, chunk: u32) -> u32 {
        chunk >> self.page_log2
    }

    /// How many pages there are.
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.pages.len()).expect("made from 32 bits")
    }

    /// Blocks held, pending ones among them.
    pub fn len(&self) -> usize {
        self.index.iter().map(HashTable::len).sum()
    }

    /// The block with this name.
    pub fn find(&self, key: BlockKey) -> Option<EntryId> {
        let hash = hash_of(key);
        self.index[shard_of(hash)].find(hash, |id| entry_at(&self.slabs, *id).key() == key).copied()
    }

    /// An entry.
    ///
    /// # Panics
    /// When there is none under this id.
    pub fn get(&self, id: EntryId) -> &Entry {
        entry_at(&self.slabs, id)
    }

    /// An entry, to change it. Name and address must stay.
    ///
    /// # Panics
    /// When there is none under this id.
    pub fn get_mut(&mut self, id: EntryId) -> &mut Entry {
        self.slabs[id.0 as usize / SLAB][id.0 as usize % SLAB].as_mut().expect("the id of an entry")
    }

    /// Adds a block whose name is not there yet.
    pub fn insert(&mut self, mut entry: Entry) -> EntryId {
        let key = entry.key();
        assert!(self.find(key).is_none(), "{key} is there already");
        let page = self.page_of(entry.chunk) as usize;
        entry.position = u32::try_from(self.pages[page].len()).expect("slots of a page");
        self.crc_bytes += entry.crcs.heap_bytes();
        let id = self.vacant.pop().unwrap_or_else(|| self.grow());
        self.slabs[id.0 as usize / SLAB][id.0 as usize % SLAB] = Some(entry);
        self.pages[page].push(id);
        let hash = hash_of(key);
        let slabs = &self.slabs;
        self.index[shard_of(hash)]
            .insert_unique(hash, id, |other| hash_of(entry_at(slabs, *other).key()));
        id
    }

    fn grow(&mut self) -> EntryId {
        let first = u32::try_from(self.slabs.len() * SLAB).expect("fewer than 2^32 blocks");
        let mut slab = Vec::with_capacity(SLAB);
        slab.resize_with(SLAB, || None);
        self.slabs.push(slab);
        let slab_len = u32::try_from(SLAB).expect("small");
        self.vacant.extend((first + 1..first + slab_len).rev().map(EntryId));
        EntryId(first)
    }

    /// Takes a block's name away; the entry stays until [`Table::remove`].
    pub fn unlink(&mut self, id: EntryId) {
        let key = self.get(id).key();
        let hash = hash_of(key);
        let found = self.index[shard_of(hash)].find_entry(hash, |other| *other == id);
        found.expect("a linked entry is in the index").remove();
        let (chunk, position) = (self.get(id).chunk, self.get(id).position);
        let page = self.page_of(chunk) as usize;
        self.pages[page].swap_remove(position as usize);
        if let Some(moved) = self.pages[page].get(position as usize).copied() {
            self.get_mut(moved).position = position;
        }
    }

    /// Drops an entry that was unlinked.
    pub fn remove(&mut self, id: EntryId) -> Entry {
        let place = &mut self.slabs[id.0 as usize / SLAB][id.0 as usize % SLAB];
        let entry = place.take().expect("the id of an entry");
        self.crc_bytes -= entry.crcs.heap_bytes();
        self.vacant.push(id);
        entry
    }

    /// The blocks of a page.
    pub fn page(&self, page: u32) -> impl ExactSizeIterator<Item = &Entry> {
        self.pages[page as usize].iter().map(|id| self.get(*id))
    }

    /// Ids of the blocks of a page.
    #[cfg(feature = "planted")]
    pub fn page_ids(&self, page: u32) -> &[EntryId] {
        &self.pages[page as usize]
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let buckets = |shard: &HashTable<EntryId>| shard.capacity() * 8 / 7;
        let index: usize =
            self.index.iter().map(buckets).sum::<usize>() * (size_of::<EntryId>() + 1);
        let ids: usize =
            self.pages.iter().map(Vec::capacity).sum::<usize>() + self.vacant.capacity();
        self.slabs.len() * SLAB * size_of::<Option<Entry>>()
            + index
            + ids * size_of::<EntryId>()
            + self.pages.len() * size_of::<Vec<EntryId>>()
            + self.crc_bytes
    }
}
