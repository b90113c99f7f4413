//! One set of promises, kept by the real backing file system and by the simulated one alike. The
//! real one needs root, as the server does.

use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use bb_proto::meta::{Binding, Credentials};
use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{BufPool, Executor};
use bb_server::bfs::posix::{Limits, PosixBfs, format};
use bb_server::bfs::{Bfs, BfsError, Times};
use bb_server::partition::region_mutation::ProcessId;
use bb_sim::bfs::SimBfs;

const O_NEW: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;

/// What a test gets.
struct Given {
    bfs: Rc<dyn Bfs>,
    /// The same file system as another process sees it.
    other: Rc<dyn Bfs>,
    pool: BufPool,
}

/// Runs a test against both.
fn on_both<F: Future<Output = ()>>(test: impl Fn(Given) -> F) {
    let pool = BufPool::new(4 << 20, false).expect("pool");
    let simulated = Executor::simulated(11);
    let sim = SimBfs::new(&simulated.rt(), [3; 16]);
    let (bfs, other): (Rc<dyn Bfs>, Rc<dyn Bfs>) = (sim.process(), sim.process());
    simulated.block_on(test(Given { bfs, other, pool: pool.clone() }));

    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("burstbay-bfs-{}-{number}", std::process::id()));
    std::fs::create_dir(&path).expect("scratch");
    let remove = RemoveAtEnd(path.clone());
    std::os::unix::fs::chown(&path, Some(0), Some(0)).expect("root");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");
    format(&path, [3; 16]).expect("format");
    let open = || Rc::new(PosixBfs::open(&path, Limits::default()).expect("open"));
    let real = executor(&UringOptions::for_reactor()).expect("ring").0;
    real.block_on(test(Given { bfs: open(), other: open(), pool }));
    drop(remove);
}

struct RemoveAtEnd(std::path::PathBuf);

impl Drop for RemoveAtEnd {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
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

impl Given {
    async fn create(&self, caller: &Credentials, path: &str) -> Binding {
        self.bfs.open(caller, path.as_bytes(), O_NEW, 0o644).await.expect("create").binding
    }

    async fn write(&self, binding: &Binding, offset: u64, bytes: &[u8]) -> Result<(), BfsError> {
        let mut buf = self.pool.alloc(bytes.len()).await;
        buf.copy_from_slice(bytes);
        self.bfs.write(binding, offset, vec![buf.freeze()]).await
    }

    async fn read(&self, binding: &Binding, offset: u64, len: usize) -> Vec<u8> {
        let buf = self.pool.alloc(len).await;
        let (buf, len) = self.bfs.read(binding, offset, buf).await.expect("read");
        buf[..len].to_vec()
    }

