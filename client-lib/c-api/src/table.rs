//! Descriptors of ours. Each is a memfd kept at the file's size, so that the kernel gives out the
//! numbers, and fstat, lseek, fcntl and dup2 of the C library work on it.
//!
//! What a descriptor is, its memfd's inode says, and not its number: so copies made by anybody are
//! recognised, and a number that was closed behind our back and given to something else is not ours.
//! The memfd is sealed against writing: a write(2) past this library fails instead of getting lost.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::guard::{Errno, Result};
use crate::open_file::OpenFile;
use crate::{library, raw};

static TABLE: RwLock<Table> = RwLock::new(Table::new());
/// Where memfds live; 0 until there is one: then nothing is ours.
static DEVICE: AtomicU64 = AtomicU64::new(0);
/// A close that nobody waited for has ended.
static CLOSED: Condvar = Condvar::new();

/// All open files.
pub struct Table {
    files: BTreeMap<u64, Entry>,
    inodes: BTreeMap<i32, u64>,
}

struct Entry {
    file: Arc<OpenFile>,
    fds: BTreeSet<i32>,
}

impl Table {
    const fn new() -> Self {
        Self { files: BTreeMap::new(), inodes: BTreeMap::new() }
    }

    /// In a child: the parent's files stay the parent's; what is left says how to open them anew.
    pub fn forget_parent(&mut self) {
        for entry in self.files.values_mut() {
            let own = Arc::new(entry.file.anew());
            let _never_dropped = ManuallyDrop::new(std::mem::replace(&mut entry.file, own));
        }
    }

    /// The descriptor is gone. The file, if that was its last one.
    fn remove_fd(&mut self, fd: i32, inode: u64) -> Option<Arc<OpenFile>> {
        if self.inodes.get(&fd) == Some(&inode) {
            self.inodes.remove(&fd);
        }
        let entry = self.files.get_mut(&inode)?;
        entry.fds.remove(&fd);
        if entry.fds.is_empty() { self.files.remove(&inode).map(|entry| entry.file) } else { None }
    }

    /// A descriptor of ours has this number now. What had it before was closed behind our back.
    fn add_fd(&mut self, fd: i32, inode: u64) -> Option<Arc<OpenFile>> {
        let before = self.inodes.insert(fd, inode).filter(|before| *before != inode);
        let orphan = before.and_then(|before| self.remove_fd(fd, before));
        match self.files.get_mut(&inode) {
            Some(entry) => {
                entry.fds.insert(fd);
                self.inodes.insert(fd, inode);
            }
            // Closed meanwhile, by somebody else.
            None => {
                self.inodes.remove(&fd);
            }
        }
        orphan
    }
}

/// Locks the table, for a moment only.
pub fn lock() -> RwLockWriteGuard<'static, Table> {
    TABLE.write().unwrap_or_else(PoisonError::into_inner)
}

fn read() -> RwLockReadGuard<'static, Table> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner)
}

/// True while nothing is open.
pub fn is_empty() -> bool {
    read().files.is_empty()
}

/// A file of ours with the descriptor by which it was named.
pub struct Named {
    /// The descriptor.
    pub fd: i32,
    /// The file.
    pub file: Arc<OpenFile>,
    /// Size of the memfd.
    pub size: u64,
}

/// The file behind a descriptor, or None for one that is not ours, or not open at all.
pub fn find(fd: i32) -> Option<Named> {
    let device = DEVICE.load(Ordering::Acquire);
    if device == 0 || fd < 0 {
        return None;
    }
    let before = raw::errno();
    let Ok(stat) = raw::fstat(fd) else {
        raw::set_errno(before);
        return None;
    };
    if stat.st_dev != device {
        return None;
    }
    let (file, known) = {
        let table = read();
        let file = table.files.get(&stat.st_ino)?.file.clone();
        (file, table.inodes.get(&fd) == Some(&stat.st_ino))
    };
    if !known {
        // A copy that the C library has made: from now on it counts.
        let orphan = lock().add_fd(fd, stat.st_ino);
        drop_orphan(orphan);
    }
    Some(Named { fd, file, size: u64::try_from(stat.st_size).unwrap_or(0) })
}

/// A new descriptor: close-on-exec, since it means nothing to another program.
///
/// # Errors
/// Of the system: too many are open.
pub fn new_descriptor() -> Result<Descriptor> {
    let fd = raw::memfd(c"burstbay")?;
    let descriptor = Descriptor { fd };
    raw::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE)?;
    Ok(descriptor)
}

