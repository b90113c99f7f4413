//! A directory on the disk that is measured, how much fits there, and its removal.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where everything is.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub path: PathBuf,
    /// Device number of the file system that it is on.
    pub device: u64,
}

impl Place {
    /// Makes a directory below `parent`, which must allow O_DIRECT.
    ///
    /// # Errors
    /// It cannot.
    pub fn make(parent: &Path) -> Result<Self, String> {
        let parent = parent.canonicalize().map_err(|e| format!("{}: {e}", parent.display()))?;
        let path = parent.join(format!("burstbay-bench-{}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        fs::create_dir_all(&path).map_err(failed)?;
        let place = Self { device: fs::metadata(&path).map_err(failed)?.dev(), path: path.clone() };
        let probe = path.join("probe");
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).custom_flags(libc::O_DIRECT);
        options.open(&probe).map_err(|error| format!("no files with O_DIRECT there: {error}"))?;
        fs::remove_file(&probe).map_err(failed)?;
        Ok(place)
    }

    /// A directory in it, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            super::tell::progress(&format!(
                "bench: cannot remove {}: {error}",
                self.path.display()
            ));
        }
    }
}

/// Bytes that are free on the file system of `path`.
///
/// # Errors
/// It is not there.
pub fn free_bytes(path: &Path) -> Result<u64, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: all-zero is a valid `statvfs`.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a NUL, the answer is a local that outlives the call.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut answer) } != 0 {
        return Err(format!("{}: {}", path.display(), std::io::Error::last_os_error()));
    }
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Writes a new file through: a flush of blocks that exist commits no journal.
///
/// # Errors
/// Of the file system.
pub fn write_through(path: &Path, bytes: u64) -> Result<(), String> {
    use std::io::Write;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = fs::File::create(path).map_err(failed)?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..bytes.div_ceil(1 << 20) {
        super::clock::check()?;
        file.write_all(&block).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}
