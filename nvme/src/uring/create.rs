//! Making the file of a file-backed device or log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bb_runtime::{BufPool, SLAB_BYTES_MAX};

/// Creates a file of `bytes` and allocates its blocks. With `zero`, writes them once: a flush of a
/// file that was only allocated must also commit the file system's journal, which costs 2.6 times
/// as much. `progress` is told the bytes done, for files that take minutes. A file that exists is
/// not touched; one that could not be finished is removed.
///
/// It blocks: for tools, and threads of a pool.
///
/// # Errors
/// The system's: the file exists, no room, ...
pub fn create_file(
    path: &Path,
    bytes: u64,
    zero: bool,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let direct = if zero { libc::O_DIRECT } else { 0 };
    let open = |flags| {
        OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(path)
    };
    let file = match open(direct) {
        // Some kernels create the file before they find that it can't be opened directly.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let _ = std::fs::remove_file(path);
            open(0)
        }
        other => other,
    }?;
    let result = fill(&file, bytes, zero, &mut progress).and_then(|()| make_durable(&file, path));
    if result.is_err() {
        let _ = std::fs::remove_file(path);
    }
    result
}

fn fill(file: &File, bytes: u64, zero: bool, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
    allocate(file, bytes)?;
    if !zero {
        progress(bytes);
        return Ok(());
    }
    let pool = BufPool::new(SLAB_BYTES_MAX, false)?;
    let zeros = pool.try_alloc_zeroed(SLAB_BYTES_MAX).ok_or(io::ErrorKind::OutOfMemory)?;
    let mut done = 0;
    while done < bytes {
        // Rounded up to a block for O_DIRECT, and cut off below.
        let left = usize::try_from(bytes - done).unwrap_or(usize::MAX);
        let piece = left.min(zeros.len()).next_multiple_of(4096);
        match file.write_at(&zeros[..piece], done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        progress(done.min(bytes));
    }
    file.set_len(bytes)
}

fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    loop {
        // SAFETY: takes no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // Zeros that are written allocate as well; without them the size has to do.
            Some(libc::EOPNOTSUPP) => return file.set_len(bytes),
            _ => return Err(error),
        }
    }
}

fn make_durable(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
