//! What a data device says of itself, version 1. All numbers are little-endian.
//!
//! ```text
//! 0        4 KiB     superblock
//! 512 KiB  4 KiB     superblock, second copy: half a MiB away from what overwrites the first
//! 1 MiB              chunk 0
//! 2 MiB              chunk 1
//! ...                and so on; what is left at the end is not used
//! ```
//!
//! It is written by [`format_device`] only. `docs/format-blockstore.md` has the fields.

use std::fmt;

use bb_commitlog::Nonce;
use bb_nvme::{BLOCK_BYTES, DeviceError, DeviceRef, Durability};
use bb_proto::{DeviceId, Incarnation};
use bb_runtime::BufPool;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::OpenError;
use super::space::CHUNK_BYTES;
use crate::planted::{self, Planted};

/// Version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"BBDATA\r\n";
const COPIES: [u64; 2] = [0, 512 << 10];
const DATA_OFFSET: u64 = 1 << 20;
const BLOCK_LEN: usize = 4096;
/// Streams in the log that one device may have, besides the one about the whole device. The
/// log holds 65,536 streams; 24 devices and 16,384 partitions leave room.
const PAGES_MAX: u64 = 1024;
/// Smallest page, in chunks: below 64 MiB a snapshot's frame would outweigh its content.
const PAGE_LOG2_MIN: u8 = 6;

/// 128 bits that nothing else has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uuid({self})")
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Wire {
    /// Something else lies here.
    magic: [u8; 8],
    /// A newer program wrote it.
    version: U32,
    /// log2 of a page's size in chunks: which stream a block's records are in.
    page_log2: U32,
    /// Another device under the same path.
    uuid: [u8; 16],
    /// Another cluster's device.
    cluster: [u8; 16],
    /// The device before it was formatted again.
    incarnation: U64,
    /// A device whose log is another one.
    nonce: U64,
    /// Truncated.
    capacity_bytes: U64,
    /// Where chunk 0 is.
    data_offset: U64,
    /// The cluster map's number for (UUID, incarnation).
    device: U32,
    /// CRC32C of the bytes before: torn, rotten or overwritten.
    crc: U32,
}

const _: () = assert!(size_of::<Wire>() == 88);
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_BYTES);

/// Who a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Number in the cluster map.
    pub device: DeviceId,
    /// UUID of the device.
    pub uuid: Uuid,
    /// Times it was formatted.
    pub incarnation: Incarnation,
    /// The cluster.
    pub cluster: Uuid,
    /// Shared with the commit log.
    pub nonce: Nonce,
    /// Size when it was formatted, in bytes.
    pub capacity_bytes: u64,
    /// log2 of a page's size, in chunks.
    pub page_log2: u8,
}

/// Who a device is to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Number in the cluster map.
    pub device: DeviceId,
    /// UUID of the device.
    pub uuid: Uuid,
    /// One more than before, or 1.
    pub incarnation: Incarnation,
    /// The cluster.
    pub cluster: Uuid,
    /// Shared with the commit log.
    pub nonce: Nonce,
}

/// What a device must be to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    /// The cluster.
    pub cluster: Uuid,
    /// The commit log's nonce.
    pub nonce: Nonce,
}

