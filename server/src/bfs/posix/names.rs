//! Calls by path, as the caller.

use std::collections::BinaryHeap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

use bb_proto::meta::{Binding, Credentials, DirEntry};

use super::credentials::as_caller;
use super::root::{Root, is_own, raw};
use super::{Inner, sys};
use crate::bfs::{BfsError, DirPage, Found, OWN_DIRECTORY, Times};

/// A path, cut before its last component.
struct Name {
    /// Relative to the root; "." for the root itself.
    whole: CString,
    parent: CString,
    /// `None` for the root itself.
    last: Option<CString>,
}

impl Name {
    fn parse(path: &[u8]) -> Result<Self, BfsError> {
        let parts: Vec<&[u8]> =
            path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if parts.contains(&b"..".as_slice()) {
            return Err(BfsError::Errno(libc::EINVAL));
        }
        let text = |parts: &[&[u8]]| {
            let joined = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
            CString::new(joined).map_err(|_| BfsError::Errno(libc::EINVAL))
        };
        let (last, parents) = match parts.split_last() {
            Some((last, parents)) => (Some(text(&[last])?), parents),
            None => (None, parts.as_slice()),
        };
        Ok(Self { whole: text(&parts)?, parent: text(parents)?, last })
    }
}

const NO_SUCH_FILE: BfsError = BfsError::Errno(libc::ENOENT);

impl Inner {
    /// Opens what a path names, for everything but its contents.
    fn resolve(
        &self,
        root: &Root,
        caller: &Credentials,
        path: &[u8],
        no_follow: bool,
    ) -> Result<OwnedFd, BfsError> {
        let name = Name::parse(path)?;
        let flags = libc::O_PATH | if no_follow { libc::O_NOFOLLOW } else { 0 };
        let fd = as_caller(&self.own, caller, || {
            sys::open_beneath(root.fd.as_fd(), &name.whole, flags, 0)
        })?;
        self.refuse_own(root, caller, &fd)?;
        Ok(fd)
    }

    /// Our own directory and what is in it do not exist for callers.
    fn refuse_own(&self, root: &Root, caller: &Credentials, fd: &OwnedFd) -> Result<(), BfsError> {
        let inode = sys::status(fd.as_fd(), c"")?.attributes.inode;
        if is_own(root, fd, inode, caller.uid == 0) { Err(NO_SUCH_FILE) } else { Ok(()) }
    }

    /// Opens the directory in which a name is to change, and gives that name. For the root itself
    /// the answer is `of_root`.
    fn parent(
        &self,
        root: &Root,
        caller: &Credentials,
        path: &[u8],
        of_root: i32,
    ) -> Result<(OwnedFd, CString), BfsError> {
        let name = Name::parse(path)?;
        let Some(last) = name.last else { return Err(BfsError::Errno(of_root)) };
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let fd = as_caller(&self.own, caller, || {
            sys::open_beneath(root.fd.as_fd(), &name.parent, flags, 0)
        })?;
        let inode = sys::status(fd.as_fd(), c"")?.attributes.inode;
        if is_own(root, &fd, inode, caller.uid == 0) {
            return Err(NO_SUCH_FILE);
        }
        if inode == root.inode && last.as_bytes() == OWN_DIRECTORY.as_bytes() {
            // Said to be there only to somebody who wants to make or replace it.
            return Err(BfsError::Errno(libc::EACCES));
        }
        Ok((fd, last))
    }

    /// Identity of an open file.
    pub(super) fn binding(&self, fd: &OwnedFd) -> Result<Binding, BfsError> {
        let (handle_type, handle) = sys::handle_of(fd.as_fd())?;
        let birth_ns = if has_generation(handle_type, &handle) {
            0
        } else {
            // 0 stands for "not needed", so a birth at the epoch is moved by a nanosecond.
            let birth = sys::status(fd.as_fd(), c"")?.birth_ns;
            let birth = birth.ok_or(BfsError::Errno(libc::EOPNOTSUPP))?;
            if birth == 0 { 1 } else { birth }
        };
        Ok(Binding { bfs: self.uuid.to_vec(), handle_type, handle, birth_ns })
    }

    fn found(&self, fd: &OwnedFd, created: bool) -> Result<Found, BfsError> {
        let attributes = sys::status(fd.as_fd(), c"")?.attributes;
        Ok(Found { attributes, binding: self.binding(fd)?, created })
    }

    pub(super) fn lookup(
        &self,
        caller: &Credentials,
        path: &[u8],
        no_follow: bool,
    ) -> Result<Found, BfsError> {
        let root = self.root();
        let fd = self.resolve(&root, caller, path, no_follow)?;
        self.found(&fd, false)
    }

