//! The groups of users, from this machine's own database (`/etc/group`, LDAP, whatever NSS asks).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Instant, Rt, ThreadPool};

use crate::security::{GroupDatabase, GroupsFuture, UserGroups};

/// How long an answer is used again: a change of a user's groups takes effect after it.
const KEPT: Duration = Duration::from_secs(60);
/// The database may hang; the other threads go on with other users.
const THREADS: usize = 4;
const QUEUE_MAX: usize = 256;
/// Room for a user's entry, which grows until it is enough.
const ENTRY_BYTES: usize = 4 << 10;
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// More than the kernel gives a process.
const GROUPS_MAX: usize = 65_536;

type Known = Rc<RefCell<BTreeMap<u32, (Instant, Rc<UserGroups>)>>>;

/// This machine's database, asked in threads.
pub struct OsGroups {
    rt: Rt,
    threads: ThreadPool,
    known: Known,
}

impl OsGroups {
    /// Nobody is known yet.
    pub fn new(rt: &Rt) -> Self {
        let threads = ThreadPool::new("groups", THREADS, QUEUE_MAX);
        Self { rt: rt.clone(), threads, known: Known::default() }
    }
}

impl GroupDatabase for OsGroups {
    fn groups_of(&self, uid: u32) -> GroupsFuture {
        let now = self.rt.now();
        let fresh = |(at, _): &&(Instant, Rc<UserGroups>)| now.since(*at) < KEPT;
        if let Some((_, groups)) = self.known.borrow().get(&uid).filter(fresh) {
            return Box::pin(std::future::ready(Ok(groups.clone())));
        }
        let answer = self.threads.run(move || ask(uid));
        let known = self.known.clone();
        Box::pin(async move {
            let groups = answer.await.map_err(|error| error.to_string())??;
            let groups = Rc::new(UserGroups { groups });
            let mut known = known.borrow_mut();
            known.retain(|_, (at, _)| now.since(*at) < KEPT);
            known.insert(uid, (now, groups.clone()));
            Ok(groups)
        })
    }
}

/// Asks the database. A user that it does not know has no groups.
fn ask(uid: u32) -> Result<Vec<u32>, String> {
    let mut room = vec![0; ENTRY_BYTES];
    loop {
        let mut found = std::ptr::null_mut();
        // SAFETY: all zeros is a value of this struct of integers and pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let len = room.len();
        // SAFETY: places for the entry, its strings (`len` bytes) and the result.
        let error = unsafe {
            libc::getpwuid_r(uid, &raw mut entry, room.as_mut_ptr(), len, &raw mut found)
        };
        match error {
            0 if found.is_null() => return Ok(Vec::new()),
            // SAFETY: the entry is there, and its name lies in `room`, which lives.
            0 => return groups_of(unsafe { CStr::from_ptr(entry.pw_name) }, entry.pw_gid),
            libc::ENOENT | libc::ESRCH | libc::EPERM => return Ok(Vec::new()),
            libc::EINTR => {}
            libc::ERANGE if len < ENTRY_BYTES_MAX => room.resize(len * 2, 0),
            error => {
                let error = std::io::Error::from_raw_os_error(error);
                return Err(format!("the group database does not know user {uid}: {error}"));
            }
        }
    }
}

fn groups_of(name: &CStr, primary: u32) -> Result<Vec<u32>, String> {
    let mut groups = vec![0; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: a name that ends with a zero, and room for `count` groups.
        let all = unsafe {
            libc::getgrouplist(name.as_ptr(), primary, groups.as_mut_ptr(), &raw mut count)
        };
        let wanted = usize::try_from(count).unwrap_or(0);
        if all >= 0 {
            groups.truncate(wanted);
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(format!("a user is in more than {GROUPS_MAX} groups"));
        }
        groups.resize((groups.len() * 2).max(wanted).min(GROUPS_MAX), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_in_its_group_and_who_is_not_known_is_in_none() {
        assert!(ask(0).expect("known").contains(&0));
        assert!(ask(4_000_000_123).expect("answered").is_empty());
    }
}
