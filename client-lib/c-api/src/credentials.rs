//! As whom the calling thread acts: the server decides by that.

use bb_proto::meta::Credentials;

use crate::raw;

/// Of the calling thread, for a call that makes nothing new.
pub fn present() -> Credentials {
    let (uid, gid) = raw::file_ids();
    Credentials { uid, gid, groups: raw::groups(), umask: 0 }
}

/// The same, with the mask for modes of what is made.
pub fn creating() -> Credentials {
    Credentials { umask: umask(), ..present() }
}

/// umask(2) can only be read by changing it, which another thread would see.
fn umask() -> u32 {
    let status = raw::read_file(c"/proc/thread-self/status").unwrap_or_default();
    from_status(&status).unwrap_or(0o022)
}

fn from_status(status: &[u8]) -> Option<u32> {
    let line = status.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Umask:"))?;
    u32::from_str_radix(std::str::from_utf8(line).ok()?.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_the_process_s() {
        assert_eq!(from_status(b"Name:\tx\nUmask:\t0027\nState:"), Some(0o027));
        // SAFETY: no preconditions; put back at once, and nextest runs each test in a process.
        let mask = unsafe { libc::umask(0o031) };
        assert_eq!(creating().umask, 0o031);
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
    }

    #[test]
    fn ids_are_those_of_the_thread() {
        let present = present();
        // SAFETY: no preconditions.
        assert_eq!((present.uid, present.gid), unsafe { (libc::geteuid(), libc::getegid()) });
    }
}
