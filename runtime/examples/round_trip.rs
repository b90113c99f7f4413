//! What a message between two reactors over loopback TCP costs: `round_trip [BYTES]`.

use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use bb_runtime::mailbox;
use bb_runtime::reactor::{ReactorOptions, start};
use bb_runtime::uring::{Part, RingFd, Uring};
use bb_runtime::{Instant, Rt};

const RUN: Duration = Duration::from_secs(2);

async fn receive(uring: &Uring, fd: &RingFd, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (mut have, want) = (0, bytes.len());
    while have < want {
        let read;
        (read, bytes) = uring.recv_bytes(fd, bytes, have..want).await;
        match read.expect("receives") {
            0 => return None,
            read => have += read,
        }
    }
    Some(bytes)
}

async fn answer(uring: Uring, listener: TcpListener, len: usize) {
    let fd = uring.accept(&uring.adopt(listener.into())).await.expect("accepts");
    let mut bytes = vec![0; len];
    while let Some(got) = receive(&uring, &fd, bytes).await {
        uring.send(&fd, vec![Part::Bytes(got.clone())]).await.expect("sends");
        bytes = got;
    }
}

async fn ask(rt: Rt, uring: Uring, to: std::net::SocketAddr, len: usize) {
    // SAFETY: takes no pointers.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: just made, checked by `connect`.
    let fd = uring.adopt(unsafe { OwnedFd::from_raw_fd(raw) });
    uring.connect(&fd, to).await.expect("connects");
    let (start, mut times, mut bytes) = (rt.now(), Vec::new(), vec![0; len]);
    while rt.now() - start < RUN {
        let before = rt.now();
        uring.send(&fd, vec![Part::Bytes(bytes.clone())]).await.expect("sends");
        bytes = receive(&uring, &fd, bytes).await.expect("answers");
        times.push(rt.now() - before);
    }
    report(&format!("TCP, {len} bytes"), times);
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 1000].as_nanos() / 100;
    let (p50, p99, p999) = (at(500), at(990), at(999));
    let us = |tenths: u128| format!("{}.{}", tenths / 10, tenths % 10);
    println!(
        "{what}: p50 {} p99 {} p99.9 {} us, {} round trips",
        us(p50),
        us(p99),
        us(p999),
        times.len()
    );
}

async fn mail(
    rt: Rt,
    first: bool,
    to: mailbox::Sender<Instant>,
    mut at: mailbox::Receiver<Instant>,
) {
    let (start, mut times) = (rt.now(), Vec::new());
    if first {
        to.try_send(rt.now()).expect("open");
    }
    while let Some(sent) = at.recv().await {
        if first {
            times.push(rt.now() - sent);
            if rt.now() - start > RUN {
                break;
            }
        }
        if to.try_send(if first { rt.now() } else { sent }).is_err() {
            break;
        }
    }
    if first {
        report("mailbox", times);
    }
}

fn main() {
    let len = std::env::args().nth(1).map_or(64, |len| len.parse().expect("bytes"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (a, at_a) = mailbox::unbounded();
    let (b, at_b) = mailbox::unbounded();
    let ends = std::sync::Mutex::new((Some(listener), Some((b, at_a)), Some((a, at_b))));
    let reactors = start(&ReactorOptions::new(2), move |index, rt, uring| {
        let mut ends = ends.lock().expect("no panic");
        let listener = if index == 1 { ends.0.take() } else { None };
        let mailboxes = if index == 0 { ends.1.take() } else { ends.2.take() };
        async move {
            match listener {
                Some(listener) => answer(uring, listener, len).await,
                None => ask(rt.clone(), uring, address, len).await,
            }
            let (to, at) = mailboxes.expect("one each");
            mail(rt, index == 0, to, at).await;
        }
    });
    for end in reactors.expect("io_uring").join() {
        end.expect("no panic");
    }
}
