//! Which side a path is on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A path here or in the buffer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// On a local file system.
    Local(PathBuf),
    /// In the buffer: absolute, without "..", ".", and empty parts.
    Buffer(Vec<u8>),
}

impl Side {
    /// Reads an argument of `cp`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("bb:") {
            Some(path) => buffer_path(path).map(Self::Buffer),
            None => Ok(Self::Local(PathBuf::from(text))),
        }
    }

    /// The path below this one.
    pub fn join(&self, relative: &[u8]) -> Self {
        if relative.is_empty() {
            return self.clone();
        }
        match self {
            Self::Local(path) => Self::Local(path.join(OsStr::from_bytes(relative))),
            Self::Buffer(path) => Self::Buffer(join(path, relative)),
        }
    }

    /// Last part of the path; none for a root.
    pub fn name(&self) -> Option<Vec<u8>> {
        match self {
            Self::Local(path) => path.file_name().map(|n| n.as_bytes().to_vec()),
            Self::Buffer(path) => {
                let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
                (!name.is_empty()).then(|| name.to_vec())
            }
        }
    }

    /// The path without its last part and without a "/" at its start.
    pub fn above(&self) -> Vec<u8> {
        let path = match self {
            Self::Local(path) => path.as_os_str().as_bytes(),
            Self::Buffer(path) => path,
        };
        let parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
        let mut parts: Vec<&[u8]> = parts.collect();
        parts.pop();
        parts.join(&b'/')
    }

    /// How many parts the path has.
    pub fn depth(&self) -> usize {
        match self {
            Self::Local(path) => path.components().count(),
            Self::Buffer(path) => {
                path.split(|b| *b == b'/').filter(|part| !part.is_empty()).count()
            }
        }
    }

    /// For people.
    pub fn shown(&self) -> String {
        match self {
            Self::Local(path) => local_shown(path),
            Self::Buffer(path) => format!("bb:{}", crate::output::path(path)),
        }
    }
}

/// A local path for people.
pub fn local_shown(path: &Path) -> String {
    crate::output::path(path.as_os_str().as_bytes())
}

/// A path in the buffer with a name appended.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// A path in the buffer, with or without "bb:".
///
/// ".." is refused: what it means depends on symbolic links that only servers see.
pub fn buffer_path(text: &str) -> Result<Vec<u8>, String> {
    let path = text.strip_prefix("bb:").unwrap_or(text);
    if !path.starts_with('/') {
        return Err(format!("'{text}': paths in the buffer are absolute (bb:/...)"));
    }
    let mut clean = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(format!("'{text}': '..' can't be used in paths in the buffer"));
        }
        clean.push(b'/');
        clean.extend_from_slice(part.as_bytes());
    }
    if clean.is_empty() {
        clean.push(b'/');
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_the_buffer_are_absolute_and_clean() {
        assert_eq!(buffer_path("bb://a/./b/"), Ok(b"/a/b".to_vec()));
        assert_eq!(buffer_path("/"), Ok(b"/".to_vec()));
        assert!(buffer_path("bb:a").is_err());
        assert!(buffer_path("/a/../b").is_err());
    }

    #[test]
    fn what_is_above_has_no_name_and_no_root() {
        let above = |text: &str| Side::parse(text).map(|side| side.above());
        assert_eq!(above("/usr/lib/gcc"), Ok(b"usr/lib".to_vec()));
        assert_eq!(above("./a"), Ok(Vec::new()));
        assert_eq!(above("bb:/a/b"), Ok(b"a".to_vec()));
    }

    #[test]
    fn joining_and_naming_agree() {
        let root = Side::parse("bb:/").expect("good");
        assert_eq!(root.name(), None);
        assert_eq!(root.join(b"x").name(), Some(b"x".to_vec()));
        assert_eq!(root.join(b"x").join(b""), Side::Buffer(b"/x".to_vec()));
    }
}
