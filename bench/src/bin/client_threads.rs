//! What calls of many threads of one process cost: the hand-over between threads, more than
//! anything else, against servers that agree at once.
//!
//! `client_threads [THREADS] [CALLS]`, for example `client_threads 16 100000`: so many calls in
//! all. Requests go through a socket to a process that sends them back, so that answers wake the
//! threads that real ones do.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::Duration;

use bb_bench::yes::Yes;
use bb_client::ClientOptions;
use bb_client::blocking::{Client, File, Platform};
use bb_runtime::sync::Notify;
use bb_runtime::uring::{self, Part, RingFd, Uring, UringOptions};
use bb_runtime::{BufPool, Rt};
use bb_transport::{Address, CallFuture, Caller, Outgoing};
use futures_channel::oneshot;

/// What stands for a request on the socket.
const WORD_BYTES: usize = 64;

type Failure = Box<dyn std::error::Error>;

/// Requests that wait for their echo, in order.
struct Echoed {
    yes: Yes,
    queued: RefCell<VecDeque<oneshot::Sender<()>>>,
    flying: RefCell<VecDeque<oneshot::Sender<()>>>,
    more: Notify,
}

impl Echoed {
    fn start(rt: &Rt, uring: &Uring, socket: OwnedFd) -> Rc<Self> {
        let this = Rc::new(Self {
            yes: Yes::new(),
            queued: RefCell::default(),
            flying: RefCell::default(),
            more: Notify::new(),
        });
        let fd = uring.adopt(socket);
        drop(rt.spawn(this.clone().send(uring.clone(), fd.clone())));
        drop(rt.spawn(this.clone().receive(uring.clone(), fd)));
        this
    }

    async fn send(self: Rc<Self>, uring: Uring, fd: RingFd) {
        loop {
            let queued = std::mem::take(&mut *self.queued.borrow_mut());
            if queued.is_empty() {
                self.more.notified().await;
                continue;
            }
            let words = vec![1; queued.len() * WORD_BYTES];
            self.flying.borrow_mut().extend(queued);
            if uring.send(&fd, vec![Part::Bytes(words)]).await.is_err() {
                return;
            }
        }
    }

    async fn receive(self: Rc<Self>, uring: Uring, fd: RingFd) {
        let (mut bytes, mut got) = (vec![0; 4096], 0);
        loop {
            let (count, back) = uring.recv_bytes(&fd, bytes, 0..4096).await;
            bytes = back;
            got += match count {
                Ok(count) if count > 0 => count,
                _ => return,
            };
            for _ in 0..got / WORD_BYTES {
                if let Some(answer) = self.flying.borrow_mut().pop_front() {
                    let _ = answer.send(());
                }
            }
            got %= WORD_BYTES;
        }
    }
}

struct Peer(Rc<Echoed>);

impl Caller for Peer {
    fn call(&self, to: &Address, request: Outgoing) -> CallFuture {
        let (echo, echoed) = oneshot::channel();
        self.0.queued.borrow_mut().push_back(echo);
        self.0.more.notify_all();
        let answer = self.0.yes.call(to, request);
        Box::pin(async move {
            let _ = echoed.await;
            answer.await
        })
    }
}

/// The other process: sends back what comes.
fn echo() -> Result<(), Failure> {
    let mut input = std::io::stdin().lock();
    let mut output = UnixStream::from(input.as_fd().try_clone_to_owned()?);
    let mut bytes = [0; 4096];
    loop {
        match input.read(&mut bytes)? {
            0 => return Ok(()),
            count => output.write_all(&bytes[..count])?,
        }
    }
}

fn connect() -> Result<(Client, Child), Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    let peer = Command::new(std::env::current_exe()?)
        .arg("--echo")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let (executor, uring) = uring::executor(&UringOptions::for_library())?;
    let echoed = Echoed::start(&executor.rt(), &uring, ours.into());
    let pool = BufPool::new(64 << 20, false)?;
    drop(uring);
    let caller = Rc::new(Peer(echoed));
    // SAFETY: nothing of the executor or the caller is kept here.
    let platform = unsafe { Platform::own(executor, pool, caller, vec![Address::from("echo")]) };
    Ok((Client::connect_on(platform, ClientOptions::default())?, peer))
}

/// What the process has used so far.
struct Used {
    cpu: Duration,
    switches: i64,
}

impl Used {
    fn now() -> Self {
        // SAFETY: all zeros is a valid value, and the call fills it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let time = |at: libc::timeval| {
            Duration::from_secs(at.tv_sec.unsigned_abs())
                + Duration::from_micros(at.tv_usec.unsigned_abs())
        };
        Self {
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            switches: usage.ru_nvcsw + usage.ru_nivcsw,
        }
    }
}

#[expect(clippy::disallowed_methods, clippy::cast_precision_loss, reason = "measures, for people")]
fn measure(
    what: &str,
    threads: usize,
    calls: usize,
    files: &[File],
    call: impl Fn(&File, usize) + Sync,
) {
    let (before, begin) = (Used::now(), std::time::Instant::now());
    std::thread::scope(|scope| {
        for file in files.iter().take(threads) {
            let call = &call;
            scope.spawn(move || (0..calls / threads).for_each(|number| call(file, number)));
        }
    });
    let (after, seconds) = (Used::now(), begin.elapsed().as_secs_f64());
    let each = calls as f64;
    println!(
        "{what:24} {threads:3} threads: {:8.2} us each, {:7.2} us of CPU, {:6.3} context switches",
        seconds * 1e6 / each,
        (after.cpu - before.cpu).as_secs_f64() * 1e6 / each,
        (after.switches - before.switches) as f64 / each,
    );
}

fn run() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|arg| arg == "--echo") {
        return echo();
    }
    let threads: usize = args.next().map_or(Ok(16), |a| a.parse())?;
    let calls: usize = args.next().map_or(Ok(100_000), |a| a.parse())?;
    let (client, mut peer) = connect()?;
    let open = |n| client.open(format!("/f{n}").as_bytes(), libc::O_RDWR | libc::O_CREAT, 0o644);
    let files = (0..threads).map(open).collect::<Result<Vec<File>, _>>()?;
    let data = [7; 4096];
    for threads in [1, 2, 4, threads] {
        measure("size (local)", threads, calls, &files, |file, _| {
            file.size_hint().expect("it is open");
        });
        measure("write 4 KiB", threads, calls / 4, &files, |file, number| {
            file.pwrite(&data, (number % 64 * 4096) as u64).expect("writes");
        });
        measure("write 4 KiB and fsync", threads, calls / 10, &files, |file, number| {
            file.pwrite(&data, (number % 64 * 4096) as u64).expect("writes");
            file.fsync().expect("is durable");
        });
    }
    drop(files);
    client.shut_down()?;
    drop(client);
    peer.wait()?;
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client_threads: {error}");
            ExitCode::FAILURE
        }
    }
}
