//! Which configuration file, and what is in it.

use std::ffi::CString;

use super::syntax::{FileValues, parse};
use crate::guard::Errno;
use crate::raw;

/// Looked for in this order where none was named.
const USUAL: [&str; 2] = ["/etc/ddn/ime/ime.conf", "/etc/burstbay/bb.conf"];

/// Reads the file that was named, or the first one that exists: values, and its path.
///
/// # Errors
/// A sentence.
pub fn read(named: Option<&str>) -> Result<(FileValues, String), String> {
    if let Some(path) = named.filter(|path| !path.is_empty()) {
        return match contents(path) {
            Ok(Some(text)) => values(path, &text),
            Ok(None) => Err(format!("{path}: there is no such file")),
            Err(error) => Err(error),
        };
    }
    for path in USUAL {
        if let Some(text) = contents(path)? {
            return values(path, &text);
        }
    }
    Ok(Default::default())
}

fn contents(path: &str) -> Result<Option<String>, String> {
    let name = CString::new(path).map_err(|_| format!("{path}: holds a NUL"))?;
    match raw::read_file(&name) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| format!("{path}: not UTF-8")),
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(Errno(errno)) => Err(format!("{path}: {}", std::io::Error::from_raw_os_error(errno))),
    }
}

fn values(path: &str, text: &str) -> Result<(FileValues, String), String> {
    let mut values = parse(text).map_err(|error| format!("{path}: {error}"))?;
    // The mount's file lies beside it, a fragment of shell.
    if let Some((directory, _)) = path.rsplit_once('/')
        && let Some(fragment) = contents(&format!("{directory}/ime-fuse.conf"))?
    {
        for (name, variable) in [("mount_point", "BFSDIR"), ("fuse_mount_point", "MNTDIR")] {
            if let Some(value) = shell_value(&fragment, variable) {
                values.entry(name).or_insert(value);
            }
        }
    }
    Ok((values, path.to_owned()))
}

/// The last assignment of a variable.
fn shell_value(fragment: &str, variable: &str) -> Option<String> {
    let assigned = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let value = line.strip_prefix(variable)?.strip_prefix('=')?;
        let value = match value.chars().next() {
            Some(quote @ ('\'' | '"')) => value[1..].split(quote).next(),
            _ => value.split([' ', '\t', '#', ';']).next(),
        };
        value.map(str::to_owned)
    };
    fragment.lines().filter_map(assigned).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_s_shell_fragment_is_understood() {
        let text = "# BFSDIR=/no\nBFSDIR=/mnt/bfs # here\nexport MNTDIR='/ime mount'\nBFSDIRX=/x\n";
        assert_eq!(shell_value(text, "BFSDIR").as_deref(), Some("/mnt/bfs"));
        assert_eq!(shell_value(text, "MNTDIR").as_deref(), Some("/ime mount"));
        assert_eq!(shell_value(text, "NONE"), None);
    }

    #[test]
    fn the_fragment_beside_the_file_fills_what_the_file_leaves_open() {
        let directory = std::env::temp_dir().join(format!("bb-fuse-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("ime.conf");
        std::fs::write(&path, "ime_bfs { mount_point: /from/conf; }\n").expect("a file");
        std::fs::write(directory.join("ime-fuse.conf"), "BFSDIR=/b\nMNTDIR='/m'\n")
            .expect("a file");
        let (values, _) = read(path.to_str()).expect("good");
        std::fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(values["mount_point"], "/from/conf");
        assert_eq!(values["fuse_mount_point"], "/m");
    }
}
