//! Calls by binding, as the server.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bb_proto::meta::{Attributes, Binding};
use bb_runtime::{Buf, BufMut};

use super::root::{Root, own_name, raw};
use super::{Inner, sys};
use crate::bfs::{BfsError, Times};

impl Inner {
    /// An open descriptor of a bound file, and its state. `ESTALE` if it has no name any more.
    fn bound(
        &self,
        binding: &Binding,
        writable: bool,
    ) -> Result<(Arc<OwnedFd>, Attributes), BfsError> {
        if binding.bfs != self.uuid {
            return Err(BfsError::Errno(libc::ESTALE));
        }
        let root = self.root();
        let kept = root.files().get(binding, writable);
        let is_kept = kept.is_some();
        let fd = match kept {
            Some(fd) => fd,
            None => Arc::new(open(&root, binding, writable)?),
        };
        let status = sys::status(fd.as_fd(), c"")?;
        if status.attributes.links == 0 {
            root.files().forget(binding);
            return Err(BfsError::Errno(libc::ESTALE));
        }
        if !is_kept {
            let born = status.birth_ns.map(|ns| if ns == 0 { 1 } else { ns });
            if binding.birth_ns != 0 && born != Some(binding.birth_ns) {
                return Err(BfsError::Errno(libc::ESTALE));
            }
            root.files().put(binding, writable, fd.clone(), status.attributes.inode);
        }
        Ok((fd, status.attributes))
    }

    pub(super) fn stat(&self, binding: &Binding) -> Result<Attributes, BfsError> {
        if self.root().files().get(binding, false).is_some() {
            return Ok(self.bound(binding, false)?.1);
        }
        // Not opened for it: the binding may be a symbolic link's or a device's.
        if binding.bfs != self.uuid {
            return Err(BfsError::Errno(libc::ESTALE));
        }
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let (kind, handle) = (binding.handle_type, &binding.handle);
        let fd = sys::open_handle(self.root().fd.as_fd(), kind, handle, flags)?;
        let status = sys::status(fd.as_fd(), c"")?;
        let born = status.birth_ns.map(|ns| if ns == 0 { 1 } else { ns });
        if status.attributes.links == 0 || (binding.birth_ns != 0 && born != Some(binding.birth_ns))
        {
            return Err(BfsError::Errno(libc::ESTALE));
        }
        Ok(status.attributes)
    }

    pub(super) fn read(
        &self,
        binding: &Binding,
        offset: u64,
        mut buf: BufMut,
    ) -> Result<(BufMut, usize), BfsError> {
        let (fd, _) = self.bound(binding, false)?;
        let len = sys::read_all(fd.as_fd(), offset, &mut buf)?;
        Ok((buf, len))
    }

    pub(super) fn write(
        &self,
        binding: &Binding,
        offset: u64,
        bufs: &[Buf],
    ) -> Result<(), BfsError> {
        sys::write_all(self.bound(binding, true)?.0.as_fd(), offset, bufs)
    }

    pub(super) fn fsync(&self, binding: &Binding) -> Result<(), BfsError> {
        let (fd, _) = self.bound(binding, true)?;
        fsync(&fd)
    }

    pub(super) fn truncate(&self, binding: &Binding, size: u64) -> Result<(), BfsError> {
        let size = i64::try_from(size).map_err(|_| BfsError::Errno(libc::EFBIG))?;
        let (fd, _) = self.bound(binding, true)?;
        // SAFETY: takes no pointers.
        sys::check(unsafe { libc::ftruncate(raw(&fd), size) }).map(drop)
    }

    pub(super) fn set_times(&self, binding: &Binding, times: Times) -> Result<(), BfsError> {
        sys::set_times(self.bound(binding, false)?.0.as_fd(), times)
    }

    /// A directory's entry and the inode that it names are durable together or not at all (decision
    /// 12), so all new files of a directory share one fsync of it.
    pub(super) fn fsync_name(&self, binding: &Binding) -> Result<(), BfsError> {
        let (fd, attributes) = self.bound(binding, true)?;
        let root = self.root();
        match parent_of(&root, &fd, attributes.inode) {
            Some(parent) => {
                let status = sys::status(parent.as_fd(), c"")?;
                let id = (status.dev, status.attributes.inode);
                self.directories.sync(id, || fsync(&parent))
            }
            // The kernel has forgotten where it lies (a file opened by its handle long after its
            // name was last used): make everything durable.
            // SAFETY: takes no pointers.
            None => sys::check(unsafe { libc::syncfs(raw(&fd)) }).map(drop),
        }
    }

    /// Gives an open file a second name in our own directory. False if it has it already.
    pub(super) fn link_hidden(
        &self,
        root: &Root,
        file: &OwnedFd,
        name: &str,
    ) -> Result<bool, BfsError> {
        let name = own_name(name)?;
        // SAFETY: both are C strings.
        let linked = sys::check(unsafe {
            libc::linkat(
                raw(file),
                c"".as_ptr(),
                raw(&root.own),
                name.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        });
        match linked {
            Ok(_) => Ok(true),
            Err(BfsError::Errno(libc::EEXIST)) => {
                // Ours from before a crash, or somebody else's?
                let there = sys::status(root.own.as_fd(), &name)?.attributes.inode;
                let same = there == sys::status(file.as_fd(), c"")?.attributes.inode;
                if same { Ok(false) } else { Err(BfsError::Errno(libc::EEXIST)) }
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn keep(&self, binding: &Binding, name: &str) -> Result<(), BfsError> {
        let (fd, _) = self.bound(binding, false)?;
        self.link_hidden(&self.root(), &fd, name).map(drop)
    }

    pub(super) fn remove_hidden(&self, name: &str) -> Result<(), BfsError> {
        let root = self.root();
        let name = own_name(name)?;
        let victim = sys::status(root.own.as_fd(), &name).ok();
        // SAFETY: name is a C string without a slash.
        match sys::check(unsafe { libc::unlinkat(raw(&root.own), name.as_ptr(), 0) }) {
            Ok(_) => {}
            Err(BfsError::Errno(libc::ENOENT)) => return Ok(()),
            Err(error) => return Err(error),
        }
        if let Some(victim) = victim {
            root.files().forget_inode(victim.attributes.inode);
        }
        Ok(())
    }
}

fn open(root: &Root, binding: &Binding, writable: bool) -> Result<OwnedFd, BfsError> {
    let flags = if writable { libc::O_RDWR } else { libc::O_RDONLY };
    sys::open_handle(root.fd.as_fd(), binding.handle_type, &binding.handle, flags)
}

/// The directory in which the kernel says an open file lies, if the file is found there.
fn parent_of(root: &Root, fd: &OwnedFd, inode: u64) -> Option<OwnedFd> {
    let path = sys::path_of(fd.as_fd()).ok()?;
    let top = sys::path_of(root.fd.as_fd()).ok()?;
    let inner = path.strip_prefix(top.as_slice())?;
    let cut = inner.iter().rposition(|byte| *byte == b'/')?;
    let parent = CString::new([b"./", &inner[..cut]].concat()).ok()?;
    let name = CString::new(&inner[cut + 1..]).ok()?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let parent = sys::open_beneath(root.fd.as_fd(), &parent, flags, 0).ok()?;
    let there = sys::status(parent.as_fd(), &name).ok()?.attributes.inode;
    (there == inode).then_some(parent)
}

fn fsync(fd: &OwnedFd) -> Result<(), BfsError> {
    // SAFETY: takes no pointers.
    sys::check(unsafe { libc::fsync(raw(fd)) }).map(drop)
}
