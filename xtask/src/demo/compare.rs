//! Two trees, byte for byte.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::clock;

/// What a comparison found.
#[derive(Default, Debug)]
pub struct Comparison {
    /// Regular files of the source.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the source that are missing or different in the copy.
    pub lost_bytes: u64,
    /// Sentences about the first differences.
    pub differences: Vec<String>,
}

impl Comparison {
    fn differs(&mut self, path: &Path, what: &str) {
        if self.differences.len() < 20 {
            self.differences.push(format!("{}: {what}", path.display()));
        }
    }

    /// An error unless all is the same.
    pub fn verdict(&self) -> Result<(), String> {
        if self.lost_bytes == 0 && self.differences.is_empty() {
            return Ok(());
        }
        let list = self.differences.join("\n  ");
        Err(format!("{} bytes lost or different:\n  {list}", self.lost_bytes))
    }
}

/// Compares directories, regular files, permissions and modification times below `source` with
/// those below `copy`. Symbolic links and special files of the source are not copied.
pub fn trees(source: &Path, copy: &Path, sum: &mut Comparison) -> Result<(), String> {
    let mut open: Vec<(PathBuf, PathBuf)> = vec![(source.to_owned(), copy.to_owned())];
    while let Some((source, copy)) = open.pop() {
        clock::check()?;
        let there =
            fs::read_dir(&source).map_err(|error| format!("{}: {error}", source.display()))?;
        let mut names = Vec::new();
        for entry in there {
            let entry = entry.map_err(|error| format!("{}: {error}", source.display()))?;
            let path = entry.path();
            let metadata =
                entry.metadata().map_err(|error| format!("{}: {error}", path.display()))?;
            let other = copy.join(entry.file_name());
            if metadata.is_dir() {
                names.push(entry.file_name());
                open.push((path, other));
            } else if metadata.is_file() {
                names.push(entry.file_name());
                file(&path, &metadata, &other, sum)?;
            }
        }
        surplus(&copy, &names, sum);
    }
    Ok(())
}

fn file(
    path: &Path,
    metadata: &fs::Metadata,
    other: &Path,
    sum: &mut Comparison,
) -> Result<(), String> {
    clock::check()?;
    sum.files += 1;
    sum.bytes += metadata.len();
    let copied = match fs::symlink_metadata(other) {
        Ok(copied) => copied,
        Err(error) => {
            sum.lost_bytes += metadata.len();
            sum.differs(other, &error.to_string());
            return Ok(());
        }
    };
    let (mode, copied_mode) = (metadata.mode() & 0o7777, copied.mode() & 0o7777);
    if mode != copied_mode {
        sum.differs(other, &format!("permissions {copied_mode:o} instead of {mode:o}"));
    }
    let times = |m: &fs::Metadata| (m.mtime(), m.mtime_nsec());
    if times(metadata) != times(&copied) {
        let (was, is) = (times(metadata), times(&copied));
        sum.differs(other, &format!("modification time {is:?} instead of {was:?}"));
    }
    if copied.len() != metadata.len() {
        sum.differs(other, &format!("{} bytes instead of {}", copied.len(), metadata.len()));
    }
    let lost = contents(path, other)?;
    if lost > 0 {
        sum.lost_bytes += lost;
        sum.differs(other, &format!("{lost} bytes are missing or wrong"));
    }
    Ok(())
}

/// Names in the copy that the source doesn't have.
fn surplus(copy: &Path, names: &[std::ffi::OsString], sum: &mut Comparison) {
    match fs::read_dir(copy) {
        Ok(entries) => {
            for entry in entries.flatten().filter(|entry| !names.contains(&entry.file_name())) {
                sum.differs(&entry.path(), "is not in the source");
            }
        }
        Err(error) => sum.differs(copy, &error.to_string()),
    }
}

/// Number of bytes of `path` that `other` does not have at the same place.
fn contents(path: &Path, other: &Path) -> Result<u64, String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let mut source = File::open(path).map_err(|error| failed(path, error))?;
    let mut copy = File::open(other).map_err(|error| failed(other, error))?;
    let (mut want, mut have) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut lost = 0;
    loop {
        let wanted = fill(&mut source, &mut want).map_err(|error| failed(path, error))?;
        let found = fill(&mut copy, &mut have[..wanted]).map_err(|error| failed(other, error))?;
        if want[..found] != have[..found] {
            lost += want.iter().zip(&have[..found]).filter(|(a, b)| a != b).count() as u64;
        }
        lost += (wanted - found) as u64;
        if wanted < want.len() {
            return Ok(lost);
        }
    }
}

fn fill(file: &mut File, into: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read(&mut into[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Counts regular files below `directory` that have a size or space on the device: none, as long as
/// nothing was synchronized.
pub fn with_data(directory: &Path) -> Result<(u64, u64), String> {
    let (mut all, mut with_data) = (0, 0);
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let failed = |error: std::io::Error| format!("{}: {error}", path.display());
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let metadata = entry.metadata().map_err(failed)?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.is_file() {
                all += 1;
                with_data += u64::from(metadata.len() > 0 || metadata.blocks() > 0);
            }
        }
    }
    Ok((all, with_data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_found() {
        let base = std::env::temp_dir().join(format!("x-demo-compare-{}", std::process::id()));
        let (a, b) = (base.join("a"), base.join("b"));
        let compare = || {
            let mut sum = Comparison::default();
            trees(&a, &b, &mut sum).unwrap();
            sum
        };
        fs::create_dir_all(a.join("d")).unwrap();
        fs::create_dir_all(b.join("d")).unwrap();
        fs::write(a.join("d/f"), b"0123456789").unwrap();
        fs::copy(a.join("d/f"), b.join("d/f")).unwrap();
        let time = fs::metadata(a.join("d/f")).unwrap().modified().unwrap();
        let same_time =
            || File::options().write(true).open(b.join("d/f")).unwrap().set_modified(time);
        same_time().unwrap();
        compare().verdict().unwrap();
        assert_eq!(with_data(&b).unwrap(), (1, 1));

        fs::write(b.join("d/f"), b"0123x56789").unwrap();
        same_time().unwrap();
        let sum = compare();
        assert_eq!((sum.lost_bytes, sum.differences.len()), (1, 1), "{sum:?}");
        fs::write(b.join("d/f"), b"0123").unwrap();
        same_time().unwrap();
        assert_eq!(compare().lost_bytes, 6);
        fs::remove_file(b.join("d/f")).unwrap();
        fs::write(b.join("d/other"), b"").unwrap();
        let sum = compare();
        assert_eq!((sum.lost_bytes, sum.differences.len()), (10, 2), "{sum:?}");
        fs::remove_dir_all(base).unwrap();
    }
}
