//! Everything below a path, parents before their children.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bb_proto::meta::{Attributes, DirEntry};
use futures_util::stream::{self, StreamExt};

use crate::output::local_error;
use crate::session::Session;
use crate::side::{join, local_shown};

/// Requests about names under way at the same time.
pub const NAMES_IN_FLIGHT: usize = 64;

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, socket or pipe.
    Other,
}

/// Something in a tree.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path below the root of the tree; empty for the root itself.
    pub relative: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its attributes, if they were asked for.
    pub attributes: Option<Facts>,
}

/// Attributes that `cp` needs.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// In bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// In nanoseconds since 1970.
    pub atime_ns: i64,
    /// In nanoseconds since 1970.
    pub mtime_ns: i64,
}

impl Entry {
    /// How deep below the root.
    pub fn depth(&self) -> usize {
        if self.relative.is_empty() {
            return 0;
        }
        1 + self.relative.iter().filter(|b| **b == b'/').count()
    }
}

impl From<&Attributes> for Facts {
    fn from(of: &Attributes) -> Self {
        let Attributes { size, atime_ns, mtime_ns, .. } = *of;
        Self { size, mode: of.mode & 0o7777, atime_ns, mtime_ns }
    }
}

impl From<&fs::Metadata> for Facts {
    fn from(of: &fs::Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size: of.len(),
            mode: of.mode() & 0o7777,
            atime_ns: ns(of.atime(), of.atime_nsec()),
            mtime_ns: ns(of.mtime(), of.mtime_nsec()),
        }
    }
}

/// Kind of something with this `st_mode`.
pub const fn kind_of_mode(mode: u32) -> Kind {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Kind::File,
        libc::S_IFDIR => Kind::Directory,
        libc::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

/// Kind by `d_type`; none where the file system didn't say.
fn kind_of_entry(entry: &DirEntry) -> Option<Kind> {
    match u8::try_from(entry.kind) {
        Ok(libc::DT_REG) => Some(Kind::File),
        Ok(libc::DT_DIR) => Some(Kind::Directory),
        Ok(libc::DT_LNK) => Some(Kind::Link),
        Ok(libc::DT_UNKNOWN) => None,
        _ => Some(Kind::Other),
    }
}

/// The tree at `root` in the buffer. What can't be read is complained about and left out.
pub async fn in_buffer(
    session: &Session,
    root: &[u8],
    recursive: bool,
    with_attributes: bool,
) -> Vec<Entry> {
    let attributes = match session.client.stat(root).await {
        Ok(attributes) => attributes,
        Err(error) => {
            session.complain_of("stat", root, &error);
            return Vec::new();
        }
    };
    let kind = kind_of_mode(attributes.mode);
    let facts = Some(Facts::from(&attributes));
    let mut entries = vec![Entry { relative: Vec::new(), kind, attributes: facts }];
    let mut level =
        if recursive && kind == Kind::Directory { vec![Vec::new()] } else { Vec::new() };
    while !level.is_empty() {
        let listed: Vec<Vec<Entry>> = stream::iter(level)
            .map(|directory| list(session, root, directory, with_attributes))
            .buffered(NAMES_IN_FLIGHT)
            .collect()
            .await;
        let found: Vec<Entry> = listed.into_iter().flatten().collect();
        let below = found.iter().filter(|e| e.kind == Kind::Directory);
        level = below.map(|e| e.relative.clone()).collect();
        entries.extend(found);
    }
    entries
}

async fn list(
    session: &Session,
    root: &[u8],
    directory: Vec<u8>,
    with_attributes: bool,
) -> Vec<Entry> {
    let path = if directory.is_empty() { root.to_vec() } else { join(root, &directory) };
    let names = match session.client.readdir(&path).await {
        Ok(names) => names,
        Err(error) => {
            session.complain_of("open directory", &path, &error);
            return Vec::new();
        }
    };
    let names = names.into_iter().filter(|entry| entry.name != b"." && entry.name != b"..");
    let entries = stream::iter(names).map(async |entry| {
        let relative =
            if directory.is_empty() { entry.name.clone() } else { join(&directory, &entry.name) };
        let known = kind_of_entry(&entry);
        if let (Some(kind), false) = (known, with_attributes) {
            return Some(Entry { relative, kind, attributes: None });
        }
        let full = join(&path, &entry.name);
        match session.client.lstat(&full).await {
            Ok(attributes) => Some(Entry {
                relative,
                kind: kind_of_mode(attributes.mode),
                attributes: Some(Facts::from(&attributes)),
            }),
            Err(error) => {
                session.complain_of("stat", &full, &error);
                None
            }
        }
    });
    entries.buffered(NAMES_IN_FLIGHT).filter_map(async |entry| entry).collect().await
}

/// Something on a local file system that is still to be looked at.
struct Found {
    path: PathBuf,
    relative: Vec<u8>,
    /// Directories on the way down, so that a link that leads back up ends somewhere.
    above: Vec<(u64, u64)>,
}

/// The tree at `root` on a local file system, and sentences about what can't be read.
pub fn on_disk(root: &Path, recursive: bool, follow: bool) -> (Vec<Entry>, Vec<String>) {
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    let mut open = vec![Found { path: root.to_owned(), relative: Vec::new(), above: Vec::new() }];
    while let Some(Found { path, relative, above }) = open.pop() {
        // The root itself is followed, as cp does with -r and a link given by name.
        let metadata =
            if follow || relative.is_empty() { path.metadata() } else { path.symlink_metadata() };
        let metadata = match metadata {
            Ok(metadata) => metadata,
            Err(error) => {
                errors.push(format!(
                    "cannot stat '{}': {}",
                    local_shown(&path),
                    local_error(&error)
                ));
                continue;
            }
        };
        let kind = kind_of_mode(metadata.mode());
        let attributes = Some(Facts::from(&metadata));
        entries.push(Entry { relative: relative.clone(), kind, attributes });
        if kind != Kind::Directory || !recursive {
            continue;
        }
        let id = (metadata.dev(), metadata.ino());
        if above.contains(&id) {
            errors.push(format!("'{}' leads back to itself", local_shown(&path)));
            continue;
        }
        let mut names = match fs::read_dir(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(names) => names,
            Err(error) => {
                let shown = local_shown(&path);
                errors.push(format!("cannot open directory '{shown}': {}", local_error(&error)));
                continue;
            }
        };
        names.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        for entry in names {
            let name = entry.file_name();
            let below = if relative.is_empty() {
                name.as_bytes().to_vec()
            } else {
                join(&relative, name.as_bytes())
            };
            let ids = if follow { [&above[..], &[id]].concat() } else { Vec::new() };
            open.push(Found { path: entry.path(), relative: below, above: ids });
        }
    }
    (entries, errors)
}
