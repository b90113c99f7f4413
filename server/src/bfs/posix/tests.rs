//! What only a real file system under a real kernel can show. They run as root, as CI does.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{BufPool, Executor};

use super::*;

const UUID: [u8; 16] = [5; 16];
const O_NEW: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;

/// A directory that is gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("burstbay-posix-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("bfs")).expect("scratch");
        std::fs::set_permissions(path.join("bfs"), PermissionsExt::from_mode(0o777))
            .expect("chmod");
        Self(path)
    }

    fn bfs_path(&self) -> PathBuf {
        self.0.join("bfs")
    }

    fn bfs(&self) -> PosixBfs {
        format(&self.bfs_path(), UUID).expect("format");
        PosixBfs::open(&self.bfs_path(), Limits::default()).expect("open")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn real() -> Executor {
    executor(&UringOptions::for_reactor()).expect("ring").0
}

fn user(uid: u32) -> Credentials {
    Credentials { uid, gid: uid, groups: vec![], umask: 0o022 }
}

fn errno<T: std::fmt::Debug>(result: Result<T, BfsError>) -> i32 {
    match result {
        Err(BfsError::Errno(errno)) => errno,
        other => panic!("an errno was expected, not {other:?}"),
    }
}

#[test]
fn the_kernel_checks_the_callers_rights_and_not_the_servers() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    real().block_on(async {
        let (alice, bob) = (user(4001), user(4002));
        let found = bfs.open(&alice, b"/private", O_NEW, 0o600).await.expect("create");
        assert!(found.created);
        assert_eq!((found.attributes.uid, found.attributes.gid), (4001, 4001));
        assert_eq!(errno(bfs.open(&bob, b"/private", libc::O_RDONLY, 0).await), libc::EACCES);
        assert_eq!(errno(bfs.chmod(&bob, b"/private", 0o777).await), libc::EPERM);
        assert_eq!(errno(bfs.chown(&alice, b"/private", Some(4002), None).await), libc::EPERM);
        let times = Times { mtime_ns: Some(1), atime_ns: None };
        assert_eq!(errno(bfs.utimens(&bob, b"/private", times).await), libc::EPERM);
        assert_eq!(errno(bfs.access(&bob, b"/private", 4).await), libc::EACCES);
        bfs.access(&alice, b"/private", 6).await.expect("alice's");
        bfs.mkdir(&alice, b"/dir", 0o777).await.expect("mkdir");
        assert_eq!(errno(bfs.unlink(&bob, b"/dir/x").await), libc::ENOENT);
        assert_eq!(errno(bfs.open(&bob, b"/dir/x", O_NEW, 0o666).await), libc::EACCES);
        // Group rights come with the supplementary groups.
        let file = scratch.bfs_path().join("shared");
        std::fs::write(&file, b"x").expect("write");
        std::os::unix::fs::chown(&file, Some(0), Some(5000)).expect("chown");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("chmod");
        assert_eq!(errno(bfs.open(&bob, b"/shared", libc::O_RDONLY, 0).await), libc::EACCES);
        let member = Credentials { groups: vec![5000], ..user(4002) };
        bfs.open(&member, b"/shared", libc::O_RDONLY, 0).await.expect("by group");
        // Truncating needs write permission, though this call does not truncate.
        let truncate = libc::O_RDONLY | libc::O_TRUNC;
        assert_eq!(errno(bfs.open(&member, b"/shared", truncate, 0).await), libc::EACCES);
        bfs.open(&user(0), b"/shared", libc::O_RDWR, 0).await.expect("root");
    });
}

