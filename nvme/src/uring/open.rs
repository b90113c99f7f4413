//! Opening: exclusive, direct, and large enough.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bb_runtime::Rt;

use crate::device::BLOCK_BYTES;

/// Worth waiting for: udev holds a lock on a block device while it looks at it, and the ring of a
/// process that was killed keeps its files open until the kernel has taken it apart, some time
/// after the process is gone.
const LOCK_TRIES: u32 = 60;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else has it open: another server, a mount, a volume manager.
    #[error("{path} is in use by another process (`fuser -v {path}` tells which one)")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// It is a directory, a character device or the like.
    #[error("{path} is neither a regular file nor a block device")]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// There is not one block of room.
    #[error("{path} has {bytes} bytes: it was truncated, or never formatted")]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The file system or device can't transfer aligned 4 KiB blocks past the page cache.
    #[error("{path} does not support direct I/O in blocks of 4 KiB (needs {needs_bytes} bytes)")]
    NotDirect {
        /// The path.
        path: PathBuf,
        /// The smallest transfer it supports, 0 where it supports none.
        needs_bytes: u64,
    },
    /// The system refused.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) capacity_bytes: u64,
    pub(super) volatile_cache: bool,
    pub(super) is_block_device: bool,
}

pub(super) async fn open(rt: &Rt, path: &Path) -> Result<Opened, OpenError> {
    let failed = |source: io::Error| OpenError::Io { path: path.to_owned(), source };
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    let is_block_device = kind.is_block_device();
    if !is_block_device && !kind.is_file() {
        return Err(OpenError::Kind { path: path.to_owned() });
    }
    // On a block device, O_EXCL claims it against mounts and volume managers.
    let exclusive = if is_block_device { libc::O_EXCL } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | exclusive);
    let mut tries = LOCK_TRIES;
    let file = loop {
        let error = match options.open(path) {
            Ok(file) => break file,
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EBUSY) if is_block_device && tries > 1 => {}
            Some(libc::EBUSY) if is_block_device => {
                return Err(OpenError::InUse { path: path.to_owned() });
            }
            Some(libc::EINVAL) => {
                return Err(OpenError::NotDirect { path: path.to_owned(), needs_bytes: 0 });
            }
            _ => return Err(failed(error)),
        }
        tries -= 1;
        rt.sleep(LOCK_PAUSE).await;
    };
    lock(rt, &file, path, tries).await?;
    // What is open decides, not what the path was a moment ago.
    let metadata = file.metadata().map_err(failed)?;
    if metadata.file_type() != kind {
        return Err(OpenError::Kind { path: path.to_owned() });
    }
    let needs_bytes = direct_unit_bytes(&file, is_block_device).map_err(failed)?;
    if needs_bytes == 0 || needs_bytes > BLOCK_BYTES {
        return Err(OpenError::NotDirect { path: path.to_owned(), needs_bytes });
    }
    let bytes = size_bytes(file.as_fd(), is_block_device).map_err(failed)?;
    let capacity_bytes = bytes / BLOCK_BYTES * BLOCK_BYTES;
    if capacity_bytes == 0 {
        return Err(OpenError::TooSmall { path: path.to_owned(), bytes });
    }
    let volatile_cache = !is_block_device || !writes_through(metadata.rdev());
    Ok(Opened { fd: file.into(), capacity_bytes, volatile_cache, is_block_device })
}

async fn lock(rt: &Rt, file: &File, path: &Path, mut tries: u32) -> Result<(), OpenError> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) => {}
            Err(std::fs::TryLockError::Error(source)) => {
                return Err(OpenError::Io { path: path.to_owned(), source });
            }
        }
        tries -= 1;
        if tries == 0 {
            return Err(OpenError::InUse { path: path.to_owned() });
        }
        rt.sleep(LOCK_PAUSE).await;
    }
}

/// Size of the open file or block device.
pub(super) fn size_bytes(fd: BorrowedFd<'_>, is_block_device: bool) -> io::Result<u64> {
    if !is_block_device {
        // SAFETY: all zeros is a valid `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is valid for writing.
        if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        return u64::try_from(stat.st_size).map_err(io::Error::other);
    }
    /// `_IOR(0x12, 114, size_t)`
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
    let mut bytes = 0_u64;
    // SAFETY: the request writes eight bytes.
    match unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The unit of direct transfers; 0 where there are none.
fn direct_unit_bytes(file: &File, is_block_device: bool) -> io::Result<u64> {
    if is_block_device {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one `int`.
        return match unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut bytes) } {
            0 => u64::try_from(bytes).map_err(io::Error::other),
            _ => Err(io::Error::last_os_error()),
        };
    }
    // SAFETY: all zeros is a valid `statx`.
    let mut statx: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, and `statx` is valid for writing.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut statx,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if statx.stx_mask & libc::STATX_DIOALIGN == 0 {
        // The file system doesn't tell. It has taken O_DIRECT; 4 KiB is what all of those accept.
        return Ok(BLOCK_BYTES);
    }
    Ok(u64::from(statx.stx_dio_offset_align.max(statx.stx_dio_mem_align)))
}

/// True only if the kernel says that a completed write is on the medium.
fn writes_through(device: u64) -> bool {
    let base = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    // A partition has its queue one level up.
    ["queue/write_cache", "../queue/write_cache"].iter().any(|tail| {
        std::fs::read_to_string(format!("{base}/{tail}"))
            .is_ok_and(|mode| mode.trim() == "write through")
    })
}

/// Tells a block device that a range is not needed.
pub(super) fn discard(fd: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    /// `_IO(0x12, 119)`
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [offset, len];
    // SAFETY: the request reads two `u64`.
    match unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
