//! Bound files that are kept open, the least recently used closed first.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bb_proto::meta::Binding;

use super::sys;

/// A file, and whether it is open for writing.
type Key = (i32, Vec<u8>, bool);

struct Entry {
    fd: Arc<OwnedFd>,
    inode: u64,
    used: u64,
}

/// The open files.
pub(super) struct Descriptors {
    max: usize,
    clock: u64,
    entries: BTreeMap<Key, Entry>,
}

impl Descriptors {
    /// None yet, at most `max`.
    pub(super) const fn new(max: usize) -> Self {
        Self { max, clock: 0, entries: BTreeMap::new() }
    }

    /// An open descriptor of a file, with which it can be written if `writable`.
    pub(super) fn get(&mut self, binding: &Binding, writable: bool) -> Option<Arc<OwnedFd>> {
        self.clock += 1;
        let mut key = (binding.handle_type, binding.handle.clone(), true);
        if !self.entries.contains_key(&key) && !writable {
            key.2 = false;
        }
        let entry = self.entries.get_mut(&key)?;
        entry.used = self.clock;
        Some(entry.fd.clone())
    }

    /// Keeps a descriptor.
    pub(super) fn put(&mut self, binding: &Binding, writable: bool, fd: Arc<OwnedFd>, inode: u64) {
        self.clock += 1;
        if self.entries.len() >= self.max {
            let oldest = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(k, _)| k.clone());
            if let Some(key) = oldest {
                self.entries.remove(&key);
            }
        }
        let key = (binding.handle_type, binding.handle.clone(), writable);
        self.entries.insert(key, Entry { fd, inode, used: self.clock });
    }

    /// Closes a file of which a name was removed: while we hold it open, its space is not freed.
    pub(super) fn forget_inode(&mut self, inode: u64) {
        self.entries.retain(|_, entry| entry.inode != inode);
    }

    /// Closes a file.
    pub(super) fn forget(&mut self, binding: &Binding) {
        for writable in [false, true] {
            self.entries.remove(&(binding.handle_type, binding.handle.clone(), writable));
        }
    }

    /// Closes files that were deleted behind our back.
    pub(super) fn forget_deleted(&mut self) {
        self.entries.retain(|_, entry| {
            sys::status(entry.fd.as_fd(), c"").is_ok_and(|status| status.attributes.links > 0)
        });
    }
}
