//! The superblock: who the log is, where it begins, and where each stream starts.

use bb_nvme::{BLOCK_BYTES, Device, DeviceError, Durability};
use bb_runtime::{BufPool, SLAB_BYTES_MAX};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::LogError;
use crate::format::{
    BLOCK, RING_OFFSET, START_IS_SNAPSHOT, STREAMS_MAX, SUPERBLOCK_COPIES, SUPERBLOCK_MAGIC,
    SUPERBLOCK_STRIDE, StreamEntry, SuperblockHeader, VERSION, le32, size,
};
use crate::ids::{ClusterUuid, LogIdentity, LogUuid, Lsn, Nonce, StreamId};
use crate::streams::Start;

/// Largest position and count that sums can be made with.
const LSN_MAX: u64 = 1 << 62;

/// A superblock in memory.
#[derive(Clone, Debug)]
pub(crate) struct Superblock {
    pub(crate) identity: LogIdentity,
    pub(crate) generation: u64,
    pub(crate) device_bytes: u64,
    pub(crate) ring_bytes: u64,
    pub(crate) group_bytes_max: usize,
    pub(crate) incarnation: u64,
    pub(crate) trim: u64,
    pub(crate) durable_through: u64,
    pub(crate) formatted_at_ns: u64,
    pub(crate) table: Vec<(StreamId, Start)>,
}

/// What the four places held.
pub(crate) struct Found {
    pub(crate) newest: Option<Superblock>,
    /// Copies that were whole.
    pub(crate) whole: usize,
    /// Copies that bore the magic and were not whole.
    pub(crate) damaged: usize,
    pub(crate) newer_version: Option<u32>,
}

impl Superblock {
    /// The bytes of one copy, a multiple of 4 KiB.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let table_bytes = self.table.len() * size_of::<StreamEntry>();
        let mut bytes = vec![0; (BLOCK + table_bytes).next_multiple_of(BLOCK)];
        let places = bytes[BLOCK..].chunks_exact_mut(size_of::<StreamEntry>());
        for (place, (stream, start)) in places.zip(&self.table) {
            let within = u32::try_from(start.lsn.0 - start.group.0).expect("groups are small");
            let entry = StreamEntry {
                stream: U64::new(stream.0),
                start: U64::new(start.lsn.0),
                within_group: U32::new(within),
                flags: U32::new(if start.snapshot { START_IS_SNAPSHOT } else { 0 }),
            };
            place.copy_from_slice(entry.as_bytes());
        }
        let mut header = SuperblockHeader {
            magic: SUPERBLOCK_MAGIC,
            version: U32::new(VERSION),
            crc: U32::ZERO,
            generation: U64::new(self.generation),
            log_uuid: self.identity.log.0,
            cluster_uuid: self.identity.cluster.0,
            nonce: U64::new(self.identity.nonce.0),
            device_bytes: U64::new(self.device_bytes),
            ring_offset: U64::new(RING_OFFSET),
            ring_bytes: U64::new(self.ring_bytes),
            group_bytes_max: le32(self.group_bytes_max),
            stream_count: le32(self.table.len()),
            incarnation: U64::new(self.incarnation),
            trim: U64::new(self.trim),
            durable_through: U64::new(self.durable_through),
            formatted_at: U64::new(self.formatted_at_ns),
            reserved: [0; 64],
        };
        bytes[..size_of::<SuperblockHeader>()].copy_from_slice(header.as_bytes());
        header.crc = U32::new(crc32c::crc32c(&bytes));
        bytes[..size_of::<SuperblockHeader>()].copy_from_slice(header.as_bytes());
        bytes
    }

    /// Writes both copies of this generation durably.
    pub(crate) async fn write(&self, dev: &dyn Device, pool: &BufPool) -> Result<(), DeviceError> {
        let bytes = self.encode();
        let first = self.generation % 2 * 2;
        for copy in [first, first + 1] {
            for (index, part) in bytes.chunks(SLAB_BYTES_MAX).enumerate() {
                let mut buf = pool.alloc(part.len()).await;
                buf.copy_from_slice(part);
                let offset = copy * SUPERBLOCK_STRIDE + (index * SLAB_BYTES_MAX) as u64;
                dev.write(offset, buf.freeze(), Durability::Durable).await?;
            }
        }
        Ok(())
    }

    /// Reads a copy: whole blocks, with all of the table.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, _) = SuperblockHeader::read_from_prefix(bytes).ok()?;
        let count = size(header.stream_count);
        let mut unsigned = bytes.to_vec();
        unsigned[12..16].fill(0);
        if crc32c::crc32c(&unsigned) != header.crc.get() {
            return None;
        }
        let table = bytes
            .get(BLOCK..)?
            .chunks_exact(size_of::<StreamEntry>())
            .take(count)
            .filter_map(|entry| StreamEntry::read_from_bytes(entry).ok())
            .map(|entry| {
                let lsn = entry.start.get();
                let group = Lsn(lsn.saturating_sub(u64::from(entry.within_group.get())));
                let snapshot = entry.flags.get() & START_IS_SNAPSHOT != 0;
                (StreamId(entry.stream.get()), Start { lsn: Lsn(lsn), group, snapshot })
            })
            .collect();
        Some(Self {
            identity: LogIdentity {
                log: LogUuid(header.log_uuid),
                cluster: ClusterUuid(header.cluster_uuid),
                nonce: Nonce(header.nonce.get()),
            },
            generation: header.generation.get(),
            device_bytes: header.device_bytes.get(),
            ring_bytes: header.ring_bytes.get(),
            group_bytes_max: size(header.group_bytes_max),
            incarnation: header.incarnation.get(),
            trim: header.trim.get(),
            durable_through: header.durable_through.get(),
            formatted_at_ns: header.formatted_at.get(),
            table,
        })
    }
}