#[test]
fn a_thread_never_keeps_a_callers_credentials_or_umask() {
    let scratch = Scratch::new();
    format(&scratch.bfs_path(), UUID).expect("format");
    let limits = Limits { name_threads: 1, ..Limits::default() };
    let bfs = PosixBfs::open(&scratch.bfs_path(), limits).expect("open");
    let before = std::fs::File::create(scratch.0.join("before")).expect("create");
    real().block_on(async {
        let strict = Credentials { umask: 0o077, ..user(4001) };
        let file = bfs.open(&strict, b"/strict", O_NEW, 0o666).await.expect("create");
        assert_eq!(file.attributes.mode & 0o777, 0o600);
        let loose = Credentials { umask: 0, ..user(4002) };
        let file = bfs.open(&loose, b"/loose", O_NEW, 0o666).await.expect("create");
        assert_eq!(file.attributes.mode & 0o777, 0o666);
        assert_eq!(file.attributes.uid, 4002);
        assert_eq!(errno(bfs.mkdir(&strict, b"/.burstbay", 0o700).await), libc::EACCES);
        // -1 would mean "stay who you are", which is root.
        let nobody = user(u32::MAX);
        assert_eq!(errno(bfs.open(&nobody, b"/n", O_NEW, 0o666).await), libc::EINVAL);
        let identity = bfs
            .run(&bfs.names, |_| {
                let own = Own::of_this_thread()?;
                let status = std::fs::read_to_string("/proc/thread-self/status").expect("proc");
                Ok((format!("{own:?}"), status))
            })
            .await
            .expect("runs");
        assert_eq!(identity.0, format!("{:?}", bfs.inner.own));
        let line = |text: &str| {
            let line = text.lines().find(|line| line.starts_with("CapEff")).expect("line");
            line.to_owned()
        };
        let ours = std::fs::read_to_string("/proc/thread-self/status").expect("proc");
        assert_eq!(line(&identity.1), line(&ours));
    });
    // The process as a whole kept its umask.
    let after = std::fs::File::create(scratch.0.join("after")).expect("create");
    let mode = |file: std::fs::File| file.metadata().expect("stat").mode();
    assert_eq!(mode(before), mode(after));
}

#[test]
fn no_path_leads_out_of_the_root() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    let (top, root) = (scratch.bfs_path(), user(0));
    std::fs::write(scratch.0.join("secret"), b"outside").expect("write");
    symlink("../secret", top.join("up")).expect("symlink");
    symlink(scratch.0.join("secret"), top.join("absolute")).expect("symlink");
    symlink("../..", top.join("parent")).expect("symlink");
    symlink("/proc/self/root", top.join("magic")).expect("symlink");
    std::fs::create_dir(top.join("d")).expect("mkdir");
    std::fs::write(top.join("inside"), b"x").expect("write");
    symlink("/inside", top.join("d/good")).expect("symlink");
    real().block_on(async {
        for path in ["/up", "/absolute", "/magic", "/parent/secret"] {
            let result = bfs.open(&root, path.as_bytes(), libc::O_RDONLY, 0).await;
            assert_eq!(errno(result), libc::ENOENT, "{path}");
            assert_eq!(errno(bfs.lookup(&root, path.as_bytes(), false).await), libc::ENOENT);
        }
        assert_eq!(errno(bfs.lookup(&root, b"/../secret", false).await), libc::EINVAL);
        assert_eq!(errno(bfs.rename(&root, b"/inside", b"/d/../x", 0).await), libc::EINVAL);
        // Absolute links are read beneath the root, as the clients' mount point does.
        bfs.lookup(&root, b"/d/good", false).await.expect("inside");
        // Another file system below the root has handles of its own.
        let parent = bfs.lookup(&root, b"/parent", false).await.expect("the root again");
        assert_eq!(parent.attributes.inode, std::fs::metadata(&top).expect("stat").ino());
    });
}

