use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::buf::BufPool;

fn pool() -> BufPool {
    BufPool::new(8 << 20, false).expect("memory")
}

fn reactor() -> (Executor, Uring) {
    executor(&UringOptions::for_reactor()).expect("this kernel has io_uring")
}

fn scratch_file() -> OwnedFd {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"ring test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
    (near, listener.accept().expect("accepts").0)
}

/// Queues and starts what `future` begins with, without waiting for its end.
fn begin<F: Future>(future: std::pin::Pin<&mut F>) {
    assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[test]
fn what_is_written_is_read_back_with_and_without_registration() {
    for registered in [false, true] {
        let (executor, uring) = reactor();
        // Small: ordinary users may lock 8 MiB, for all their processes together.
        let pool = BufPool::new(2 << 20, false).expect("memory");
        if registered {
            assert!(uring.register_pool(&pool));
        }
        let fd = if registered {
            uring.register_fd(scratch_file())
        } else {
            uring.adopt(scratch_file())
        };
        assert_eq!(fd.is_registered(), registered);
        executor.block_on(async {
            let mut buf = pool.try_alloc(12_288).expect("room");
            buf.fill(7);
            buf[4096..8192].fill(9);
            let buf = buf.freeze();
            assert_eq!(uring.write_at(&fd, 4096, buf.clone(), true).await.expect("writes"), 12_288);
            uring.fdatasync(&fd).await.expect("flushes");
            uring.fsync(&fd).await.expect("flushes");
            let back = pool.try_alloc(12_288).expect("room");
            let (read, back) = uring.read_at(&fd, 4096, back, 0..12_288).await;
            assert_eq!(read.expect("reads"), 12_288);
            assert_eq!(back[..], buf[..]);
            uring.punch_hole(&fd, 4096, 8192).await.expect("punches");
            let (read, back) = uring.read_at(&fd, 8192, back, 0..4096).await;
            assert_eq!(read.expect("reads"), 4096);
            assert!(back[..4096].iter().all(|byte| *byte == 0));
            let (read, _) = uring.read_at(&fd, 1 << 30, back, 0..4096).await;
            assert_eq!(read.expect("end of file"), 0);
        });
    }
}

#[test]
fn an_error_of_the_kernel_reaches_its_caller_only() {
    let (executor, uring) = reactor();
    let (read_only, _peer) = std::io::pipe().expect("pipe");
    let fd = uring.adopt(read_only.into());
    executor.block_on(async {
        let buf = pool().try_alloc(4096).expect("room").freeze();
        let error = uring.write_at(&fd, 0, buf, false).await.expect_err("not writable");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        uring.fdatasync(&uring.adopt(scratch_file())).await.expect("another one works");
    });
}

#[test]
fn more_operations_than_the_queues_hold_all_end() {
    let options = UringOptions { submission_entries: 8, ..UringOptions::for_reactor() };
    let (executor, uring) = executor(&options).expect("ring");
    let rt = executor.rt();
    let fd = uring.adopt(scratch_file());
    let pool = pool();
    executor.block_on(async {
        let buf = pool.try_alloc_zeroed(4096).expect("room").freeze();
        let writes: Vec<_> = (0..1000)
            .map(|i| rt.spawn(uring.write_at(&fd, i * 4096, buf.clone(), false)))
            .collect();
        for write in writes {
            assert_eq!(write.await.expect("runs").expect("writes"), 4096);
        }
    });
    assert_eq!(uring.operations_running(), 0);
}

#[test]
fn parts_arrive_in_order_through_a_full_socket() {
    let (executor, uring) = reactor();
    let rt = executor.rt();
    let pool = BufPool::new(64 << 20, false).expect("memory");
    executor.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let listener = uring.adopt(listener.into());
        // SAFETY: takes no pointers.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        // SAFETY: just made.
        let near: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) };
        let near = uring.adopt(near);
        let (u, l) = (uring.clone(), listener.clone());
        let accepted = rt.spawn(async move { u.accept(&l).await });
        uring.connect(&near, address).await.expect("connects");
        let far = accepted.await.expect("runs").expect("accepts");

        // More parts than one call takes, and more bytes than the socket's buffers.
        let mut expected = Vec::new();
        let mut parts = Vec::new();
        for i in 0..1500_u32 {
            let mut buf = pool.try_alloc(8192).expect("room");
            buf.fill(u8::try_from(i % 251).expect("small"));
            let (head, payload) = (i.to_le_bytes().to_vec(), buf.freeze());
            expected.extend_from_slice(&head);
            expected.extend_from_slice(&payload);
            parts.extend([Part::Bytes(head), Part::Buf(payload)]);
        }
        parts.push(Part::Bytes(Vec::new()));
        let u = uring.clone();
        let sending = rt.spawn(async move {
            u.send(&near, parts).await?;
            near.shutdown(std::net::Shutdown::Write)
        });
        let mut got = Vec::new();
        let mut head = vec![0; 100];
        let read;
        (read, head) = uring.recv_bytes(&far, head, 10..30).await;
        let read = read.expect("receives");
        got.extend_from_slice(&head[10..10 + read]);
        let mut buf = pool.alloc(1 << 20).await;
        loop {
            let read;
            (read, buf) = uring.recv(&far, buf, 4096..1 << 20).await;
            match read.expect("receives") {
                0 => break,
                read => got.extend_from_slice(&buf[4096..4096 + read]),
            }
        }
        sending.await.expect("runs").expect("sends");
        assert!(got == expected, "the stream differs");
    });
}