/// Closed when dropped, unless a file takes it.
pub struct Descriptor {
    fd: i32,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let _ = raw::close(self.fd);
    }
}

impl Descriptor {
    /// Belongs to this file from now on.
    ///
    /// # Errors
    /// Of the system.
    pub fn give(self, file: OpenFile) -> Result<i32> {
        let stat = raw::fstat(self.fd)?;
        let status = file.flags & (libc::O_APPEND | libc::O_NONBLOCK);
        if status != 0 {
            raw::fcntl(self.fd, libc::F_SETFL, status)?;
        }
        DEVICE.store(stat.st_dev, Ordering::Release);
        let fd = ManuallyDrop::new(self).fd;
        let orphan = {
            let mut table = lock();
            let entry = Entry { file: Arc::new(file), fds: BTreeSet::new() };
            table.files.insert(stat.st_ino, entry);
            table.add_fd(fd, stat.st_ino)
        };
        drop_orphan(orphan);
        Ok(fd)
    }
}

/// Somebody closed it by close(2): it is written back all the same.
fn drop_orphan(orphan: Option<Arc<OpenFile>>) {
    if let Some(file) = orphan {
        tracing::warn!("a descriptor was closed past this library; its file is written back");
        close_later(&file);
    }
}

/// Sets the memfd to a size, if `fd` is still this file's.
pub fn resize(fd: i32, file: &OpenFile, size: u64, only_grow: bool) {
    let _one = file.resizing();
    let Some(named) = find(fd) else { return };
    let same = std::ptr::eq(&raw const *named.file, file);
    if same && (named.size < size || named.size > size && !only_grow) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        if let Err(Errno(errno)) = raw::ftruncate(fd, size) {
            tracing::warn!(errno, "the descriptor cannot show its file's size");
        }
    }
}

/// close(2) of a descriptor of ours.
///
/// # Errors
/// What was written and could not be stored.
pub fn close(named: &Named) -> Result<()> {
    let inode = raw::fstat(named.fd)?.st_ino;
    let removed = lock().remove_fd(named.fd, inode);
    let last = removed.or_else(|| remove_closed(inode));
    let result = match last {
        Some(file) if file.closes_later() => {
            close_later(&file);
            Ok(())
        }
        Some(file) => file.close(),
        None => named.file.fsync(),
    };
    // The number is free again only now: nobody else can have been given it meanwhile.
    let closed = raw::close(named.fd).map(drop);
    library::disconnect_unused();
    result.and(closed)
}

/// Removes copies that were closed past the library. The file, if nothing is left of it.
fn remove_closed(inode: u64) -> Option<Arc<OpenFile>> {
    let fds = read().files.get(&inode).map(|entry| entry.fds.clone())?;
    let device = DEVICE.load(Ordering::Acquire);
    let is_its =
        |fd: &i32| raw::fstat(*fd).is_ok_and(|stat| stat.st_ino == inode && stat.st_dev == device);
    let mut closed = fds.into_iter().filter(|fd| !is_its(fd));
    closed.find_map(|fd| lock().remove_fd(fd, inode))
}

fn close_later(file: &Arc<OpenFile>) {
    library::state().closes += 1;
    file.close_later(|result| {
        let mut state = library::state();
        state.closes = state.closes.saturating_sub(1);
        if let Err(error) = result {
            state.close_error.get_or_insert(error);
        }
        CLOSED.notify_all();
    });
}

/// Waits for closes that nobody waited for.
///
/// # Errors
/// The first that one of them met since the last call.
pub fn wait_for_closes() -> Result<()> {
    let mut state = library::state();
    while state.closes > 0 {
        state = CLOSED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.close_error.take().map_or(Ok(()), Err)
}

/// dup2(2) where one of the two is ours, or both.
///
/// # Errors
/// Of the system.
pub fn dup2(old: i32, new: i32) -> Result<i32> {
    let (ours, replaced) = (find(old), find(new));
    if old != new
        && let Some(replaced) = &replaced
    {
        // As with dup2(2) of a file with an error on it: nobody hears of it.
        let inode = raw::fstat(new)?.st_ino;
        let last = lock().remove_fd(new, inode);
        let closed = last.map_or_else(|| replaced.file.fsync(), |file| file.close());
        if let Err(Errno(errno)) = closed {
            tracing::warn!(errno, "written data was lost with a descriptor that dup2 replaced");
        }
    }
    let fd = raw::dup2(old, new)?;
    if ours.is_some() && old != new {
        let inode = raw::fstat(fd)?.st_ino;
        let orphan = lock().add_fd(fd, inode);
        drop_orphan(orphan);
    }
    Ok(fd)
}