#[test]
fn our_own_directory_does_not_exist_for_callers() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    symlink(".burstbay", scratch.bfs_path().join("link")).expect("symlink");
    symlink(".burstbay/marker", scratch.bfs_path().join("marker")).expect("symlink");
    real().block_on(async {
        let root = user(0);
        for path in ["/.burstbay", "/.burstbay/marker", "/link", "/link/marker", "/marker"] {
            let path = path.as_bytes();
            assert_eq!(errno(bfs.lookup(&root, path, false).await), libc::ENOENT);
            assert_eq!(errno(bfs.open(&root, path, libc::O_RDONLY, 0).await), libc::ENOENT);
            assert_eq!(errno(bfs.chmod(&root, path, 0o777).await), libc::ENOENT);
        }
        assert_eq!(errno(bfs.unlink(&root, b"/link/marker").await), libc::ENOENT);
        assert_eq!(errno(bfs.rename(&root, b"/link/marker", b"/m", 0).await), libc::ENOENT);
        assert_eq!(errno(bfs.open(&root, b"/link/new", O_NEW, 0o600).await), libc::ENOENT);
        assert_eq!(errno(bfs.rename(&root, b"/.burstbay", b"/m", 0).await), libc::EACCES);
        let names = bfs.readdir(&root, b"/", b"", 100).await.expect("list").entries;
        let names: Vec<_> = names.iter().map(|entry| entry.name.as_slice()).collect();
        assert_eq!(names, [b"link".as_slice(), b"marker"]);
        bfs.check().await.expect("still ours");
    });
}

#[test]
fn a_file_that_is_deleted_and_made_again_is_another_and_the_old_one_is_stale() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    let pool = BufPool::new(4 << 20, false).expect("pool");
    real().block_on(async {
        let root = user(0);
        let old = bfs.open(&root, b"/f", O_NEW, 0o600).await.expect("create");
        let mut buf = pool.alloc(4096).await;
        buf.fill(7);
        bfs.write(&old.binding, 0, vec![buf.freeze()]).await.expect("write");
        // Behind our back, while our descriptor is open: the inode number may be taken at once.
        std::fs::remove_file(scratch.bfs_path().join("f")).expect("remove");
        std::fs::write(scratch.bfs_path().join("f"), b"").expect("write");
        let new = bfs.open(&root, b"/f", libc::O_RDWR, 0).await.expect("open");
        assert!(!new.created);
        assert_ne!(new.binding, old.binding);
        assert_eq!(errno(bfs.stat(&old.binding).await), libc::ESTALE);
        assert_eq!(errno(bfs.fsync(&old.binding).await), libc::ESTALE);
        let buf = pool.alloc(4096).await;
        assert_eq!(errno(bfs.read(&old.binding, 0, buf).await), libc::ESTALE);
        assert_eq!(bfs.stat(&new.binding).await.expect("stat").size, 0);
        // Now with the number really taken again, as far as this file system does that.
        bfs.unlink(&root, b"/f").await.expect("unlink");
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..20 {
            let found = bfs.open(&root, b"/g", O_NEW, 0o600).await.expect("create");
            let inode = found.attributes.inode;
            let before = seen.insert(found.binding.handle.clone(), inode);
            assert_eq!(before, None, "inode {inode} has had this handle before");
            bfs.unlink(&root, b"/g").await.expect("unlink");
        }
        let foreign = Binding { bfs: vec![9; 16], ..new.binding };
        assert_eq!(errno(bfs.stat(&foreign).await), libc::ESTALE);
    });
}

#[test]
fn a_root_that_vanished_or_was_replaced_is_noticed() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    let (path, aside) = (scratch.bfs_path(), scratch.0.join("aside"));
    real().block_on(async {
        bfs.check().await.expect("well");
        std::fs::rename(&path, &aside).expect("rename");
        assert!(matches!(bfs.check().await, Err(BfsError::Unavailable(_))), "gone");
        std::fs::create_dir(&path).expect("mkdir");
        assert!(matches!(bfs.check().await, Err(BfsError::Unavailable(_))), "empty");
        let gone = bfs.proven_gone(ProcessId::new(1, 1)).await;
        assert!(matches!(gone, Err(BfsError::Unavailable(_))), "no proof of anything");
        format(&path, [6; 16]).expect("format");
        assert!(matches!(bfs.check().await, Err(BfsError::Unavailable(_))), "another's");
        std::fs::remove_dir_all(&path).expect("remove");
        std::fs::rename(&aside, &path).expect("rename");
        bfs.check().await.expect("ours again");
        // Mounted again: the same marker under another root.
        let copy = std::process::Command::new("cp").arg("-a").args([&path, &aside]).status();
        assert!(copy.expect("cp").success());
        std::fs::remove_dir_all(&path).expect("remove");
        std::fs::rename(&aside, &path).expect("rename");
        bfs.check().await.expect("taken over");
        bfs.mkdir(&user(0), b"/d", 0o700).await.expect("mkdir");
        assert!(path.join("d").is_dir(), "the new root is used");
    });
}