#[test]
fn a_refused_connection_and_a_closed_peer_are_errors() {
    let (executor, uring) = reactor();
    executor.block_on(async {
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("port");
        // SAFETY: takes no pointers.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        // SAFETY: just made.
        let fd = uring.adopt(unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) });
        let error = uring.connect(&fd, address).await.expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

        let (near, far) = connected();
        drop(far);
        let near = uring.adopt(near.into());
        let mut failed = false;
        for _ in 0..50 {
            failed |= uring.send(&near, vec![Part::Bytes(vec![1; 1000])]).await.is_err();
        }
        assert!(failed, "EPIPE without a signal");
    });
}

#[test]
fn a_dropped_receive_keeps_its_buffer_until_the_kernel_lets_go() {
    let (executor, uring) = reactor();
    let rt = executor.rt();
    let pool = pool();
    let (near, _far) = connected();
    executor.block_on(async {
        let near = uring.adopt(near.into());
        {
            let buf = pool.try_alloc(4096).expect("room");
            let mut receiving = pin!(uring.recv(&near, buf, 0..4096));
            begin(receiving.as_mut());
            rt.yield_now().await;
            assert_eq!(uring.operations_running(), 1);
        }
        assert_eq!(pool.stats().used_bytes, 4096, "the kernel may still write to it");
        while uring.operations_running() > 0 {
            rt.yield_now().await;
        }
        assert_eq!(pool.stats().used_bytes, 0, "cancelled, and given back");
    });
}

#[test]
fn a_dropped_write_is_still_done() {
    let (executor, uring) = reactor();
    let rt = executor.rt();
    let pool = pool();
    executor.block_on(async {
        let fd = uring.adopt(scratch_file());
        let mut buf = pool.try_alloc(4096).expect("room");
        buf.fill(3);
        drop(uring.write_at(&fd, 0, buf.freeze(), false));
        while uring.operations_running() > 0 {
            rt.yield_now().await;
        }
        let (read, buf) = uring.read_at(&fd, 0, pool.try_alloc(4096).expect("room"), 0..4096).await;
        assert_eq!(read.expect("reads"), 4096);
        assert!(buf.iter().all(|byte| *byte == 3));
    });
}

#[test]
fn a_connection_that_nobody_takes_is_closed() {
    for turns in [0, 3] {
        let (executor, uring) = reactor();
        let rt = executor.rt();
        executor.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
            let address = listener.local_addr().expect("bound");
            let listener = uring.adopt(listener.into());
            let mut peer;
            {
                let mut accepting = pin!(uring.accept(&listener));
                begin(accepting.as_mut());
                rt.yield_now().await;
                peer = TcpStream::connect(address).expect("connects");
                // With turns, the accept has ended when it is dropped; without, it ends later.
                for _ in 0..turns {
                    rt.sleep(Duration::from_millis(5)).await;
                }
            }
            while uring.operations_running() > 0 {
                rt.yield_now().await;
            }
            drop(listener);
            peer.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
            // Closed, or reset together with the listener's backlog.
            assert!(matches!(peer.read(&mut [0; 8]), Ok(0) | Err(_)));
            if turns > 0 {
                let error = peer.read(&mut [0; 8]).map_err(|error| error.kind());
                assert_ne!(error, Err(std::io::ErrorKind::WouldBlock));
            }
        });
    }
}