    pub(super) fn open(
        &self,
        caller: &Credentials,
        path: &[u8],
        flags: i32,
        mode: u32,
    ) -> Result<Found, BfsError> {
        const KEPT: i32 = libc::O_ACCMODE
            | libc::O_CREAT
            | libc::O_EXCL
            | libc::O_DIRECTORY
            | libc::O_NOFOLLOW
            | libc::O_NOATIME;
        // O_TMPFILE has more bits than its O_DIRECTORY.
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            return Err(BfsError::Errno(libc::EOPNOTSUPP));
        }
        let mut kept = flags & KEPT;
        if flags & libc::O_TRUNC != 0 && kept & libc::O_ACCMODE == libc::O_RDONLY {
            // The kernel asks for write permission then; without O_TRUNC it would not.
            kept |= libc::O_RDWR;
        }
        // A FIFO must not keep the thread, nor a terminal become the server's.
        let open_flags = kept | libc::O_NONBLOCK | libc::O_NOCTTY;
        let root = self.root();
        if kept & libc::O_CREAT != 0 {
            // Refuses our own directory before anything is made there.
            self.parent(&root, caller, path, libc::EISDIR)?;
        }
        let name = Name::parse(path)?;
        let (fd, created) =
            as_caller(&self.own, caller, || open_or_create(&root, &name.whole, open_flags, mode))?;
        let status = sys::status(fd.as_fd(), c"")?;
        if is_own(&root, &fd, status.attributes.inode, caller.uid == 0) {
            return Err(NO_SUCH_FILE);
        }
        if !status.is(libc::S_IFREG) && !status.is(libc::S_IFDIR) {
            return Err(BfsError::Errno(libc::ENXIO));
        }
        self.found(&fd, created)
    }

    pub(super) fn mkdir(
        &self,
        caller: &Credentials,
        path: &[u8],
        mode: u32,
    ) -> Result<Found, BfsError> {
        let root = self.root();
        let (dir, name) = self.parent(&root, caller, path, libc::EEXIST)?;
        let fd = as_caller(&self.own, caller, || {
            // SAFETY: name is a C string without a slash.
            sys::check(unsafe { libc::mkdirat(raw(&dir), name.as_ptr(), mode & 0o7777) })?;
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
            sys::open_beneath(dir.as_fd(), &name, flags, 0)
        })?;
        self.found(&fd, true)
    }

    /// Removes a name: `flags` of unlinkat.
    pub(super) fn remove(
        &self,
        caller: &Credentials,
        path: &[u8],
        flags: i32,
    ) -> Result<(), BfsError> {
        let root = self.root();
        let of_root = if flags & libc::AT_REMOVEDIR != 0 { libc::EBUSY } else { libc::EISDIR };
        let (dir, name) = self.parent(&root, caller, path, of_root)?;
        let victim = sys::status(dir.as_fd(), &name).ok();
        as_caller(&self.own, caller, || {
            // SAFETY: name is a C string without a slash.
            sys::check(unsafe { libc::unlinkat(raw(&dir), name.as_ptr(), flags) })
        })?;
        if let Some(victim) = victim {
            root.files().forget_inode(victim.attributes.inode);
        }
        Ok(())
    }

    pub(super) fn rename(
        &self,
        caller: &Credentials,
        from: &[u8],
        to: &[u8],
        flags: u32,
    ) -> Result<(), BfsError> {
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(BfsError::Errno(libc::EINVAL));
        }
        let root = self.root();
        let (from_dir, from_name) = self.parent(&root, caller, from, libc::EBUSY)?;
        let (to_dir, to_name) = self.parent(&root, caller, to, libc::EBUSY)?;
        let victim = sys::status(to_dir.as_fd(), &to_name).ok();
        as_caller(&self.own, caller, || {
            // SAFETY: both names are C strings without a slash.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_renameat2,
                    raw(&from_dir),
                    from_name.as_ptr(),
                    raw(&to_dir),
                    to_name.as_ptr(),
                    flags,
                )
            };
            if result < 0 { Err(sys::last_error()) } else { Ok(()) }
        })?;
        if let Some(victim) = victim {
            root.files().forget_inode(victim.attributes.inode);
        }
        Ok(())
    }

    pub(super) fn readdir(
        &self,
        caller: &Credentials,
        path: &[u8],
        after: &[u8],
        limit: usize,
    ) -> Result<DirPage, BfsError> {
        let root = self.root();
        let name = Name::parse(path)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let fd = as_caller(&self.own, caller, || {
            sys::open_beneath(root.fd.as_fd(), &name.whole, flags, 0)
        })?;
        self.refuse_own(&root, caller, &fd)?;
        let is_root = sys::status(fd.as_fd(), c"")?.attributes.inode == root.inode;
        // The kernel's order is no order: the smallest names after `after` are picked in one pass,
        // in memory for `limit` of them. The price: each page reads the whole directory.
        let mut smallest: BinaryHeap<(Vec<u8>, u64, u32)> = BinaryHeap::new();
        let mut last = true;
        for_each_entry(fd, |name, inode, kind| {
            if name <= after || (is_root && name == OWN_DIRECTORY.as_bytes()) {
                return;
            }
            smallest.push((name.to_vec(), inode, kind));
            if smallest.len() > limit {
                smallest.pop();
                last = false;
            }
        })?;
        let entries = smallest
            .into_sorted_vec()
            .into_iter()
            .map(|(name, inode, kind)| DirEntry { name, inode, kind })
            .collect();
        Ok(DirPage { entries, last })
    }

    pub(super) fn chmod(
        &self,
        caller: &Credentials,
        path: &[u8],
        mode: u32,
    ) -> Result<(), BfsError> {
        let fd = self.resolve(&self.root(), caller, path, false)?;
        // fchmod takes no O_PATH descriptor; the name under /proc stands for this very file.
        let name = sys::proc_name(fd.as_fd());
        as_caller(&self.own, caller, || {
            // SAFETY: name is a C string.
            sys::check(unsafe { libc::chmod(name.as_ptr(), mode & 0o7777) }).map(drop)
        })
    }

    pub(super) fn chown(
        &self,
        caller: &Credentials,
        path: &[u8],
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), BfsError> {
        let fd = self.resolve(&self.root(), caller, path, false)?;
        let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
        as_caller(&self.own, caller, || {
            // SAFETY: an empty C string; the largest id means "leave it".
            sys::check(unsafe {
                libc::fchownat(raw(&fd), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH)
            })
            .map(drop)
        })
    }

    pub(super) fn utimens(
        &self,
        caller: &Credentials,
        path: &[u8],
        times: Times,
    ) -> Result<(), BfsError> {
        let fd = self.resolve(&self.root(), caller, path, false)?;
        as_caller(&self.own, caller, || sys::set_times(fd.as_fd(), times))
    }

    pub(super) fn access(
        &self,
        caller: &Credentials,
        path: &[u8],
        mode: u32,
    ) -> Result<(), BfsError> {
        let fd = self.resolve(&self.root(), caller, path, false)?;
        let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
        as_caller(&self.own, caller, || {
            // SAFETY: an empty C string. The raw call, since glibc's wrapper takes no empty path.
            let result = unsafe {
                libc::syscall(libc::SYS_faccessat2, fd.as_raw_fd(), c"".as_ptr(), mode, flags)
            };
            if result < 0 { Err(sys::last_error()) } else { Ok(()) }
        })
    }
}