    async fn names(&self, path: &str) -> Vec<String> {
        let page = self.bfs.readdir(&user(0), path.as_bytes(), b"", 1000).await.expect("list");
        assert!(page.last);
        page.entries.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect()
    }
}

#[test]
fn what_is_written_is_read_and_the_end_is_short() {
    on_both(async |given| {
        let file = given.create(&user(0), "/f").await;
        given.write(&file, 3, b"abc").await.expect("write");
        assert_eq!(given.read(&file, 0, 100).await, b"\0\0\0abc");
        assert_eq!(given.read(&file, 4, 1).await, b"b");
        assert_eq!(given.read(&file, 100, 8).await, b"");
        given.bfs.truncate(&file, 4).await.expect("truncate");
        given.bfs.truncate(&file, 6).await.expect("truncate");
        assert_eq!(given.read(&file, 0, 100).await, b"\0\0\0a\0\0");
        given.bfs.fsync(&file).await.expect("fsync");
        given.bfs.fsync_name(&file).await.expect("fsync of the name");
        assert_eq!(given.bfs.stat(&file).await.expect("stat").size, 6);
        let times = Times { atime_ns: None, mtime_ns: Some(1_234_567_890_123_456_700) };
        given.bfs.set_times(&file, times).await.expect("times");
        let mtime = given.bfs.stat(&file).await.expect("stat").mtime_ns;
        assert_eq!(mtime, 1_234_567_890_123_456_700);
    });
}

#[test]
fn an_exclusive_create_makes_and_any_other_says_whether_it_did() {
    on_both(async |given| {
        let caller = user(4001);
        let create = libc::O_CREAT | libc::O_RDWR;
        let first = given.bfs.open(&caller, b"/f", create, 0o666).await.expect("create");
        assert!(first.created);
        assert_eq!(first.attributes.mode & 0o7777, 0o644, "less the umask");
        assert_eq!(first.attributes.uid, 4001);
        let second = given.bfs.open(&caller, b"/f", create, 0o666).await.expect("open");
        assert!(!second.created);
        assert_eq!(second.binding, first.binding);
        assert_eq!(errno(given.bfs.open(&caller, b"/f", O_NEW, 0o666).await), libc::EEXIST);
        assert_eq!(errno(given.bfs.open(&caller, b"/no", libc::O_RDONLY, 0).await), libc::ENOENT);
        let write = given.bfs.open(&caller, b"/", libc::O_RDWR, 0).await;
        assert_eq!(errno(write), libc::EISDIR);
        let below = given.bfs.open(&caller, b"/f/x", libc::O_RDONLY, 0).await;
        assert_eq!(errno(below), libc::ENOTDIR);
    });
}

#[test]
fn the_callers_rights_are_checked() {
    on_both(async |given| {
        let (alice, bob) = (user(4001), user(4002));
        given.bfs.mkdir(&alice, b"/d", 0o700).await.expect("mkdir");
        given.create(&alice, "/d/f").await;
        assert_eq!(errno(given.bfs.lookup(&bob, b"/d/f", false).await), libc::EACCES);
        assert_eq!(errno(given.bfs.readdir(&bob, b"/d", b"", 9).await), libc::EACCES);
        assert_eq!(errno(given.bfs.unlink(&bob, b"/d/f").await), libc::EACCES);
        given.bfs.chmod(&alice, b"/d", 0o755).await.expect("chmod");
        assert_eq!(errno(given.bfs.unlink(&bob, b"/d/f").await), libc::EACCES);
        assert_eq!(errno(given.bfs.open(&bob, b"/d/f", libc::O_WRONLY, 0).await), libc::EACCES);
        let truncate = libc::O_RDONLY | libc::O_TRUNC;
        assert_eq!(errno(given.bfs.open(&bob, b"/d/f", truncate, 0).await), libc::EACCES);
        given.bfs.open(&bob, b"/d/f", libc::O_RDONLY, 0).await.expect("readable");
        assert_eq!(errno(given.bfs.access(&bob, b"/d/f", 2).await), libc::EACCES);
        assert_eq!(errno(given.bfs.chmod(&bob, b"/d/f", 0o777).await), libc::EPERM);
        assert_eq!(errno(given.bfs.chown(&alice, b"/d/f", Some(1), None).await), libc::EPERM);
        given.bfs.chown(&user(0), b"/d/f", Some(4002), None).await.expect("root may");
        given.bfs.chmod(&bob, b"/d/f", 0o600).await.expect("now bob's");
    });
}

#[test]
fn a_deleted_file_is_stale_and_one_made_again_has_another_binding() {
    on_both(async |given| {
        let root = user(0);
        let old = given.create(&root, "/f").await;
        given.write(&old, 0, b"old").await.expect("write");
        given.bfs.unlink(&root, b"/f").await.expect("unlink");
        let new = given.create(&root, "/f").await;
        assert_ne!(new, old);
        assert_eq!(errno(given.bfs.stat(&old).await), libc::ESTALE);
        assert_eq!(errno(given.write(&old, 0, b"x").await), libc::ESTALE);
        assert_eq!(errno(given.bfs.truncate(&old, 0).await), libc::ESTALE);
        assert_eq!(given.read(&new, 0, 10).await, b"");
    });
}

#[test]
fn rename_replaces_exchanges_or_refuses_as_asked() {
    on_both(async |given| {
        let root = user(0);
        let (a, b) = (given.create(&root, "/a").await, given.create(&root, "/b").await);
        let keep = libc::RENAME_NOREPLACE;
        assert_eq!(errno(given.bfs.rename(&root, b"/a", b"/b", keep).await), libc::EEXIST);
        given.bfs.rename(&root, b"/a", b"/b", libc::RENAME_EXCHANGE).await.expect("exchange");
        assert_eq!(given.bfs.lookup(&root, b"/a", false).await.expect("a").binding, b);
        given.bfs.rename(&root, b"/a", b"/b", 0).await.expect("replace");
        assert_eq!(given.bfs.lookup(&root, b"/b", false).await.expect("b").binding, b);
        assert_eq!(errno(given.bfs.stat(&a).await), libc::ESTALE);
        given.bfs.mkdir(&root, b"/d", 0o755).await.expect("mkdir");
        assert_eq!(errno(given.bfs.rename(&root, b"/b", b"/d", 0).await), libc::EISDIR);
        assert_eq!(errno(given.bfs.rename(&root, b"/d", b"/d/e", 0).await), libc::EINVAL);
        given.bfs.rename(&root, b"/b", b"/d/b", 0).await.expect("into");
        assert_eq!(errno(given.bfs.rmdir(&root, b"/d").await), libc::ENOTEMPTY);
        assert_eq!(errno(given.bfs.unlink(&root, b"/d").await), libc::EISDIR);
        assert_eq!(errno(given.bfs.rmdir(&root, b"/d/b").await), libc::ENOTDIR);
        given.bfs.unlink(&root, b"/d/b").await.expect("unlink");
        given.bfs.rmdir(&root, b"/d").await.expect("rmdir");
        assert_eq!(errno(given.bfs.rmdir(&root, b"/").await), libc::EBUSY);
    });
}

#[test]
fn a_directory_comes_in_pages_in_byte_order_without_our_own_names() {
    on_both(async |given| {
        let root = user(0);
        for name in ["/b", "/a", "/ab", "/B", "/c"] {
            given.create(&root, name).await;
        }
        let mut seen = Vec::new();
        let mut after = Vec::new();
        loop {
            let page = given.bfs.readdir(&root, b"/", &after, 2).await.expect("page");
            after = page.entries.last().map(|entry| entry.name.clone()).unwrap_or_default();
            seen.extend(page.entries);
            if page.last {
                break;
            }
        }
        let names: Vec<_> = seen.iter().map(|entry| entry.name.as_slice()).collect();
        assert_eq!(names, [&b"B"[..], b"a", b"ab", b"b", b"c"]);
        assert!(seen.iter().all(|entry| entry.kind == u32::from(libc::DT_REG)));
        assert_eq!(errno(given.bfs.mkdir(&root, b"/.burstbay", 0o777).await), libc::EACCES);
    });
}

#[test]
fn a_file_that_is_kept_lives_on_without_its_name() {
    on_both(async |given| {
        let root = user(0);
        let file = given.create(&root, "/f").await;
        given.write(&file, 0, b"abc").await.expect("write");
        given.bfs.keep(&file, "open.1").await.expect("keep");
        given.bfs.keep(&file, "open.1").await.expect("again");
        given.bfs.unlink(&root, b"/f").await.expect("unlink");
        assert_eq!(given.names("/").await, Vec::<String>::new());
        assert_eq!(given.read(&file, 0, 3).await, b"abc");
        assert_eq!(given.bfs.stat(&file).await.expect("stat").links, 1);
        let other = given.create(&root, "/g").await;
        assert_eq!(errno(given.bfs.keep(&other, "open.1").await), libc::EEXIST);
        given.bfs.remove_hidden("open.1").await.expect("remove");
        given.bfs.remove_hidden("open.1").await.expect("again");
        assert_eq!(errno(given.bfs.stat(&file).await), libc::ESTALE);
        assert_eq!(errno(given.bfs.keep(&file, "open.2").await), libc::ESTALE);
    });
}

#[test]
fn a_lock_is_held_while_its_process_lives() {
    on_both(async |given| {
        given.bfs.hold(ProcessId::new(1, 4)).await.expect("hold");
        assert_eq!(given.other.proven_gone(ProcessId::new(1, 4)).await, Ok(false));
        assert_eq!(errno(given.other.hold(ProcessId::new(1, 4)).await), libc::EWOULDBLOCK);
        let other = given.other.clone();
        drop(given);
        // The real one's threads let go of the descriptors in their own time.
        while other.proven_gone(ProcessId::new(1, 4)).await == Ok(false) {}
        other.check().await.expect("ours");
    });
}