impl Superblock {
    /// Chunks of the data area.
    pub fn chunks(&self) -> u32 {
        let chunks = (self.capacity_bytes - DATA_OFFSET) / CHUNK_BYTES;
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    /// Pages of the data area.
    pub fn pages(&self) -> u32 {
        self.chunks().div_ceil(1 << self.page_log2)
    }

    /// Offset of the data area on the device, in bytes.
    pub const fn data_offset(&self) -> u64 {
        DATA_OFFSET
    }

    /// Checks that this is the cluster's device, and that its blocks are the ones that the log
    /// speaks of.
    ///
    /// # Errors
    /// The variants of [`OpenError`] say what it is instead.
    pub fn check(&self, name: &str, expected: &Expected) -> Result<(), OpenError> {
        let device = name.to_owned();
        if planted::is(Planted::TrustAnyDevice) {
            return Ok(());
        }
        if self.cluster != expected.cluster {
            let (found, expected) = (self.cluster, expected.cluster);
            return Err(OpenError::OtherCluster { device, found, expected });
        }
        if self.nonce != expected.nonce {
            let (found, expected) = (self.nonce, expected.nonce);
            return Err(OpenError::OtherLog { device, found, expected });
        }
        Ok(())
    }

    fn encode(&self) -> Wire {
        let mut wire = Wire {
            magic: MAGIC,
            version: U32::new(VERSION),
            page_log2: U32::new(self.page_log2.into()),
            uuid: self.uuid.0,
            cluster: self.cluster.0,
            incarnation: U64::new(self.incarnation.0),
            nonce: U64::new(self.nonce.0),
            capacity_bytes: U64::new(self.capacity_bytes),
            data_offset: U64::new(DATA_OFFSET),
            device: U32::new(self.device.0),
            crc: U32::new(0),
        };
        wire.crc = U32::new(wire.sum());
        wire
    }
}

impl Wire {
    fn sum(&self) -> u32 {
        let bytes = self.as_bytes();
        bb_erasure::crc32c(&bytes[..bytes.len() - size_of::<U32>()])
    }
}

enum Copy {
    Whole(Superblock),
    Newer(u32),
    Broken,
    Absent,
}

fn decode(block: &[u8]) -> Copy {
    let Ok((wire, _)) = Wire::ref_from_prefix(block) else { return Copy::Absent };
    if wire.magic != MAGIC {
        return Copy::Absent;
    }
    // Version before checksum: a newer format may put that elsewhere.
    if wire.version.get() > VERSION {
        return Copy::Newer(wire.version.get());
    }
    let page_log2 = u8::try_from(wire.page_log2.get()).ok().filter(|log2| *log2 < 32);
    let Some(page_log2) = page_log2.filter(|_| wire.crc.get() == wire.sum()) else {
        return Copy::Broken;
    };
    // Sums are made with these.
    let sizes =
        wire.capacity_bytes.get() >= DATA_OFFSET + CHUNK_BYTES && page_log2 >= PAGE_LOG2_MIN;
    if wire.data_offset.get() != DATA_OFFSET || wire.version.get() == 0 || !sizes {
        return Copy::Broken;
    }
    Copy::Whole(Superblock {
        device: DeviceId(wire.device.get()),
        uuid: Uuid(wire.uuid),
        incarnation: Incarnation(wire.incarnation.get()),
        cluster: Uuid(wire.cluster),
        nonce: Nonce(wire.nonce.get()),
        capacity_bytes: wire.capacity_bytes.get(),
        page_log2,
    })
}

fn page_log2_for(chunks: u64) -> u8 {
    let mut log2 = PAGE_LOG2_MIN;
    while chunks.div_ceil(1 << log2) > PAGES_MAX {
        log2 += 1;
    }
    log2
}

/// Makes a device an empty data device. With `write_through` the data area is filled with zeros
/// first, so that a file system underneath has allocated it and flushes need no journal commit
/// (rule 13); `progress` hears how many bytes are done.
///
/// # Errors
/// [`OpenError::TooSmall`], [`OpenError::Device`].
pub async fn format_device(
    dev: &DeviceRef,
    pool: &BufPool,
    identity: Identity,
    write_through: bool,
    mut progress: impl FnMut(u64),
) -> Result<Superblock, OpenError> {
    let name = &dev.info().name;
    let capacity_bytes = dev.info().capacity_bytes;
    let needed = DATA_OFFSET + CHUNK_BYTES;
    if capacity_bytes < needed {
        return Err(OpenError::TooSmall { device: name.clone(), found: capacity_bytes, needed });
    }
    let failed = |error| OpenError::Device { device: name.clone(), error };
    // The old superblock goes first: a format that is cut off leaves no device that looks well.
    for at in COPIES {
        write_block(dev, pool, at, &[]).await.map_err(failed)?;
    }
    if write_through {
        fill_with_zeros(dev, pool, &mut progress).await.map_err(failed)?;
    }
    dev.flush().await.map_err(failed)?;
    let chunks = (capacity_bytes - DATA_OFFSET) / CHUNK_BYTES;
    let superblock = Superblock {
        device: identity.device,
        uuid: identity.uuid,
        incarnation: identity.incarnation,
        cluster: identity.cluster,
        nonce: identity.nonce,
        capacity_bytes,
        page_log2: page_log2_for(chunks),
    };
    for at in COPIES {
        write_block(dev, pool, at, superblock.encode().as_bytes()).await.map_err(failed)?;
    }
    Ok(superblock)
}

async fn write_block(
    dev: &DeviceRef,
    pool: &BufPool,
    at: u64,
    bytes: &[u8],
) -> Result<(), DeviceError> {
    let mut block = pool.alloc(BLOCK_LEN).await;
    block.fill(0);
    block[..bytes.len()].copy_from_slice(bytes);
    dev.write(at, block.freeze(), Durability::Durable).await
}

async fn fill_with_zeros(
    dev: &DeviceRef,
    pool: &BufPool,
    progress: &mut impl FnMut(u64),
) -> Result<(), DeviceError> {
    let mut zeros = pool.alloc(bb_runtime::SLAB_BYTES_MAX).await;
    zeros.fill(0);
    let zeros = zeros.freeze();
    let (mut at, end) = (DATA_OFFSET, dev.info().capacity_bytes);
    while at < end {
        let len = CHUNK_BYTES.min(end - at);
        let part = usize::try_from(len).map_or_else(|_| zeros.clone(), |len| zeros.slice(..len));
        dev.write(at, part, Durability::Cached).await?;
        at += len;
        progress(at);
    }
    Ok(())
}

/// Reads who a device is, and repairs a damaged copy from the other one.
///
/// # Errors
/// [`OpenError`] says what is there instead.
pub async fn read_superblock(dev: &DeviceRef, pool: &BufPool) -> Result<Superblock, OpenError> {
    let name = &dev.info().name;
    let (superblock, broken) = find_superblock(dev, pool).await?;
    for at in broken {
        tracing::warn!(device = %name, offset = at, "a copy of the superblock was damaged; repaired");
        let written = write_block(dev, pool, at, superblock.encode().as_bytes()).await;
        written.map_err(|error| OpenError::Device { device: name.clone(), error })?;
    }
    Ok(superblock)
}

/// Reads who a device is, and changes nothing.
///
/// # Errors
/// As [`read_superblock`].
pub async fn peek_superblock(dev: &DeviceRef, pool: &BufPool) -> Result<Superblock, OpenError> {
    Ok(find_superblock(dev, pool).await?.0)
}

/// The superblock, and where a copy of it is damaged.
async fn find_superblock(
    dev: &DeviceRef,
    pool: &BufPool,
) -> Result<(Superblock, Vec<u64>), OpenError> {
    let name = &dev.info().name;
    let (mut whole, mut broken) = (None, Vec::new());
    let mut saw_magic = false;
    let mut last_error = None;
    for at in COPIES {
        let buf = pool.alloc(BLOCK_LEN).await;
        match dev.read(at, buf).await.map(|block| decode(&block)) {
            Ok(Copy::Whole(found)) => whole = whole.or(Some(found)),
            Ok(Copy::Newer(found)) => {
                let device = name.clone();
                return Err(OpenError::NewerVersion { device, found, supported: VERSION });
            }
            Ok(Copy::Broken) => {
                saw_magic = true;
                broken.push(at);
            }
            Ok(Copy::Absent) => broken.push(at),
            Err(error) => last_error = Some(error),
        }
    }
    let Some(superblock) = whole else {
        let device = name.clone();
        return Err(match last_error {
            Some(error) => OpenError::Device { device, error },
            None if saw_magic => OpenError::Damaged { device },
            None => OpenError::NotFormatted { device },
        });
    };
    let found = dev.info().capacity_bytes;
    if found < superblock.capacity_bytes || superblock.capacity_bytes < DATA_OFFSET + CHUNK_BYTES {
        let expected = superblock.capacity_bytes;
        return Err(OpenError::Truncated { device: name.clone(), found, expected });
    }
    Ok((superblock, broken))
}

/// What the fuzz test needs of the layout.
#[cfg(test)]
pub(super) mod for_fuzz {
    use super::*;

    pub const BYTES: usize = size_of::<Wire>();

    pub fn example() -> Vec<u8> {
        let superblock = Superblock {
            device: DeviceId(3),
            uuid: Uuid([1; 16]),
            incarnation: Incarnation(1),
            cluster: Uuid([2; 16]),
            nonce: Nonce(77),
            capacity_bytes: 64 << 20,
            page_log2: PAGE_LOG2_MIN,
        };
        superblock.encode().as_bytes().to_vec()
    }

    pub fn accepts(bytes: &[u8]) -> bool {
        let Copy::Whole(found) = decode(bytes) else { return false };
        assert!(found.chunks() > 0);
        found.pages() > 0
    }
}