/// Opens a file, or makes it where the flags ask for that; true if it was made.
fn open_or_create(
    root: &Root,
    path: &CStr,
    flags: i32,
    mode: u32,
) -> Result<(OwnedFd, bool), BfsError> {
    let open = |flags| sys::open_beneath(root.fd.as_fd(), path, flags, mode);
    if flags & libc::O_CREAT == 0 {
        return Ok((open(flags & !libc::O_EXCL)?, false));
    }
    // Only an exclusive create tells whether it was this call that made the file.
    match open(flags | libc::O_EXCL) {
        Err(BfsError::Errno(libc::EEXIST)) if flags & libc::O_EXCL == 0 => {}
        result => return Ok((result?, true)),
    }
    match open(flags & !libc::O_CREAT) {
        Err(BfsError::Errno(libc::ENOENT)) => {}
        result => return Ok((result?, false)),
    }
    // It is a link to nothing, or was removed a moment ago: the kernel decides.
    Ok((open(flags)?, true))
}

/// True if a handle of this type holds the inode's generation, or a number that the file system
/// never uses again. Anything else is completed by the birth time.
fn has_generation(kind: i32, handle: &[u8]) -> bool {
    const INO32_GEN: i32 = 0x01;
    const BTRFS: i32 = 0x4d;
    const INO64_GEN: i32 = 0x81;
    const LUSTRE: i32 = 0x97;
    match kind {
        // Two words: inode, generation (ext4, XFS, many others). Three: generation, inode
        // (tmpfs). A file system that keeps no generation leaves it 0.
        INO32_GEN => match handle.len() {
            8 => handle[4..8] != [0; 4],
            12 => handle[..4] != [0; 4],
            _ => false,
        },
        BTRFS | INO64_GEN | LUSTRE => true,
        _ => false,
    }
}

/// Calls `each` with name, inode number and type of every entry but "." and "..".
fn for_each_entry(fd: OwnedFd, mut each: impl FnMut(&[u8], u64, u32)) -> Result<(), BfsError> {
    struct Stream(*mut libc::DIR);
    impl Drop for Stream {
        fn drop(&mut self) {
            // SAFETY: opened below, closed once.
            unsafe { libc::closedir(self.0) };
        }
    }
    // SAFETY: the descriptor is open; after a success it belongs to the stream.
    let stream = unsafe { libc::fdopendir(fd.as_raw_fd()) };
    if stream.is_null() {
        return Err(sys::last_error());
    }
    let _ = fd.into_raw_fd();
    let stream = Stream(stream);
    loop {
        // SAFETY: errno is this thread's. It alone tells the end from an error.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the stream is open.
        let entry = unsafe { libc::readdir64(stream.0) };
        if entry.is_null() {
            return match sys::last_error() {
                BfsError::Errno(0) => Ok(()),
                error => Err(error),
            };
        }
        // SAFETY: the entry is valid until the next readdir, its name ends with a zero byte.
        let (name, inode, kind) = unsafe {
            let name = CStr::from_ptr((&raw const (*entry).d_name).cast());
            (name.to_bytes(), (*entry).d_ino, u32::from((*entry).d_type))
        };
        if name != b"." && name != b".." {
            each(name, inode, kind);
        }
    }
}
