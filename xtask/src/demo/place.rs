//! A directory on a real file system with enough room, removed at the end.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cargo::root;

/// Number of servers.
pub const SERVERS: u64 = 4;
/// Size of each server's commit log.
pub const LOG_BYTES: u64 = 256 << 20;
/// Number of data devices of each server.
pub const DEVICES: u64 = 2;

/// Where the demo runs.
pub struct Place {
    /// The directory.
    pub path: PathBuf,
    /// Size of each data device.
    pub device_bytes: u64,
    keep: bool,
}

impl Place {
    /// The first of a few directories that is on a file system with O_DIRECT and has room.
    pub fn choose(source_bytes: u64) -> Result<Self, String> {
        // Half as much again for parity, padding of small files, a server that is away, and room to
        // spare; the rest of the room is for the backing file system and for what is read back.
        let device_bytes = (source_bytes * 9 / 20).max(256 << 20).next_multiple_of(64 << 20);
        let needed = SERVERS * (DEVICES * device_bytes + LOG_BYTES) + 2 * source_bytes + (1 << 30);
        let temporary = std::env::var_os("TMPDIR").map(PathBuf::from);
        let parents =
            [Some(root().join("target")), temporary, Some("/var/tmp".into()), Some("/tmp".into())];
        let mut reasons = Vec::new();
        for parent in parents.into_iter().flatten() {
            match usable(&parent, needed) {
                Ok(()) => {
                    let path = parent.join(format!("burstbay-demo-{}", std::process::id()));
                    std::fs::create_dir(&path)
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    println!(
                        "in {}: {SERVERS} servers, each with {DEVICES} devices of {} MiB and a log of \
                         {} MiB",
                        path.display(),
                        device_bytes >> 20,
                        LOG_BYTES >> 20
                    );
                    return Ok(Self { path, device_bytes, keep: false });
                }
                Err(why) => reasons.push(format!("{}: {why}", parent.display())),
            }
        }
        Err(format!("no place to run the demo in (set TMPDIR): {}", reasons.join("; ")))
    }

    /// It stays.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("x: cannot remove {}: {error}", self.path.display());
        }
    }
}

fn usable(parent: &Path, needed: u64) -> Result<(), String> {
    let probe = parent.join(format!(".burstbay-probe-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).custom_flags(libc::O_DIRECT);
    let opened = options.open(&probe);
    let _ = std::fs::remove_file(&probe);
    opened.map_err(|error| format!("no files with O_DIRECT there ({error})"))?;
    let path = CString::new(parent.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: all-zero is a valid `statfs`.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a NUL, the answer is a local that outlives the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut answer) } != 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    // O_DIRECT works on newer tmpfs, but memory is not what the demo wants to show.
    if answer.f_type == libc::TMPFS_MAGIC {
        return Err("is in memory (tmpfs)".to_owned());
    }
    let block = u64::try_from(answer.f_bsize).unwrap_or(0);
    let free = answer.f_bavail.saturating_mul(block);
    if free < needed {
        return Err(format!("{} MiB free, {} MiB needed", free >> 20, needed >> 20));
    }
    Ok(())
}
