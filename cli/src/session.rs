//! A connection for the length of one command.

use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use bb_client::{Client, ClientOptions};
use bb_proto::meta::Credentials;
use bb_runtime::{Instant, Rt, ThreadPool};
use futures_util::future::{Either, select};

use crate::arguments::Connection;
use crate::output::client_error;
use crate::pauses::Pauses;

/// Memory for payload: a quarter of it is the bound of what is written and not acknowledged.
const POOL_BYTES: usize = 256 << 20;
const POOL_WRITE_BACK_BYTES: u64 = 64 << 20;

/// A connection that takes longer is spoken of.
const QUIET: Duration = Duration::from_secs(3);

/// What a command works with.
pub struct Session {
    /// Name of the program.
    pub program: &'static str,
    /// The cluster.
    pub client: Client,
    /// Clock and tasks.
    pub rt: Rt,
    /// For calls to local file systems, which block.
    pub threads: ThreadPool,
    /// Print JSON.
    pub json: bool,
    /// How long calls took that write files.
    pub pauses: Pauses,
    failures: Cell<u64>,
    started: Instant,
}

impl Session {
    /// Connects, runs, disconnects. The answer is the number of failures, all reported by then.
    pub fn run(
        program: &'static str,
        connection: &Connection,
        run: impl AsyncFnOnce(&Session) -> u64,
    ) -> u64 {
        let (executor, ring) = match bb_client::executor() {
            Ok(both) => both,
            Err(bb_client::Error::Errno { detail, .. }) => {
                eprintln!("{program}: {detail}");
                return 1;
            }
            Err(error) => {
                eprintln!("{program}: {error}");
                return 1;
            }
        };
        executor.block_on(async {
            let options = options(connection);
            let servers = &connection.servers;
            let connect = Client::connect_tcp(&executor, &ring, servers, options, POOL_BYTES);
            let client = match say_if_long(program, connection, &executor.rt(), connect).await {
                Ok(client) => client,
                Err(error) => {
                    let servers = servers.join(", ");
                    eprintln!("{program}: cannot connect to {servers}: {}", client_error(&error));
                    return 1;
                }
            };
            let rt = executor.rt();
            let session = Self {
                program,
                client: client.clone(),
                started: rt.now(),
                pauses: Pauses::new(&rt),
                rt,
                threads: ThreadPool::new("files", 4, usize::MAX),
                json: connection.json,
                failures: Cell::new(0),
            };
            let failures = run(&session).await;
            if let Err(error) = client.disconnect().await {
                eprintln!("{program}: cannot write back: {}", client_error(&error));
                return failures + 1;
            }
            failures
        })
    }

    /// Says what failed, as coreutils would.
    pub fn complain(&self, text: &str) {
        self.failures.set(self.failures.get() + 1);
        eprintln!("{}: {text}", self.program);
    }

    /// The same for an error of the cluster: "cannot stat 'x': ...".
    pub fn complain_of(&self, doing: &str, path: &[u8], error: &bb_client::Error) {
        let path = crate::output::path(path);
        self.complain(&format!("cannot {doing} '{path}': {}", client_error(error)));
    }

    /// How often something was complained about.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Seconds since the connection was made.
    pub fn seconds(&self) -> f64 {
        self.rt.now().since(self.started).as_secs_f64()
    }

    /// A blocking call of the local system, in another thread.
    pub async fn local<T, F>(&self, call: F) -> std::io::Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> std::io::Result<T> + Send + 'static,
    {
        self.threads.run(call).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
    }

    /// Paths of arguments; the ones that can't be are complained about.
    pub fn paths(&self, texts: &[String]) -> Vec<Vec<u8>> {
        let good = |text: &String| match crate::side::buffer_path(text) {
            Ok(path) => Some(path),
            Err(why) => {
                self.complain(&why);
                None
            }
        };
        texts.iter().filter_map(good).collect()
    }
}

/// Waits for a connection; somebody who waits with it is told for what.
async fn say_if_long<T>(
    program: &str,
    connection: &Connection,
    rt: &Rt,
    connect: impl Future<Output = T>,
) -> T {
    let mut connect = pin!(connect);
    if let Either::Left((client, _)) = select(&mut connect, pin!(rt.sleep(QUIET))).await {
        return client;
    }
    let (servers, seconds) = (connection.servers.join(", "), connection.timeout);
    eprintln!(
        "{program}: no answer from {servers} yet; trying for {seconds} s in all (see --timeout)"
    );
    connect.await
}

fn options(connection: &Connection) -> ClientOptions {
    ClientOptions {
        host: host_name(),
        pid: std::process::id(),
        credentials: credentials(),
        command_timeout: Duration::from_secs(connection.timeout.max(1)),
        write_back_bytes: POOL_WRITE_BACK_BYTES,
        ..ClientOptions::default()
    }
}

/// Name of this machine.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

fn credentials() -> Credentials {
    let mut groups = vec![0; 65_536];
    let room = i32::try_from(groups.len()).unwrap_or(i32::MAX);
    // SAFETY: the array has room for as many entries as the call is told.
    let count = unsafe { libc::getgroups(room, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).unwrap_or(0));
    // SAFETY: these calls have no preconditions. The mask is put back at once; no other thread has
    // been started yet.
    unsafe {
        let umask = libc::umask(0o022);
        libc::umask(umask);
        Credentials { uid: libc::geteuid(), gid: libc::getegid(), groups, umask }
    }
}
