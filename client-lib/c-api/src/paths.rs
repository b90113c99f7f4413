//! Which paths are ours, and where in the cluster they lead.
//!
//! | path | is |
//! |---|---|
//! | `ime:///abs`, `ime:/abs` | a path of the backing file system, below its mount point |
//! | `ime://rel`, `ime:rel` | relative to that mount point |
//! | below the mount of the buffer | the same path below the backing file system |
//! | anything else | not ours |
//!
//! The cluster's own paths begin at the root of the backing file system.

use std::ffi::{CStr, CString};

use crate::guard::{Result, refuse};
use crate::raw;

/// The prefix without slashes, in any case.
const PREFIX: &[u8] = b"ime:";
const PATH_BYTES_MAX: usize = 4_095;
const LINKS_MAX: u32 = 40;

/// Where the two mount points are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Of the backing file system; empty: its paths begin at "/".
    backing: Vec<u8>,
    /// Of the buffer; empty: none.
    mount: Vec<u8>,
}

fn trimmed(path: &str) -> Vec<u8> {
    path.trim_end_matches('/').as_bytes().to_vec()
}

/// What of `path` lies below `directory`: empty, or beginning with "/".
fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(directory)?;
    (rest.is_empty() || rest[0] == b'/').then_some(rest)
}

/// The path without `//`, `.` and `..`, and beginning with "/". A trailing slash stays: it says
/// that a directory is meant.
fn normal(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut out = Vec::with_capacity(path.len() + 1);
    for part in &parts {
        out.push(b'/');
        out.extend_from_slice(part);
    }
    if out.is_empty() || path.last() == Some(&b'/') {
        out.push(b'/');
    }
    out
}

impl Places {
    /// Absolute paths, or empty.
    pub fn new(backing: &str, mount: &str) -> Self {
        Self { backing: trimmed(backing), mount: trimmed(mount) }
    }

    /// The path within the cluster, or None for a path that is not ours.
    ///
    /// # Errors
    /// `ENAMETOOLONG`; `ENOENT` for a path with the prefix that does not lie in the backing file
    /// system; `EINVAL` for one with the prefix that lies below the buffer's mount.
    pub fn resolve(&self, path: &CStr) -> Result<Option<Vec<u8>>> {
        let path = path.to_bytes();
        let has_prefix =
            path.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX));
        if !has_prefix {
            return Ok(self.below_mount(path).map(|rest| normal(&rest)));
        }
        if path.len() > PATH_BYTES_MAX {
            return refuse(libc::ENAMETOOLONG, "path longer than 4095 bytes");
        }
        let rest = &path[PREFIX.len()..];
        // Two slashes belong to the prefix.
        let rest = rest.strip_prefix(b"//").unwrap_or(rest);
        if rest.first() != Some(&b'/') {
            // "ime://" alone is the top directory; so is the prefix without anything.
            return Ok(Some(normal(rest)));
        }
        let rest = normal(rest);
        if !self.mount.is_empty() && below(&rest, &self.mount).is_some() {
            if self.backing.is_empty() {
                return Ok(below(&rest, &self.mount).map(normal));
            }
            return refuse(libc::EINVAL, "ime: goes with paths of the backing file system only");
        }
        match below(&rest, &self.backing) {
            Some(rest) => Ok(Some(normal(rest))),
            None => refuse(libc::ENOENT, "not a path of the backing file system"),
        }
    }

    /// What of a path without prefix lies below the buffer's mount.
    pub fn below_mount(&self, path: &[u8]) -> Option<Vec<u8>> {
        if self.mount.is_empty() || path.is_empty() || path.len() > PATH_BYTES_MAX {
            return None;
        }
        if path[0] == b'/' {
            let plain = normal(path);
            if let Some(rest) = below(&plain, &self.mount) {
                return Some(rest.to_vec());
            }
        }
        let real = resolve_links(path, &self.mount)?;
        below(&real, &self.mount).map(<[u8]>::to_vec)
    }
}

/// Follows symbolic links as far as the mount: what lies below
/// it is the cluster's to resolve, and may not even be mounted.
fn resolve_links(path: &[u8], mount: &[u8]) -> Option<Vec<u8>> {
    let mut todo: Vec<Vec<u8>> = Vec::new();
    push_parts(&mut todo, path);
    let mut at: Vec<u8> = Vec::new();
    if path[0] != b'/' {
        at = raw::readlink(c"/proc/self/cwd").ok()?;
        if at == b"/" {
            at.clear();
        }
    }
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if below(&at, mount).is_some() {
            at.push(b'/');
            at.extend_from_slice(&part);
            continue;
        }
        if part == b".." {
            let parent = at.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            at.truncate(parent);
            continue;
        }
        let mut next = at.clone();
        next.push(b'/');
        next.extend_from_slice(&part);
        let name = CString::new(next.clone()).ok()?;
        match raw::readlink(&name) {
            Ok(target) if links < LINKS_MAX && !target.is_empty() => {
                links += 1;
                if target[0] == b'/' {
                    at.clear();
                }
                push_parts(&mut todo, &target);
            }
            // Not a link, or not there: it stays as it is.
            _ => at = next,
        }
    }
    Some(if below(&at, mount).is_some() { normal(&at) } else { at })
}