#[test]
fn a_descriptor_is_closed_after_its_last_operation_and_freed_in_the_table() {
    let options = UringOptions { registered_files: 1, ..UringOptions::for_reactor() };
    let (executor, uring) = executor(&options).expect("ring");
    let rt = executor.rt();
    executor.block_on(async {
        for _ in 0..3 {
            let (near, mut far) = connected();
            let near = uring.register_fd(near.into());
            assert!(near.is_registered(), "the place in the table came back");
            assert!(!uring.register_fd(scratch_file()).is_registered(), "and there is one only");
            let polling = uring.poll_fd(&near, libc::POLLIN);
            rt.yield_now().await;
            drop(near);
            far.write_all(b"x").expect("open");
            assert_eq!(polling.await.expect("polls") & libc::POLLIN, libc::POLLIN);
            // Closed with an unread byte in it: a reset.
            assert!(far.read(&mut [0]).is_err());
        }
    });
}

#[test]
fn timers_fire_and_other_threads_wake_a_sleeper() {
    let (executor, _uring) = reactor();
    let rt = executor.rt();
    let start = rt.now();
    executor.block_on(rt.sleep(Duration::from_millis(20)));
    assert!(rt.now() - start >= Duration::from_millis(20));
    for round in 0..20_u64 {
        let (sender, receiver) = futures_channel::oneshot::channel();
        let thread = std::thread::Builder::new().spawn(move || {
            // Some come during the spin, some during the sleep.
            let pause =
                libc::timespec { tv_sec: 0, tv_nsec: i64::try_from(round).unwrap() * 10_000 };
            // SAFETY: `pause` is readable, and the remainder is not asked for.
            unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
            sender.send(round).expect("somebody waits");
        });
        let got = executor.block_on(rt.timeout(Duration::from_secs(10), receiver));
        assert_eq!(got.expect("in time").expect("sent"), round);
        thread.expect("a thread").join().expect("ends");
    }
}

/// What the client library does under its lock: hands the executor from thread to thread.
struct Moved<T>(T);
// SAFETY: the tests below use it on one thread at a time, and joining orders the accesses.
unsafe impl<T> Send for Moved<T> {}

fn on_another_thread<T, R>(value: T, run: impl FnOnce(&T) -> R) -> (T, R) {
    let job = Moved((value, run));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
            let job = job;
            let Moved((value, run)) = job;
            let result = run(&value);
            Moved((value, result))
        });
        thread.expect("a thread").join().expect("no panic").0
    })
}

#[test]
fn a_receive_waits_until_it_is_full_and_gives_what_came_where_its_thread_ends() {
    let (executor, uring) = executor(&UringOptions::for_library()).expect("ring");
    let (rt, pool) = (executor.rt(), pool());
    let (near, mut far) = connected();
    let near = uring.adopt(near.into());
    let everything = (executor, rt, uring, near, pool);
    far.write_all(b"one, ").expect("open");
    let (everything, receiving) =
        on_another_thread(everything, |(executor, rt, uring, near, pool)| {
            let receiving = rt.spawn(uring.recv(near, pool.try_alloc(4096).expect("room"), 0..8));
            executor.block_on(rt.sleep(Duration::from_millis(20)));
            assert!(!receiving.is_finished(), "three bytes are missing");
            receiving
        });
    let (executor, rt, uring, near, _) = &everything;
    far.write_all(b"two").expect("open");
    executor.block_on(async {
        let limit = Duration::from_secs(10);
        let (read, mut buf) = rt.timeout(limit, receiving).await.expect("in time").expect("runs");
        let mut have = read.expect("receives");
        assert!(have == 5 || have == 8, "{have}: nothing is received twice");
        while have < 8 {
            let (read, back) = uring.recv(near, buf, have..8).await;
            (have, buf) = (have + read.expect("receives"), back);
        }
        assert_eq!(&buf[..8], b"one, two");
    });
}

