//! Threads that act as the caller.
//!
//! On Linux credentials belong to a thread; glibc's wrappers change those of all threads, so the
//! raw system calls are used. Changing the effective user id away from 0 also takes the thread's
//! capabilities away, and changing it back gives them back. The umask belongs to a structure that
//! threads share until one of them leaves it with unshare(CLONE_FS); each thread that ever acts
//! for a caller does so, and the kernel then applies the caller's umask where POSIX wants it (not
//! below directories with a default ACL).

use std::cell::Cell;

use bb_proto::meta::Credentials;

use super::sys::check;
use crate::bfs::BfsError;

/// Leaves an id as it is, in setresuid and setresgid.
const UNCHANGED: libc::c_long = -1;

/// What the server's own threads have.
#[derive(Clone, Debug)]
pub(super) struct Own {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Own {
    /// Those of the calling thread.
    pub(super) fn of_this_thread() -> Result<Self, BfsError> {
        // SAFETY: these two cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        // SAFETY: with 0 only the number of groups is asked for.
        let count = check(unsafe { libc::getgroups(0, std::ptr::null_mut()) })?;
        let mut groups = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: there is room for `count` groups.
        let count = check(unsafe { libc::getgroups(count, groups.as_mut_ptr()) })?;
        groups.truncate(usize::try_from(count).unwrap_or(0));
        Ok(Self { uid, gid, groups })
    }

    /// True if threads of this user lose their capabilities when they act as somebody else, and
    /// get them back: only then a caller has its own rights and no more.
    pub(super) fn can_act_for_others(&self) -> bool {
        const NO_SETUID_FIXUP: libc::c_int = 1 << 2;
        // SAFETY: takes no pointers.
        let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
        self.uid == 0 && bits >= 0 && bits & NO_SETUID_FIXUP == 0
    }
}

thread_local! {
    static UMASK_IS_OWN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call` as the caller.
pub(super) fn as_caller<T>(
    own: &Own,
    caller: &Credentials,
    call: impl FnOnce() -> Result<T, BfsError>,
) -> Result<T, BfsError> {
    // These mean "leave it": the call would run as the server.
    if caller.uid == u32::MAX || caller.gid == u32::MAX {
        return Err(BfsError::Errno(libc::EINVAL));
    }
    if !UMASK_IS_OWN.get() {
        // SAFETY: takes no pointers; affects this thread only.
        check(unsafe { libc::unshare(libc::CLONE_FS) })?;
        UMASK_IS_OWN.set(true);
    }
    // SAFETY: cannot fail; affects this thread only.
    unsafe { libc::umask(caller.umask & 0o777) };
    // Made before the first change: a failure half-way is undone, too, and so is a panic.
    let restore = Restore { own };
    set_groups(&caller.groups)?;
    set_id(libc::SYS_setresgid, caller.gid)?;
    set_id(libc::SYS_setresuid, caller.uid)?;
    let result = call();
    drop(restore);
    result
}

struct Restore<'a> {
    own: &'a Own,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        // The user first: that brings the capabilities back which the others need.
        let restored = set_id(libc::SYS_setresuid, self.own.uid)
            .and_then(|()| set_id(libc::SYS_setresgid, self.own.gid))
            .and_then(|()| set_groups(&self.own.groups));
        if let Err(error) = restored {
            // The next call on this thread would run with a stranger's rights.
            tracing::error!(%error, "a thread cannot get its own credentials back");
            std::process::abort();
        }
    }
}

fn set_id(call: libc::c_long, id: u32) -> Result<(), BfsError> {
    // SAFETY: takes no pointers; changes the effective id of this thread only.
    let result = unsafe { libc::syscall(call, UNCHANGED, libc::c_long::from(id), UNCHANGED) };
    if result < 0 { Err(super::sys::last_error()) } else { Ok(()) }
}

fn set_groups(groups: &[u32]) -> Result<(), BfsError> {
    // SAFETY: the pointer is good for as many groups as are named; affects this thread only.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result < 0 { Err(super::sys::last_error()) } else { Ok(()) }
}
