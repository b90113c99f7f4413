//! Formatting a device as a log.

use bb_nvme::{BLOCK_BYTES, DeviceRef, Durability};
use bb_runtime::{BufPool, Rt, SLAB_BYTES_MAX};

use crate::error::LogError;
use crate::format::{RING_OFFSET, SUPERBLOCK_COPIES, SUPERBLOCK_STRIDE};
use crate::log::Log;
use crate::options::FormatOptions;
use crate::superblock::{Superblock, check_geometry};

impl Log {
    /// Makes `dev` an empty log. What it held is lost. `progress` is told bytes done and bytes in
    /// all.
    ///
    /// A format that is interrupted leaves something that is not a log.
    ///
    /// # Errors
    /// [`LogError::Geometry`], [`LogError::DeviceTooSmall`], or the device's.
    pub async fn format(
        rt: &Rt,
        pool: &BufPool,
        dev: &DeviceRef,
        options: &FormatOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), LogError> {
        let device_bytes = dev.info().capacity_bytes;
        let whole = device_bytes.saturating_sub(RING_OFFSET) / BLOCK_BYTES * BLOCK_BYTES;
        let ring_bytes = options.ring_bytes.unwrap_or(whole);
        check_geometry(ring_bytes, options.group_bytes_max)?;
        if ring_bytes > whole {
            let needed_bytes = RING_OFFSET + ring_bytes;
            return Err(LogError::DeviceTooSmall { needed_bytes, capacity_bytes: device_bytes });
        }
        // An old superblock goes first and durably, so that no half of two logs can be opened.
        for copy in 0..SUPERBLOCK_COPIES {
            let block = zeros(pool, 4096).await;
            dev.write(copy * SUPERBLOCK_STRIDE, block, Durability::Durable).await?;
        }
        let end = if options.zero_ring { RING_OFFSET + ring_bytes } else { RING_OFFSET };
        let mut at = 0;
        while at < end {
            let part = (end - at).min(SLAB_BYTES_MAX as u64);
            let buf = zeros(pool, usize::try_from(part).unwrap_or(SLAB_BYTES_MAX)).await;
            dev.write(at, buf, Durability::Cached).await?;
            at += part;
            progress(at, end);
        }
        dev.flush().await?;
        let mut superblock = Superblock {
            identity: options.identity,
            generation: 1,
            device_bytes,
            ring_bytes,
            group_bytes_max: options.group_bytes_max,
            incarnation: 0,
            trim: 0,
            durable_through: 0,
            formatted_at_ns: u64::try_from(rt.wall().0).unwrap_or(0),
            table: Vec::new(),
        };
        superblock.write(&**dev, pool).await?;
        superblock.generation = 2;
        superblock.write(&**dev, pool).await?;
        Ok(())
    }
}

async fn zeros(pool: &BufPool, len: usize) -> bb_runtime::Buf {
    let mut buf = pool.alloc(len).await;
    buf.fill(0);
    buf.freeze()
}
