//! What to copy: real directories that machines have, chosen by looking.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::clock;

/// Enough to show that small files work; more only takes longer.
const FILES_MIN: u64 = 2_000;
const FILES_MAX: u64 = 12_000;
/// Directories whose files are larger than this on average may pass `FILES_MAX`.
const LARGE_FILE_BYTES: u64 = 256 << 10;

/// Chosen directories, absolute.
pub struct Source {
    /// The directories.
    pub roots: Vec<PathBuf>,
    /// Bytes in their regular files.
    pub bytes: u64,
    /// Number of those.
    pub files: u64,
}

#[derive(Clone, Copy, Default)]
struct Measure {
    bytes: u64,
    files: u64,
    unreadable: bool,
}

impl Source {
    /// Says what it is.
    pub fn print(&self) {
        println!("{} files, {} MiB in:", self.files, self.bytes >> 20);
        let shown = 8;
        for root in self.roots.iter().take(shown) {
            println!("  {}", root.display());
        }
        if self.roots.len() > shown {
            println!("  and {} more directories", self.roots.len() - shown);
        }
    }
}

/// The user's choice, or enough of what there is to have `bytes_min`.
pub fn choose(wanted: Option<&Path>, bytes_min: u64) -> Result<Source, String> {
    let mut source = Source { roots: Vec::new(), bytes: 0, files: 0 };
    if let Some(path) = wanted {
        let path = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
        let measure = measure(&path)?;
        if measure.unreadable {
            return Err(format!("not everything in {} can be read", path.display()));
        }
        if measure.bytes == 0 {
            return Err(format!("there is no data in {}", path.display()));
        }
        source.take(path, measure);
        return Ok(source);
    }
    if let Some((path, measure)) = one(bytes_min)? {
        source.take(path, measure);
        return Ok(source);
    }
    for candidate in candidates() {
        if let Ok(path) = candidate.canonicalize() {
            fill(&path, bytes_min, &mut source, 0)?;
        }
        if source.bytes >= bytes_min && source.files >= FILES_MIN {
            return Ok(source);
        }
    }
    Err(format!(
        "only {} files with {} MiB found to copy: name a directory with --source, or a --size",
        source.files,
        source.bytes >> 20
    ))
}

/// Trees that don't change meanwhile and that a machine that builds this has.
fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let of = |variable: &str, below: &str| {
        std::env::var_os(variable).map_or_else(|| home.join(below), PathBuf::from)
    };
    vec![
        PathBuf::from("/usr/include"),
        PathBuf::from("/usr/share"),
        PathBuf::from("/usr/lib"),
        of("RUSTUP_HOME", ".rustup").join("toolchains"),
        of("CARGO_HOME", ".cargo").join("registry/src"),
    ]
}

/// A single directory that is about right, if there is one.
fn one(bytes_min: u64) -> Result<Option<(PathBuf, Measure)>, String> {
    let right = |found: &Measure| {
        (bytes_min..=bytes_min + bytes_min / 2).contains(&found.bytes)
            && (FILES_MIN..=2 * FILES_MAX).contains(&found.files)
            && !found.unreadable
    };
    let mut level: Vec<PathBuf> =
        candidates().iter().filter_map(|path| path.canonicalize().ok()).collect();
    for _depth in 0..4 {
        let mut below = Vec::new();
        for path in level {
            let found = measure(&path)?;
            if right(&found) {
                return Ok(Some((path, found)));
            }
            if found.bytes > bytes_min {
                below.extend(directories(&path));
            }
        }
        level = below;
    }
    Ok(None)
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let is_directory =
        |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let mut below: Vec<PathBuf> =
        entries.flatten().filter(is_directory).map(|entry| entry.path()).collect();
    below.sort();
    below
}

impl Source {
    fn take(&mut self, path: PathBuf, measure: Measure) {
        self.bytes += measure.bytes;
        self.files += measure.files;
        self.roots.push(path);
    }
}

/// Takes `directory` if it fits, else what fits of its children.
fn fill(directory: &Path, bytes_min: u64, source: &mut Source, depth: u32) -> Result<(), String> {
    clock::check()?;
    if source.bytes >= bytes_min && source.files >= FILES_MIN {
        return Ok(());
    }
    let found = measure(directory)?;
    let bytes_max = bytes_min + bytes_min / 4;
    let large = found.bytes / found.files.max(1) >= LARGE_FILE_BYTES;
    let fits = source.bytes + found.bytes <= bytes_max
        && (large || source.files + found.files <= FILES_MAX)
        && !found.unreadable;
    if fits {
        if found.bytes > 0 {
            source.take(directory.to_owned(), found);
        }
        return Ok(());
    }
    if depth == 6 {
        return Ok(());
    }
    directories(directory).iter().try_for_each(|path| fill(path, bytes_min, source, depth + 1))
}

/// Counts regular files, on one file system.
fn measure(directory: &Path) -> Result<Measure, String> {
    let mut sum = Measure::default();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        clock::check()?;
        let Ok(entries) = std::fs::read_dir(&path) else {
            sum.unreadable = true;
            continue;
        };
        for entry in entries {
            let Ok((entry, metadata)) = entry.and_then(|e| e.metadata().map(|m| (e, m))) else {
                sum.unreadable = true;
                continue;
            };
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.is_file() {
                sum.files += 1;
                sum.bytes += metadata.size();
                sum.unreadable |= !readable(&entry.path());
            }
        }
    }
    Ok(sum)
}

fn readable(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes());
    // SAFETY: the path ends with a NUL.
    path.is_ok_and(|path| unsafe { libc::access(path.as_ptr(), libc::R_OK) } == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_data_is_refused() {
        let empty = std::env::temp_dir().join(format!("x-demo-empty-{}", std::process::id()));
        std::fs::create_dir(&empty).unwrap();
        let chosen = choose(Some(&empty), 1);
        std::fs::remove_dir(&empty).unwrap();
        assert!(chosen.is_err_and(|why| why.contains("no data")));
    }
}