#[test]
fn only_a_process_that_has_ended_is_proven_gone() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    real().block_on(async {
        let successor = PosixBfs::open(&scratch.bfs_path(), Limits::default()).expect("open");
        bfs.hold(ProcessId::new(1, 1)).await.expect("hold");
        assert_eq!(errno(successor.hold(ProcessId::new(1, 1)).await), libc::EWOULDBLOCK);
        assert_eq!(successor.proven_gone(ProcessId::new(1, 1)).await, Ok(false));
        assert_eq!(
            successor.proven_gone(ProcessId::new(1, 1)).await,
            Ok(false),
            "asking changes nothing"
        );
        // The lock ends with its descriptor, as it does with the process.
        bfs.inner.locks.lock().expect("lock").clear();
        assert_eq!(successor.proven_gone(ProcessId::new(1, 1)).await, Ok(true));
    });
}

#[test]
fn what_cannot_be_used_is_refused_with_a_reason() {
    let scratch = Scratch::new();
    let path = scratch.bfs_path();
    let open = || PosixBfs::open(&path, Limits::default()).err().expect("refused");
    assert!(matches!(open(), SetupError::NoMarker { .. }));
    format(&path, UUID).expect("format");
    assert!(matches!(format(&path, UUID), Err(SetupError::AlreadyFormatted { .. })));
    std::fs::write(path.join(".burstbay/marker"), b"BBMARKER").expect("write");
    assert!(matches!(open(), SetupError::Marker { .. }));
    let missing = PosixBfs::open(&path.join("none"), Limits::default()).err().expect("refused");
    assert!(matches!(missing, SetupError::Open { .. }));
    // /proc has neither handles nor room for a marker.
    assert!(format(std::path::Path::new("/proc"), UUID).is_err());
}

#[test]
fn without_the_privileges_that_it_needs_it_does_not_start() {
    let scratch = Scratch::new();
    format(&scratch.bfs_path(), UUID).expect("format");
    // Another user's thread: credentials belong to threads.
    let path = scratch.bfs_path();
    let own = Own::of_this_thread().expect("own");
    let caller = Credentials { umask: 0, ..user(4001) };
    let refused = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            credentials::as_caller(&own, &caller, || {
                Ok(PosixBfs::open(&path, Limits::default()).err())
            })
        });
        thread.join().expect("runs").expect("switches")
    });
    assert!(matches!(refused, Some(SetupError::Privileges { .. })), "{refused:?}");
}

#[test]
fn special_files_cannot_be_opened_and_do_not_block_a_thread() {
    let scratch = Scratch::new();
    let bfs = scratch.bfs();
    let fifo = scratch.bfs_path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
    assert!(made.success());
    real().block_on(async {
        let root = user(0);
        assert_eq!(errno(bfs.open(&root, b"/fifo", libc::O_RDONLY, 0).await), libc::ENXIO);
        assert_eq!(errno(bfs.open(&root, b"/fifo", libc::O_WRONLY, 0).await), libc::ENXIO);
        symlink("nowhere", scratch.bfs_path().join("link")).expect("symlink");
        for path in [&b"/fifo"[..], b"/link"] {
            let found = bfs.lookup(&root, path, true).await.expect("found");
            assert_eq!(bfs.stat(&found.binding).await, Ok(found.attributes));
        }
    });
}