#[test]
fn requests_outlive_the_thread_that_submitted_them() {
    let (executor, uring) = executor(&UringOptions::for_library()).expect("ring");
    let rt = executor.rt();
    let pool = pool();
    let (near, mut far) = connected();
    let near = uring.adopt(near.into());
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = listener.local_addr().expect("bound");
    let listener = uring.adopt(listener.into());
    let everything = (executor, rt, uring, near, listener, pool);

    // The first thread arms everything, sleeps in the ring once, and exits.
    let (everything, tasks) =
        on_another_thread(everything, |(executor, rt, uring, near, l, pool)| {
            let receiving = rt.spawn(uring.recv(near, pool.try_alloc(4096).unwrap(), 0..5));
            let accepting = rt.spawn(uring.accept(l));
            let polling = rt.spawn(uring.poll_fd(near, libc::POLLRDHUP));
            executor.block_on(rt.sleep(Duration::from_millis(20)));
            assert!(!receiving.is_finished() && !accepting.is_finished() && !polling.is_finished());
            (receiving, accepting, polling)
        });
    // A second one drives for a while and exits as well.
    let (everything, ()) = on_another_thread(everything, |(executor, rt, ..)| {
        executor.block_on(rt.sleep(Duration::from_millis(20)));
    });
    let (executor, rt, ..) = &everything;
    far.write_all(b"hello").expect("open");
    let _peer = TcpStream::connect(address).expect("connects");
    let (receiving, accepting, polling) = tasks;
    executor.block_on(async {
        let limit = Duration::from_secs(10);
        let (read, buf) = rt.timeout(limit, receiving).await.expect("in time").expect("runs");
        assert_eq!(&buf[..read.expect("receives")], b"hello");
        let accepted = rt.timeout(limit, accepting).await.expect("in time").expect("runs");
        accepted.expect("accepts");
        drop(far);
        let polled = rt.timeout(limit, polling).await.expect("in time").expect("runs");
        assert_eq!(polled.expect("polls") & libc::POLLRDHUP, libc::POLLRDHUP);
    });
    // The wake-up of a sleeper was armed by a thread that is gone, too.
    let (sender, receiver) = futures_channel::oneshot::channel();
    let thread = std::thread::Builder::new().spawn(move || {
        let pause = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        // SAFETY: `pause` is readable, and the remainder is not asked for.
        unsafe { libc::nanosleep(&raw const pause, std::ptr::null_mut()) };
        sender.send(()).expect("somebody waits");
    });
    executor
        .block_on(rt.timeout(Duration::from_secs(10), receiver))
        .expect("in time")
        .expect("sent");
    thread.expect("a thread").join().expect("ends");
}

#[test]
fn the_end_of_a_ring_gives_all_buffers_back() {
    let pool = pool();
    let (near, _far) = connected();
    {
        let (executor, uring) = reactor();
        let rt = executor.rt();
        let near = uring.adopt(near.into());
        for _ in 0..10 {
            drop(rt.spawn(uring.recv(&near, pool.try_alloc(4096).expect("room"), 0..4096)));
        }
        executor.block_on(rt.sleep(Duration::from_millis(5)));
        assert_eq!(pool.stats().used_bytes, 40_960);
    }
    assert_eq!(pool.stats().used_bytes, 0);
}

#[test]
fn operations_dropped_at_any_moment_leave_nothing_behind() {
    for owner in [RingOwner::Thread, RingOwner::Process] {
        let options = UringOptions { submission_entries: 16, owner, ..UringOptions::for_reactor() };
        let (executor, uring) = executor(&options).expect("ring");
        let rt = executor.rt();
        let pool = pool();
        uring.register_pool(&pool);
        let (near, far) = connected();
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let sockets = [near.into(), far.into(), listener.into()].map(|fd| uring.adopt(fd));
        let file = uring.register_fd(scratch_file());
        executor.block_on(async {
            let mut tasks = Vec::new();
            for i in 0..2000 {
                let buf = pool.alloc(4096).await;
                let (uring, file) = (uring.clone(), file.clone());
                let socket = sockets[usize::from(rt.random_below(2) == 0)].clone();
                let listener = sockets[2].clone();
                tasks.push(match rt.random_below(6) {
                    0 => rt.spawn(async move { drop(uring.recv(&socket, buf, 0..4096).await) }),
                    1 => rt.spawn(async move {
                        let parts = vec![Part::Bytes(vec![1; 100]), Part::Buf(buf.freeze())];
                        drop(uring.send(&socket, parts).await);
                    }),
                    2 => rt.spawn(async move { drop(uring.accept(&listener).await) }),
                    3 => rt.spawn(async move { drop(uring.poll_fd(&socket, libc::POLLPRI).await) }),
                    4 => rt.spawn(async move { drop(uring.read_at(&file, i, buf, 0..4096).await) }),
                    _ => rt.spawn(async move {
                        drop(uring.write_at(&file, i * 4096, buf.freeze(), false).await);
                    }),
                });
                if rt.random_below(4) == 0 {
                    rt.yield_now().await;
                }
                if tasks.len() > 100 {
                    let at = rt.random_below(tasks.len() as u64);
                    tasks.swap_remove(usize::try_from(at).unwrap()).abort();
                }
            }
            for task in tasks {
                task.abort();
            }
            let ended = rt.timeout(Duration::from_secs(20), async {
                while uring.operations_running() > 0 {
                    rt.sleep(Duration::from_millis(1)).await;
                }
            });
            ended.await.expect("each cancelled operation ends");
        });
        assert_eq!(pool.stats().used_bytes, 0);
    }
}
