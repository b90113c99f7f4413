//! The held root: what everything is resolved beneath, and how it is known to be ours.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::descriptors::Descriptors;
use super::marker::{self, MarkerError};
use super::sys;
use crate::bfs::{BfsError, OWN_DIRECTORY};

/// Why a directory cannot be used as a backing file system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// It cannot be opened.
    #[error("cannot open {path}: {error}")]
    Open {
        /// The directory.
        path: String,
        /// Why.
        error: BfsError,
    },
    /// Not mounted, or never formatted.
    #[error("{path} has no marker: is it mounted, and was it formatted?")]
    NoMarker {
        /// The directory.
        path: String,
    },
    /// The marker is there, but cannot be used.
    #[error("the marker of {path} cannot be used: {error}")]
    Marker {
        /// The directory.
        path: String,
        /// Why.
        error: MarkerError,
    },
    /// It belongs to a cluster already.
    #[error("{path} has a marker already (remove {OWN_DIRECTORY} there to give it away)")]
    AlreadyFormatted {
        /// The directory.
        path: String,
    },
    /// Files cannot be told from later ones of the same inode number.
    #[error(
        "files on {path} have neither a handle with a generation nor a birth time: a file that is \
         deleted and made again could not be told from the old one"
    )]
    NoIdentity {
        /// The directory.
        path: String,
    },
    /// The kernel gives no handles for it.
    #[error("{path} is on a file system without file handles: {error}")]
    NoHandles {
        /// The directory.
        path: String,
        /// What name_to_handle_at said.
        error: BfsError,
    },
    /// The process may not do what it must.
    #[error(
        "a server with a backing file system must run as root, with CAP_DAC_READ_SEARCH (to open \
         files by handle), CAP_SETUID and CAP_SETGID (to act as the caller): {missing}"
    )]
    Privileges {
        /// What went wrong.
        missing: String,
    },
    /// A call failed.
    #[error("cannot {doing}: {error}")]
    Os {
        /// What was tried.
        doing: String,
        /// Why it failed.
        error: BfsError,
    },
}

fn io_error(error: &std::io::Error) -> BfsError {
    BfsError::Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// An open root. Another takes its place when the file system was mounted again.
pub(super) struct Root {
    /// Open for reading, since open_by_handle_at takes no O_PATH descriptor.
    pub fd: OwnedFd,
    /// Our own directory.
    pub own: OwnedFd,
    pub inode: u64,
    pub own_inode: u64,
    dev: (u32, u32),
    mount: u64,
    /// Bound files that are open, on this very mount.
    pub files: Mutex<Descriptors>,
}

impl Root {
    /// Opens `path` and our own directory in it.
    pub(super) fn open(path: &Path, files_max: usize) -> Result<Self, BfsError> {
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        let file = std::fs::File::options().read(true).custom_flags(flags).open(path);
        let fd = OwnedFd::from(file.map_err(|error| io_error(&error))?);
        let own_name = CString::new(OWN_DIRECTORY).expect("no zero byte");
        let own_flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let own = sys::open_beneath(fd.as_fd(), &own_name, own_flags, 0)?;
        let status = sys::status(fd.as_fd(), c"")?;
        let own_inode = sys::status(own.as_fd(), c"")?.attributes.inode;
        Ok(Self {
            fd,
            own,
            inode: status.attributes.inode,
            own_inode,
            dev: status.dev,
            mount: status.mount,
            files: Mutex::new(Descriptors::new(files_max)),
        })
    }

    /// True if both are the same directory of the same mount.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        (self.dev, self.mount, self.inode, self.own_inode)
            == (other.dev, other.mount, other.inode, other.own_inode)
    }

    /// The bytes of the marker.
    pub(super) fn marker(&self) -> Result<Vec<u8>, BfsError> {
        let file = std::fs::File::from(self.open_own(marker::NAME, libc::O_RDONLY)?);
        let mut bytes = vec![0; 4096];
        let len = file.read_at(&mut bytes, 0).map_err(|error| io_error(&error))?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Opens a file of our own directory.
    pub(super) fn open_own(&self, name: &str, flags: i32) -> Result<OwnedFd, BfsError> {
        sys::open_beneath(self.own.as_fd(), &own_name(name)?, flags | libc::O_NOFOLLOW, 0o600)
    }

    /// The open bound files.
    pub(super) fn files(&self) -> std::sync::MutexGuard<'_, Descriptors> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks a name of our own: one component, and not the directory itself.
pub(super) fn own_name(name: &str) -> Result<CString, BfsError> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    CString::new(name).ok().filter(|_| plain).ok_or(BfsError::Errno(libc::EINVAL))
}

/// Makes `path` a backing file system: writes the marker, durably.
///
/// # Errors
/// [`SetupError::AlreadyFormatted`], and whatever the system says.
pub fn format(path: &Path, uuid: [u8; 16]) -> Result<(), SetupError> {
    let os = |doing: String| {
        move |error: std::io::Error| SetupError::Os { doing, error: io_error(&error) }
    };
    let own = path.join(OWN_DIRECTORY);
    match std::fs::DirBuilder::new().mode(0o700).create(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(os(format!("make {}", own.display()))(error));
        }
        _ => {}
    }
    let name = own.join(marker::NAME);
    // Written under another name first: a crash leaves no half marker.
    let draft = own.join("marker.new");
    if std::fs::symlink_metadata(&name).is_ok() {
        return Err(SetupError::AlreadyFormatted { path: path.display().to_string() });
    }
    let mut file =
        std::fs::File::create(&draft).map_err(os(format!("make {}", draft.display())))?;
    file.write_all(&marker::encode(uuid))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&draft, &name))
        .and_then(|()| std::fs::File::open(&own)?.sync_all())
        .and_then(|()| std::fs::File::open(path)?.sync_all())
        .map_err(os(format!("write {}", name.display())))
}

/// True if `fd` lies in our own directory, or is it. A caller that is not root cannot get there,
/// since the directory has mode 0700; root could, by a symbolic link.
pub(super) fn is_own(root: &Root, fd: &OwnedFd, inode: u64, caller_is_root: bool) -> bool {
    if inode == root.own_inode {
        return true;
    }
    if !caller_is_root {
        return false;
    }
    let (Ok(path), Ok(own)) = (sys::path_of(fd.as_fd()), sys::path_of(root.own.as_fd())) else {
        return false;
    };
    path.strip_prefix(own.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
}

/// The path as bytes, for messages.
pub(super) fn shown(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

/// Number of a descriptor, for the kernel.
pub(super) fn raw(fd: &OwnedFd) -> libc::c_int {
    fd.as_raw_fd()
}