/// The components of a path in reverse, without empty ones and dots.
fn push_parts(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    todo.extend(parts.rev().map(<[u8]>::to_vec));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Errno;

    fn places() -> Places {
        Places::new("/fsmnt/bfs/", "/imefusemnt")
    }

    fn resolved(places: &Places, path: &str) -> Result<Option<String>> {
        let path = CString::new(path).expect("no NUL");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        places.resolve(&path).map(|found| found.map(text))
    }

    #[test]
    fn all_forms_of_the_guide_lead_where_it_says() {
        for (path, wanted) in [
            ("ime:///fsmnt/bfs/dir/myfile", "/dir/myfile"),
            ("ime://dir/myfile", "/dir/myfile"),
            ("ime:/fsmnt/bfs/dir/myfile", "/dir/myfile"),
            ("ime:dir/myfile", "/dir/myfile"),
            ("IME:///fsmnt/bfs/x", "/x"),
            ("iMe://x", "/x"),
            ("ime:///fsmnt/bfs", "/"),
            ("ime://", "/"),
            ("ime:", "/"),
            ("ime:////fsmnt//bfs/./a/../b/", "/b/"),
            ("/imefusemnt/dir/myfile", "/dir/myfile"),
            ("/imefusemnt", "/"),
            ("//imefusemnt/./a", "/a"),
        ] {
            assert_eq!(resolved(&places(), path), Ok(Some(wanted.to_owned())), "{path}");
        }
    }

    #[test]
    fn other_paths_are_not_ours() {
        for path in ["/fsmnt/bfs/dir", "/imefusemntx/a", "dir/myfile", "/", "", "xime://a", "im"] {
            assert_eq!(resolved(&places(), path), Ok(None), "{path}");
        }
    }

    #[test]
    fn a_prefix_on_the_wrong_tree_is_an_error() {
        assert_eq!(resolved(&places(), "ime:///elsewhere/x"), Err(Errno(libc::ENOENT)));
        assert_eq!(resolved(&places(), "ime:///fsmnt/bfsx"), Err(Errno(libc::ENOENT)));
        assert_eq!(resolved(&places(), "ime:///imefusemnt/x"), Err(Errno(libc::EINVAL)));
        let long = format!("ime://{}", "x/".repeat(3_000));
        assert_eq!(resolved(&places(), &long), Err(Errno(libc::ENAMETOOLONG)));
    }

    #[test]
    fn without_a_backing_mount_the_prefix_goes_with_every_path() {
        let places = Places::new("", "/imefusemnt");
        assert_eq!(resolved(&places, "ime:///a/b"), Ok(Some("/a/b".to_owned())));
        assert_eq!(resolved(&places, "ime:///imefusemnt/b"), Ok(Some("/b".to_owned())));
        assert_eq!(resolved(&Places::new("", ""), "/imefusemnt/b"), Ok(None));
    }

    #[test]
    fn symbolic_links_on_the_way_are_followed() {
        let directory = std::env::temp_dir().join(format!("bb-paths-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("real/mount")).expect("a directory");
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(target, directory.join(name)).expect("a link");
        };
        link("real/mount", "near");
        link("near", "chain");
        link("loop", "loop");
        let root = std::fs::canonicalize(&directory).expect("exists");
        let root = root.to_str().expect("UTF-8");
        let places = Places::new("/bfs", &format!("{root}/real/mount"));
        let result = [
            resolved(&places, &format!("{root}/near/a/b")),
            resolved(&places, &format!("{root}/chain/a")),
            resolved(&places, &format!("{root}/near/../other")),
            resolved(&places, &format!("{root}/loop/a")),
        ];
        std::env::set_current_dir(root).expect("there");
        let relative = resolved(&places, "near/x");
        std::fs::remove_dir_all(&directory).expect("removed");
        let some = |path: &str| Ok(Some(path.to_owned()));
        assert_eq!(result, [some("/a/b"), some("/a"), Ok(None), Ok(None)]);
        assert_eq!(relative, some("/x"));
    }
}
