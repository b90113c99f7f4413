//! What moves data between the buffer and the backing file system, and what tells how much there is.

use bb_client::blocking::{File, Operation};
use bb_proto::meta::{FileState, Residency};
use libc::{c_int, size_t};

use crate::guard::{Errno, Result, refuse};
use crate::library;
use crate::raw;
use crate::table::{Named, find};

/// Ratios that `config_ctl` knows, by number.
pub const RATIO_SYNC: u32 = 0;
/// See above.
pub const RATIO_PURGE: u32 = 1;

/// These calls mean nothing to other descriptors.
fn ours(fd: c_int) -> Result<Named> {
    match find(fd) {
        Some(named) => Ok(named),
        None => {
            raw::fcntl(fd, libc::F_GETFD, 0)?;
            refuse(libc::EINVAL, "not a file of the buffer")
        }
    }
}

fn start(file: &File, what: Residency) -> Result<Operation> {
    // The whole file; a change on the backing file system stops it.
    Ok(file.start(what, 0, 0, 0)?)
}

fn run(file: &File, what: Residency) -> Result<()> {
    start(file, what)?.wait(|_| ())?;
    Ok(())
}

pub fn bfs_sync(fd: c_int, blocking: bool) -> Result<c_int> {
    let file = ours(fd)?.file.file()?;
    if blocking {
        run(&file, Residency::Sync)?;
    } else {
        drop(start(&file, Residency::Sync)?);
    }
    Ok(0)
}

/// Clean data that is here already goes first, unless it is to be kept: it may be out of date.
pub fn prestage(fd: c_int, keep_clean: bool, blocking: bool) -> Result<c_int> {
    let file = ours(fd)?.file.file()?;
    if !keep_clean {
        run(&file, Residency::Purge)?;
    }
    if blocking {
        run(&file, Residency::Prestage)?;
    } else {
        drop(start(&file, Residency::Prestage)?);
    }
    Ok(0)
}

/// Does not wait, as the Guide says.
pub fn data_release(fd: c_int, clean_only: bool) -> Result<c_int> {
    let file = ours(fd)?.file.file()?;
    let what = if clean_only { Residency::Purge } else { Residency::PurgeDirty };
    start(&file, what)?;
    Ok(0)
}

pub fn sync_ctl(fd: c_int, disable: bool) -> Result<c_int> {
    let file = ours(fd)?.file.file()?;
    run(&file, if disable { Residency::Pin } else { Residency::Unpin })?;
    Ok(0)
}

/// # Safety
/// Each pointer is null or writable.
pub unsafe fn frag_fstat(
    fd: c_int,
    dirty: *mut size_t,
    syncing: *mut size_t,
    clean: *mut size_t,
    deletable: *mut size_t,
) -> Result<c_int> {
    let state: FileState = ours(fd)?.file.file()?.fragment_statistics()?;
    let bytes = state.bytes.unwrap_or_default();
    let counts = [bytes.dirty, bytes.pending, bytes.clean, bytes.deletable];
    for (out, count) in [dirty, syncing, clean, deletable].into_iter().zip(counts) {
        if !out.is_null() {
            // SAFETY: the caller's promise, and not null.
            unsafe { out.write(size_t::try_from(count).unwrap_or(size_t::MAX)) };
        }
    }
    Ok(0)
}

pub fn ime_fsize(fd: c_int) -> Result<isize> {
    let size = ours(fd)?.file.size()?;
    isize::try_from(size).map_err(|_| Errno(libc::EOVERFLOW))
}

pub fn async_fd(fd: c_int, on: bool) -> Result<c_int> {
    ours(fd)?.file.set_closes_later(on);
    Ok(0)
}

/// Kept and shown (`bb_settings`): there is no automatic engine yet.
pub fn config_ctl(ratio: c_int, kind: u32) -> Result<c_int> {
    if !(0..=100).contains(&ratio) {
        return refuse(libc::EINVAL, "a ratio is a percentage from 0 to 100");
    }
    match kind {
        RATIO_SYNC | RATIO_PURGE => {
            library::state().ratios[kind as usize] = Some(ratio);
            Ok(0)
        }
        _ => refuse(libc::EINVAL, "no such ratio: 0 is that of synchronization, 1 that of purging"),
    }
}