#[cfg(test)]
impl Superblock {
    /// As [`find`] reads a copy.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (header, _) = SuperblockHeader::read_from_prefix(bytes).ok()?;
        let ours = header.magic == SUPERBLOCK_MAGIC && header.version.get() <= VERSION;
        ours.then(|| Self::decode(bytes))?
    }
}

/// Reads all copies.
///
/// # Errors
/// The device's, when no copy could be read.
pub(crate) async fn find(dev: &dyn Device, pool: &BufPool) -> Result<Found, LogError> {
    let mut found = Found { newest: None, whole: 0, damaged: 0, newer_version: None };
    let mut unreadable = None;
    for copy in 0..SUPERBLOCK_COPIES {
        let offset = copy * SUPERBLOCK_STRIDE;
        if offset + SUPERBLOCK_STRIDE > dev.info().capacity_bytes {
            break;
        }
        let bytes = match read_copy(dev, pool, offset).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(newer)) => {
                found.newer_version = found.newer_version.max(newer);
                continue;
            }
            Err(error) => {
                found.damaged += 1;
                unreadable = Some(error);
                continue;
            }
        };
        match Superblock::decode(&bytes) {
            Some(superblock) => {
                found.whole += 1;
                let newest = found.newest.as_ref().map(|newest| newest.generation);
                if newest.is_none_or(|newest| newest < superblock.generation) {
                    found.newest = Some(superblock);
                }
            }
            None => found.damaged += 1,
        }
    }
    match unreadable {
        Some(error) if found.whole == 0 => Err(LogError::Device(error)),
        _ => Ok(found),
    }
}

/// The bytes under a copy's CRC; `Err(None)` where there is no superblock, `Err(Some(version))`
/// where there is a newer one.
async fn read_copy(
    dev: &dyn Device,
    pool: &BufPool,
    offset: u64,
) -> Result<Result<Vec<u8>, Option<u32>>, DeviceError> {
    let mut bytes = Vec::new();
    let first = dev.read(offset, pool.alloc(BLOCK).await).await?;
    bytes.extend_from_slice(&first);
    drop(first);
    let Ok((header, _)) = SuperblockHeader::read_from_prefix(&bytes) else { return Ok(Err(None)) };
    if header.magic != SUPERBLOCK_MAGIC {
        return Ok(Err(None));
    }
    if header.version.get() > VERSION {
        return Ok(Err(Some(header.version.get())));
    }
    let count = size(header.stream_count).min(STREAMS_MAX);
    let mut left = (count * size_of::<StreamEntry>()).next_multiple_of(BLOCK);
    while left > 0 {
        let part = left.min(SLAB_BYTES_MAX);
        let at = offset + bytes.len() as u64;
        let read = dev.read(at, pool.alloc(part).await).await?;
        bytes.extend_from_slice(&read);
        left -= part;
    }
    Ok(Ok(bytes))
}

/// Checks that the superblock describes a log that can be on this device.
pub(crate) fn check(superblock: &Superblock, capacity_bytes: u64) -> Result<(), LogError> {
    let needed_bytes = RING_OFFSET.saturating_add(superblock.ring_bytes);
    if needed_bytes > capacity_bytes {
        return Err(LogError::DeviceTooSmall { needed_bytes, capacity_bytes });
    }
    // Positions are counted in bytes written: no ring lives long enough to come near this.
    let positions = superblock.trim.max(superblock.durable_through);
    let counts = superblock.generation.max(superblock.incarnation);
    if positions > LSN_MAX || counts > LSN_MAX {
        return Err(LogError::Geometry(format!("a log at LSN {positions}")));
    }
    if superblock.trim + superblock.ring_bytes < superblock.durable_through {
        let (trim, through) = (superblock.trim, superblock.durable_through);
        return Err(LogError::Geometry(format!("a ring of {trim} to {through}")));
    }
    check_geometry(superblock.ring_bytes, superblock.group_bytes_max)
}

/// Checks sizes.
pub(crate) fn check_geometry(ring_bytes: u64, group_bytes_max: usize) -> Result<(), LogError> {
    let group_ok = group_bytes_max.is_power_of_two()
        && (4 * BLOCK..=SLAB_BYTES_MAX).contains(&group_bytes_max);
    if !group_ok {
        let why = format!("groups of {group_bytes_max} bytes: a power of two, 16 KiB to 1 MiB");
        return Err(LogError::Geometry(why));
    }
    if !ring_bytes.is_multiple_of(BLOCK_BYTES) || ring_bytes < 16 * group_bytes_max as u64 {
        let why = format!("ring of {ring_bytes} bytes: whole blocks, room for 16 groups");
        return Err(LogError::Geometry(why));
    }
    Ok(())
}
