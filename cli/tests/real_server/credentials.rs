//! Users prove who they are (rule 17), with Debian's munged on a socket and a key of the test's own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bb_client::blocking::Client;
use bb_client::{Authentication, AuthenticationMode, ClientOptions, Error};
use bb_proto::meta::{self, Credentials, Lookup, Namespace, NamespaceOp, OpPath, SessionRenew};
use bb_proto::{Capability, Code, Fid, GetBlock, Kind, PartitionId, PgId, Rights};
use bb_proto::{ServiceClass, SessionId, Tick};
use bb_runtime::BufPool;
use bb_transport::auth::{Choice, LibMunge, Munge, NoAuth};
use bb_transport::{Address, CallError, Caller, ClientConfig, Identity, Outgoing, Role, Tcp};

use crate::harness::{Cluster, Shape, bytes, not_run, now, pause, read, write};

/// A user without an entry in any database.
const USER: u32 = 4242;
const SOCKET: &str = "BB_MUNGE_SOCKET";
const SERVER: &str = "BB_TEST_SERVER";

/// A munged of the test's own, in a folder that all users can look into.
struct Munged {
    folder: PathBuf,
    child: Child,
}

impl Munged {
    /// Starts it; says what is missing where it cannot.
    fn start(name: &str) -> Result<Self, String> {
        // SAFETY: cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Err("acting as another user needs root".to_owned());
        }
        let here =
            |program: &str| ["/usr/sbin", "/usr/bin", "/sbin"].map(|p| Path::new(p).join(program));
        let Some(program) = here("munged").into_iter().find(|path| path.exists()) else {
            return Err("munged (Debian: munge) is not installed".to_owned());
        };
        let folder = std::env::temp_dir().join(format!("bb-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("mode");
        let key = folder.join("munge.key");
        fs::write(&key, bytes(7, 128)).expect("a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("mode");
        let at = |option: &str, file: &str| format!("--{option}={}", folder.join(file).display());
        let log = fs::File::create(folder.join("output")).expect("a file");
        let mut command = Command::new(program);
        command
            .args(["--foreground", "--force"])
            .args([at("socket", "socket"), at("key-file", "munge.key"), at("pid-file", "pid")])
            .args([at("log-file", "log"), at("seed-file", "seed")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log);
        // SAFETY: prctl may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().expect("munged starts");
        let munged = Self { folder, child };
        let start = now();
        loop {
            match LibMunge::inline(Some(munged.socket())).check() {
                Ok(()) => return Ok(munged),
                Err(error) if start.elapsed() > Duration::from_secs(20) => {
                    let said = fs::read_to_string(munged.folder.join("output"));
                    panic!("munged does not work: {error}\n{}", said.unwrap_or_default());
                }
                Err(error) if error.to_string().contains("libmunge2") => {
                    return Err(error.to_string());
                }
                Err(_) => pause(20),
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// What `bb.conf` says of it.
    fn section(&self, key: &str) -> String {
        let (socket, folder) = (self.socket(), self.folder.display());
        format!(
            "[auth]\nmethod = \"munge\"\nkey = \"{folder}/{key}\"\nmunge_socket = \"{}\"\n",
            socket.display()
        )
    }

    fn authentication(&self) -> Authentication {
        let socket = Some(self.socket());
        Authentication { mode: AuthenticationMode::Munge, socket, server_uid: None }
    }
}

impl Drop for Munged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn as_user(uid: u32) -> Credentials {
    Credentials { uid, gid: uid, groups: Vec::new(), umask: 0o022 }
}

fn connect(address: &str, uid: u32, auth: Authentication) -> Result<Client, Error> {
    let options = ClientOptions {
        credentials: as_user(uid),
        auth,
        command_timeout: Duration::from_secs(20),
        request_timeout: Duration::from_secs(5),
        ..ClientOptions::default()
    };
    Client::connect(&[address], options, 32 << 20)
}

fn errno(result: Result<impl Sized, Error>) -> i32 {
    match result {
        Err(Error::Errno { errno, .. }) => errno,
        Err(other) => panic!("{other}"),
        Ok(_) => 0,
    }
}

/// Opens for reading, and closes.
fn open(client: &Client, path: &[u8]) -> Result<(), Error> {
    client.open(path, libc::O_RDONLY, 0)?.close()
}

/// A file of root's, and one of the user's, in the buffer and on the backing file system.
fn populate(cluster: &Cluster, auth: Authentication) {
    let root = connect(&cluster.address, 0, auth).expect("root connects");
    write(&root, "/secret", &bytes(1, 300_000)).expect("written");
    root.chmod(b"/secret", 0o600).expect("chmod");
    root.mkdir(b"/mine", 0o755).expect("mkdir");
    root.chown(b"/mine", Some(USER), Some(USER)).expect("chown");
    assert_eq!(read(&root, "/secret"), bytes(1, 300_000));
    root.disconnect().expect("disconnects");
}

#[test]
fn real_users_are_proven_by_munge_and_read_only_what_is_theirs() {
    let munged = match Munged::start("munge") {
        Ok(munged) => munged,
        Err(missing) => return not_run(&missing),
    };
    // Connections of both reactors prove who they are, each to its own.
    let shape = Shape { reactors: 2, ..Shape::default() };
    let mut cluster = Cluster::format_with(&shape, &munged.section("cluster.key"));
    let key = munged.folder.join("cluster.key");
    let mode = fs::metadata(&key).expect("bbd format made it").mode();
    assert_eq!(mode & 0o777, 0o600);
    cluster.start();
    populate(&cluster, munged.authentication());
    // A client that has no munge: told why.
    let socket = Some(munged.folder.join("nothing"));
    let without = Authentication { socket, ..Authentication::default() };
    let refused = connect(&cluster.address, 0, without).err().expect("refused").to_string();
    assert!(refused.contains("munged"), "{refused}");
    // The user's part runs as that user, from a place where it may run programs.
    let program = munged.folder.join("user");
    fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    let output = Command::new(&program)
        .args(["--exact", "credentials::users_part", "--ignored", "--nocapture"])
        .env(SOCKET, munged.socket())
        .env(SERVER, &cluster.address)
        .env("HOME", "/")
        .current_dir("/")
        .uid(USER)
        .gid(USER)
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{errors}");
    println!("{said}");
    // The user's bytes went to the backing file system as the user's.
    let found = fs::metadata(cluster.path("bfs/mine/own")).expect("there");
    assert_eq!((found.uid(), found.gid()), (USER, USER));
    // Others' bytes are read with the permission of the fragment map: root's session did not write
    // them.
    let root = connect(&cluster.address, 0, munged.authentication()).expect("root connects");
    assert_eq!(read(&root, "/mine/own"), bytes(2, 500_000));
    root.disconnect().expect("disconnects");
}

/// The part of the test above that runs as [`USER`].
#[test]
#[ignore = "started by real_users_are_proven_by_munge_and_read_only_what_is_theirs"]
fn users_part() {
    let Ok(address) = std::env::var(SERVER) else { return not_run("no server is named") };
    // SAFETY: cannot fail.
    assert_eq!(unsafe { libc::geteuid() }, USER);
    let auth = || Authentication { mode: AuthenticationMode::Auto, ..Authentication::default() };
    let user = connect(&address, USER, auth()).expect("connects");
    write(&user, "/mine/own", &bytes(2, 500_000)).expect("written");
    assert_eq!(read(&user, "/mine/own"), bytes(2, 500_000));
    assert_eq!(errno(open(&user, b"/secret")), libc::EACCES);
    user.disconnect().expect("disconnects");
    // Another session of the same user: blocks that it did not write.
    let again = connect(&address, USER, auth()).expect("connects");
    assert_eq!(read(&again, "/mine/own"), bytes(2, 500_000));
    again.disconnect().expect("disconnects");
    for claimed in [0, USER + 1] {
        let liar = connect(&address, claimed, auth()).expect("connects");
        assert_eq!(errno(open(&liar, b"/secret")), libc::EPERM, "as user {claimed}");
        liar.disconnect().expect("disconnects");
    }
    let (executor, ring) = bb_client::executor().expect("a ring");
    executor.block_on(forge(&executor, &ring, &address));
}

/// Requests that no client of ours makes.
async fn forge(executor: &bb_runtime::Executor, ring: &bb_runtime::uring::Uring, address: &str) {
    let pool = BufPool::new(8 << 20, false).expect("memory");
    let caller = |role, auth| {
        let identity =
            Identity { role, host: "forger".into(), cluster: Vec::new(), incarnation: 0, auth };
        let config = ClientConfig::new(identity, pool.clone());
        bb_transport::Client::new(&executor.rt(), Tcp::network(ring), config)
    };
    let to = Address::from(address);
    let ask = async |caller: &bb_transport::Client, kind, (target, fence), body: Vec<u8>| {
        let limit = Duration::from_secs(10);
        let request = Outgoing::new(kind, ServiceClass::Client, limit, body).to(target, fence);
        match caller.call(&to, request).await {
            Ok(_) => Ok(()),
            Err(CallError::Refused(failure, _)) => Err(failure.kind()),
            Err(other) => panic!("{kind:?}: {other}"),
        }
    };
    let proven = caller(Role::Client, Choice::default().method());
    let forged =
        |rights| Capability { session: SessionId(5), fid: Fid(7), rights, signature: [9; 16] };
    let observer = bb_client::Observer::over_tcp(executor, ring, &[address.to_owned()], "forger");
    let map = observer.expect("memory").look(Duration::from_secs(10)).await.expect("a map").map;
    let partition = (3, map.partition(PartitionId(3)).expect("there").config);
    assert_eq!(map.devices.len(), 4);
    for rights in [Rights::READ, Rights::SERVER] {
        let lookup = Lookup { capability: (&forged(rights)).into(), offset: 0, len: 10 };
        let answer = ask(&proven, Kind::Lookup, partition, meta::encode(&lookup)).await;
        assert_eq!(answer, Err(Code::Denied), "{rights:?}");
        let pg = PgId { slot: Tick(1), session: SessionId(5), sequence: 1, home: PartitionId(1) };
        let get = GetBlock {
            pg,
            capability: forged(rights),
            index: 0,
            chunk_log2: 12,
            chunk_first: 0,
            chunk_count: 1,
            more: Vec::new(),
        };
        for device in &map.devices {
            let to = (device.id, device.incarnation);
            let answer = ask(&proven, Kind::GetBlock, to, get.encode()).await;
            assert_eq!(answer, Err(Code::Denied), "device {}", device.id);
        }
    }
    for kind in [Kind::Namespace, Kind::SessionRenew] {
        // Nobody's session: another user's needs its number, see the rules' own tests.
        let renew = meta::encode(&SessionRenew { session: 5, acknowledged: 0 });
        let stat = OpPath { path: b"/secret".to_vec(), no_follow: true };
        let stat = meta::encode(&Namespace {
            session: 5,
            sequence: 1,
            acknowledged: 0,
            credentials: as_user(0),
            owner: Some(USER),
            op: Some(NamespaceOp::Stat(stat)),
        });
        let body = if kind == Kind::Namespace { stat } else { renew };
        assert_eq!(ask(&proven, kind, partition, body).await, Err(Code::NoSession), "{kind:?}");
    }
    // "I am a server", with whatever a user can make up.
    let munged = || Rc::new(LibMunge::inline(None));
    let made_up = bb_transport::auth::ClusterKey::new([1; 32]);
    for auth in [
        NoAuth::shared(),
        Rc::new(Munge::client(munged(), vec![0])),
        Rc::new(Munge::server(munged(), 0, made_up)),
    ] {
        let server = caller(Role::Server, auth);
        let limit = Duration::from_secs(10);
        let request = Outgoing::new(Kind::Ping, ServiceClass::Control, limit, Vec::new());
        let refused = server.call(&to, request).await.err();
        assert!(matches!(refused, Some(CallError::Rejected(_))), "{refused:?}");
    }
    println!("connecting with munge: {:?}", connecting(executor, ring, address).await);
}

#[test]
fn real_servers_with_different_cluster_keys_do_not_join() {
    let munged = match Munged::start("keys") {
        Ok(munged) => munged,
        Err(missing) => return not_run(&missing),
    };
    let mut first = Cluster::format_with(&Shape::default(), &munged.section("cluster.key"));
    first.start();
    let second = Cluster::format_with(&Shape::default(), &munged.section("other.key"));
    let text = fs::read_to_string(second.path("bb.conf")).expect("bb.conf");
    let cluster = text.find("[cluster]").expect("its section");
    let auth = text.find("[auth]").expect("its section");
    let joins =
        format!("{}{}[cluster]\njoin = [\"{}\"]\n", &text[..cluster], &text[auth..], first.address);
    let mount = |text: &str| {
        text.replace(
            &second.path("bfs").display().to_string(),
            &first.path("bfs").display().to_string(),
        )
    };
    fs::write(second.path("bb.conf"), mount(&joins)).expect("bb.conf");
    let format = || second.bbd(&["format", "--sparse", "--force"]).output().expect("bbd starts");
    let output = format();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("cluster keys differ"), "{errors}");
    // Without any, it says where to get it.
    fs::remove_file(munged.folder.join("other.key")).expect("removed");
    let output = format();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("needs a copy"), "{errors}");
    fs::copy(munged.folder.join("cluster.key"), munged.folder.join("other.key")).expect("copied");
    let output = format();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn real_trusted_clients_are_judged_by_the_user_they_name_and_the_server_warns() {
    // SAFETY: cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return not_run("a server acts for other users only as root");
    }
    let cluster = Cluster::started(&Shape::default());
    let log = fs::read_to_string(cluster.path("bbd.1.log")).expect("the log");
    assert!(log.contains("clients are trusted"), "{log}");
    let checked = cluster.bbd(&["check"]).output().expect("bbd starts");
    assert!(String::from_utf8_lossy(&checked.stdout).contains("clients are trusted"));
    populate(&cluster, Authentication::default());
    let user = connect(&cluster.address, USER, Authentication::default()).expect("connects");
    assert_eq!(errno(open(&user, b"/secret")), libc::EACCES);
    write(&user, "/mine/own", b"mine").expect("written");
    assert_eq!(read(&user, "/mine/own"), b"mine");
    user.disconnect().expect("disconnects");
    // Who insists on proofs goes away.
    let insists = Authentication { mode: AuthenticationMode::Munge, ..Authentication::default() };
    let refused = connect(&cluster.address, 0, insists).err().expect("refused").to_string();
    assert!(refused.contains("none"), "{refused}");
    let (executor, ring) = bb_client::executor().expect("a ring");
    let took = executor.block_on(connecting(&executor, &ring, &cluster.address));
    println!("connecting without munge: {took:?}");
}

/// Time of a new connection and one request on it.
async fn connecting(
    executor: &bb_runtime::Executor,
    ring: &bb_runtime::uring::Uring,
    address: &str,
) -> Duration {
    let pool = BufPool::new(8 << 20, false).expect("memory");
    let (started, rounds) = (now(), 50);
    for _ in 0..rounds {
        let identity = Identity {
            role: Role::Client,
            host: "new".into(),
            cluster: Vec::new(),
            incarnation: 0,
            auth: Choice::default().method(),
        };
        let config = ClientConfig::new(identity, pool.clone());
        let fresh = bb_transport::Client::new(&executor.rt(), Tcp::network(ring), config);
        let limit = Duration::from_secs(10);
        let ping = Outgoing::new(Kind::Ping, ServiceClass::Control, limit, Vec::new());
        fresh.call(&Address::from(address), ping).await.expect("answered");
        fresh.close();
    }
    started.elapsed() / rounds
}
