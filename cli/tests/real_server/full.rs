//! No space, in the buffer and below it.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Cluster, Shape, bytes, not_run, read, write};

const PIECE: usize = 4 << 20;

fn dirty(cluster: &Cluster, path: &str) -> u64 {
    let text = cluster.bbctl_good(&["--json", "frag-stat", path]);
    let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    line["dirty"].as_u64().expect("a number")
}

#[test]
fn real_full_devices_give_enospc_and_break_nothing_else() {
    let shape = Shape { device_mib: 64, ..Shape::default() };
    let cluster = Cluster::started(&shape);
    // Writers wait for space as long as this.
    let client = cluster.client(3);
    let mut good = Vec::new();
    let error = loop {
        let number = good.len() as u64;
        assert!(number < 100, "256 MiB of devices can't hold 400 MiB");
        let path = format!("/f{number}");
        match write(&client, &path, &bytes(number, PIECE)) {
            Ok(()) => good.push(path),
            Err(error) => break error,
        }
    };
    println!("{} files of 4 MiB fit", good.len());
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    assert!(good.len() >= 20, "only {} files fitted", good.len());
    // What was acknowledged is there, names work, and the server is well.
    for (number, path) in good.iter().enumerate() {
        assert!(read(&client, path) == bytes(number as u64, PIECE), "{path}");
    }
    client.mkdir(b"/d", 0o755).expect("makes a directory");
    client.rename(b"/f0", b"/d/f0", 0).expect("renames");
    client.rename(b"/d/f0", b"/f0", 0).expect("renames back");
    // Room can be made, and is used again.
    cluster.bbctl_good(&["sync", "-r", "/"]);
    cluster.bbctl_good(&["purge", "-r", "/"]);
    let again = cluster.client(30);
    for number in 0..10_u64 {
        let data = bytes(1_000 + number, PIECE);
        write(&again, &format!("/again{number}"), &data).expect("there is room again");
    }
    for number in 0..10_u64 {
        assert!(read(&again, &format!("/again{number}")) == bytes(1_000 + number, PIECE));
    }
    for (number, path) in good.iter().enumerate() {
        assert!(read(&again, path) == bytes(number as u64, PIECE), "{path} from below");
    }
}

#[test]
fn real_small_files_beyond_what_the_log_can_keep_go_to_devices() {
    const FILES: u64 = 3_000;
    const LEN: usize = 16_000;
    let cluster = Cluster::started(&Shape { log_mib: 64, ..Shape::default() });
    let source = cluster.path("source");
    std::fs::create_dir(&source).expect("a directory");
    for number in 0..FILES {
        std::fs::write(source.join(number.to_string()), bytes(number, LEN)).expect("a file");
    }
    let from = source.display().to_string();
    cluster.bbctl_good(&["cp", "-r", &from, "bb:/small"]);
    let status = cluster.status();
    let used = status["nodes"][0]["devices"].as_array().expect("devices").iter();
    let used: u64 = used.map(|device| device["blocks"].as_u64().expect("a number")).sum();
    println!("{used} blocks for {FILES} files of {LEN} bytes");
    // A sixth of the log is the budget, and half of that is theirs; what is not inline has a block of
    // data at least, and one of parity.
    assert!(used > 2 * (FILES - (6 << 20) / LEN as u64), "{used} blocks");
    let back = cluster.path("back");
    cluster.bbctl_good(&["cp", "-r", "bb:/small", &back.display().to_string()]);
    for number in 0..FILES {
        let read = std::fs::read(back.join(number.to_string())).expect("is there");
        assert!(read == bytes(number, LEN), "file {number}");
    }
}

/// A small file system in memory; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, mib: u32, remount: bool) -> std::io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let target = CString::new(at.as_os_str().as_bytes())?;
        let options = CString::new(format!("size={mib}m"))?;
        let flags = if remount { libc::MS_REMOUNT } else { 0 };
        let name = c"tmpfs".as_ptr();
        // SAFETY: all pointers are to strings that end with a NUL and outlive the call.
        let result =
            unsafe { libc::mount(name, target.as_ptr(), name, flags, options.as_ptr().cast()) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        use std::os::unix::ffi::OsStrExt;
        let target = CString::new(self.0.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the string ends with a NUL and outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn real_backing_file_system_that_fills_up_during_a_sync_leaves_data_dirty() {
    let mut cluster = Cluster::format(&Shape::default());
    let bfs = cluster.path("bfs");
    if let Err(error) = Tmpfs::mount(&bfs, 8, false) {
        // Without the right to mount there is no small file system to fill up.
        // SAFETY: geteuid has no preconditions.
        assert_ne!(unsafe { libc::geteuid() }, 0, "root can mount: {error}");
        return not_run(&format!("needs the right to mount a tmpfs: {error}"));
    }
    let mounted = Tmpfs(bfs.clone());
    // The marker lies on the file system itself.
    cluster.format_again();
    cluster.start();
    let data = bytes(7, 24 << 20);
    let client = cluster.client(30);
    write(&client, "/large", &data).expect("writes");
    client.mkdir(b"/d", 0o755).expect("names work");

    let output = cluster.bbctl(&["sync", "/large"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    let left = dirty(&cluster, "/large");
    assert!(left >= 16 << 20, "{left} bytes are dirty, the file system has room for 8 MiB");
    assert!(read(&client, "/large") == data, "nothing is lost");

    // Clean data may go, dirty data may not.
    cluster.bbctl_good(&["purge", "/large"]);
    assert_eq!(dirty(&cluster, "/large"), left);
    assert!(read(&cluster.client(30), "/large") == data, "nothing is lost by a purge");

    Tmpfs::mount(&bfs, 64, true).expect("larger now");
    cluster.bbctl_good(&["sync", "/large"]);
    assert_eq!(dirty(&cluster, "/large"), 0);
    assert!(std::fs::read(bfs.join("large")).expect("is there") == data);
    cluster.stop();
    drop(mounted);
}
