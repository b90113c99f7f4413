//! Words and figures as people know them from coreutils.

use std::fmt::Write as _;

/// What the system says of an error number, without the number.
pub fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An error of the client in a few words: the system's, where there are some.
pub fn client_error(error: &bb_client::Error) -> String {
    match error {
        bb_client::Error::Errno { errno, .. } => errno_text(*errno),
        other => other.to_string(),
    }
}

/// An error of the local system.
pub fn local_error(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), errno_text)
}

/// Bytes with a binary unit.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A UUID as people write it.
pub fn uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Type and permissions as `ls -l` prints them.
pub fn mode(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFBLK => 'b',
        libc::S_IFCHR => 'c',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in
        [(6, libc::S_ISUID, 's', 'S'), (3, libc::S_ISGID, 's', 'S'), (0, libc::S_ISVTX, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A time in the local time zone.
pub fn time(ns: i64) -> String {
    let seconds: libc::time_t = ns.div_euclid(1_000_000_000);
    // SAFETY: all-zero is a valid `tm`.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals that outlive the call.
    if unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) }.is_null() {
        return seconds.to_string();
    }
    let (year, month) = (i64::from(tm.tm_year) + 1900, tm.tm_mon + 1);
    format!(
        "{year:04}-{month:02}-{:02} {:02}:{:02}:{:02}",
        tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec
    )
}

/// A path for people: what is not UTF-8 or not printable is escaped.
pub fn path(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let _ = write!(text, "{}", c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_like_those_of_coreutils() {
        assert_eq!(errno_text(libc::ENOENT), "No such file or directory");
        let error = bb_client::Error::Errno { errno: libc::EACCES, detail: "x".into() };
        assert_eq!(client_error(&error), "Permission denied");
    }

    #[test]
    fn modes_read_like_those_of_ls() {
        assert_eq!(mode(0o100_644), "-rw-r--r--");
        assert_eq!(mode(0o041_777), "drwxrwxrwt");
        assert_eq!(mode(0o104_655), "-rwSr-xr-x");
    }

    #[test]
    fn paths_show_what_cannot_be_printed() {
        assert_eq!(path(b"a\nb\xffc\xc3\xa4"), "a\\nb\\xffc\u{e4}");
    }
}
