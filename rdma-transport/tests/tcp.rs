//! The same promises over TCP on loopback, with real executors.

mod common;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use bb_proto::meta::Hello;
use bb_proto::{Header, Kind, ServiceClass, meta};
use bb_runtime::uring::{Uring, UringOptions, executor};
use bb_runtime::{BufPool, Rt};
use bb_transport::{
    Address, CallError, Caller, Client, ClientConfig, Role, Server, ServerConfig, Tcp,
};
use common::{Ask, Echo, holds, identity, pool};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

async fn serve(rt: &Rt, uring: &Uring, config: ServerConfig) -> (Server, Rc<Echo>) {
    let listener = Tcp::network(uring).listen(&"127.0.0.1:0".into()).await.expect("loopback");
    let echo = Echo::new(rt, &config.pool);
    (Server::start(rt, listener, echo.clone(), config), echo)
}

fn server_config() -> ServerConfig {
    ServerConfig::new(identity(Role::Server, "server"), pool(64))
}

fn client(rt: &Rt, uring: &Uring, pool: &BufPool) -> Client {
    let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
    Client::new(rt, Tcp::network(uring), config)
}

fn run<F: Future>(test: impl FnOnce(Rt, Uring) -> F) {
    let (executor, uring) = executor(&UringOptions::for_reactor()).expect("io_uring");
    executor.block_on(test(executor.rt(), uring));
}

#[test]
fn payload_of_every_size_arrives_whole_both_ways() {
    run(|rt, uring| async move {
        let (server, echo) = serve(&rt, &uring, server_config()).await;
        let pool = pool(64);
        let client = client(&rt, &uring, &pool);
        let sizes = [0, 1, 63, 64, 4095, 4096, 8127, 8128, 8192, 65_537, 1_000_001, 1 << 20];
        let mut tasks = Vec::new();
        let mut id = 0;
        for put_len in sizes {
            for get_len in sizes {
                id += 1;
                let ask = Ask { put_len, get_len, ..Ask::new(id) };
                let (client, pool) = (client.clone(), pool.clone());
                let to = server.address().clone();
                tasks.push(rt.spawn(async move {
                    let request = loop {
                        match ask.request(&pool, LONG) {
                            Some(request) => break request,
                            None => drop(pool.alloc(1 << 20).await),
                        }
                    };
                    let answer = client.call(&to, request).await.expect("an answer");
                    assert_eq!(answer.body, ask.body());
                    let payload = answer.payload.as_deref().unwrap_or(&[]);
                    assert_eq!(payload.len(), get_len as usize);
                    assert!(holds(payload, !ask.id));
                }));
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(server.stats().requests, id);
        assert!(echo.seen.borrow().values().all(|times| *times == 1));
        assert_eq!(pool.stats().used_bytes, 0);
        assert!(server.stop(SECOND).await);
    });
}

#[test]
fn client_and_server_work_on_two_threads() {
    let (tell, told) = mpsc::channel();
    let (finish, finished) = futures_channel::oneshot::channel::<()>();
    let thread = std::thread::Builder::new()
        .spawn(move || {
            run(|rt, uring| async move {
                let (server, _) = serve(&rt, &uring, server_config()).await;
                tell.send(server.address().0.to_string()).unwrap();
                finished.await.unwrap();
                assert!(server.stop(SECOND).await);
            });
        })
        .unwrap();
    let address = Address::from(told.recv().unwrap().replace("127.0.0.1", "localhost").as_str());
    run(|rt, uring| async move {
        let pool = pool(16);
        let client = client(&rt, &uring, &pool);
        for id in 0..200 {
            let ask = Ask { put_len: 4096, get_len: 4096, ..Ask::new(id) };
            let answer = client.call(&address, ask.request(&pool, LONG).unwrap()).await.unwrap();
            assert!(holds(&answer.payload.unwrap(), !id));
        }
        client.close();
    });
    finish.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn garbage_from_strangers_costs_their_connection_and_one_line() {
    run(|rt, uring| async move {
        let (server, echo) = serve(&rt, &uring, server_config()).await;
        let address = server.address().0.to_string();
        let mut huge = Header::request(Kind::Hello, ServiceClass::Control);
        huge.body_len = 1 << 20;
        let early = Header::request(Kind::Ping, ServiceClass::Control);
        let sum = |seed, bytes: &[u8]| crc32c::crc32c_append(seed, bytes);
        let attempts: [Vec<u8>; 5] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".iter().copied().cycle().take(200).collect(),
            vec![0; 100_000],
            huge.encode(b"", &sum).to_vec(),
            early.encode(b"", &sum).to_vec(),
            early.encode(b"", &|_, _| 1).to_vec(),
        ];
        for bytes in &attempts {
            let mut stream = TcpStream::connect(&*address).unwrap();
            // Reset in the middle is an answer, too.
            let _ = stream.write_all(bytes);
            stream.set_nonblocking(true).unwrap();
            let mut answer = [0; 64];
            let mut waited = 0;
            loop {
                match stream.read(&mut answer) {
                    Ok(0) => break,
                    Ok(_) => panic!("strangers get no answer"),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        rt.sleep(Duration::from_millis(2)).await;
                        waited += 1;
                        assert!(waited < 2000, "the connection is closed soon");
                    }
                    Err(_) => break,
                }
            }
        }
        let stats = server.stats();
        assert_eq!((stats.bad_peers, stats.bad_peer_lines, stats.connections), (5, 1, 0));
        let pool = pool(4);
        let client = client(&rt, &uring, &pool);
        let request = Ask::new(1).request(&pool, LONG).unwrap();
        client.call(server.address(), request).await.expect("others are served");
        assert_eq!(echo.running_max.get(), 1);
    });
}

#[test]
fn silent_strangers_are_few_and_do_not_stay() {
    run(|rt, uring| async move {
        let mut config = server_config();
        config.handshakes_max = 2;
        config.handshake_limit = Duration::from_millis(300);
        let (server, _) = serve(&rt, &uring, config).await;
        let address = server.address().0.to_string();
        let mut silent: Vec<TcpStream> =
            (0..3).map(|_| TcpStream::connect(&*address).unwrap()).collect();
        let magic = Header::request(Kind::Hello, ServiceClass::Control).encode(b"", &|_, _| 0);
        for stream in &mut silent {
            // A slow loris: a few bytes of a good header.
            let _ = stream.write_all(&magic[..10]);
        }
        while server.stats().bad_peers < 3 {
            rt.sleep(Duration::from_millis(10)).await;
        }
        let pool = pool(4);
        let request = Ask::new(1).request(&pool, LONG).unwrap();
        let answer = client(&rt, &uring, &pool).call(server.address(), request).await;
        answer.expect("the places are free again");
    });
}

#[test]
fn a_lost_connection_is_told_and_made_again() {
    run(|rt, uring| async move {
        let (server, _) = serve(&rt, &uring, server_config()).await;
        let to = server.address().clone();
        let pool = pool(16);
        let client = client(&rt, &uring, &pool);
        let slow = Ask { delay_ms: 60_000, get_len: 9000, ..Ask::new(1) };
        let call = rt.spawn(client.call(&to, slow.request(&pool, LONG).unwrap()));
        while server.stats().running == 0 {
            rt.sleep(Duration::from_millis(1)).await;
        }
        assert!(!server.stop(Duration::ZERO).await);
        let outcome = call.await.unwrap();
        assert!(matches!(outcome, Err(CallError::Disconnected { maybe_sent: true })));
        assert_eq!(pool.stats().used_bytes, 0, "the connection is over: buffers are free");
        let listener = Tcp::network(&uring).listen(&to).await.expect("the port is free at once");
        let config = server_config();
        let echo = Echo::new(&rt, &config.pool);
        let _again = Server::start(&rt, listener, echo, config);
        let answer = client.call(&to, Ask::new(2).request(&pool, LONG).unwrap()).await;
        answer.expect("a new connection");
    });
}

#[test]
fn requests_of_one_turn_leave_together() {
    run(|rt, uring| async move {
        let (server, echo) = serve(&rt, &uring, server_config()).await;
        let pool = pool(16);
        let client = client(&rt, &uring, &pool);
        let to = server.address().clone();
        client.call(&to, Ask::new(0).request(&pool, LONG).unwrap()).await.unwrap();
        let done = Rc::new(Cell::new(0));
        for id in 1..=100 {
            let (call, done) =
                (client.call(&to, Ask::new(id).request(&pool, LONG).unwrap()), done.clone());
            rt.spawn(async move {
                call.await.unwrap();
                done.set(done.get() + 1);
            });
        }
        while done.get() < 100 {
            rt.yield_now().await;
        }
        let batches = client.stats().batches;
        assert!(batches <= 1 + 4, "{batches} calls of sendmsg for 101 requests");
        assert_eq!(echo.seen.borrow().len(), 101);
    });
}

#[test]
fn a_payload_that_is_announced_and_does_not_come_gives_its_buffer_back() {
    run(|rt, uring| async move {
        let mut config = server_config();
        config.stall_limit = Duration::from_millis(200);
        let pool = config.pool.clone();
        let (server, _) = serve(&rt, &uring, config).await;
        let mut stream = TcpStream::connect(&*server.address().0).unwrap();
        let hello = meta::encode(&Hello {
            version_min: 1,
            version_max: 1,
            role: 1,
            cluster: vec![1; 16],
            host: "loris".into(),
            auth_method: "none".into(),
            auth: Vec::new(),
            credit_bytes: 0,
            incarnation: 0,
        });
        let mut header = Header::request(Kind::Hello, ServiceClass::Client);
        header.body_len = u32::try_from(hello.len()).unwrap();
        let mut bytes = header.encode(&hello, &crc32c::crc32c_append).to_vec();
        bytes.extend(hello);
        let mut put = Header::request(Kind::PutBlock, ServiceClass::Client);
        put.payload_len = 1 << 20;
        bytes.extend(put.encode(b"", &crc32c::crc32c_append));
        bytes.extend([0; 1000]);
        stream.write_all(&bytes).unwrap();
        while pool.stats().used_bytes == 0 {
            rt.sleep(Duration::from_millis(1)).await;
        }
        while pool.stats().used_bytes > 0 {
            rt.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((server.stats().bad_peers, server.stats().requests), (1, 0));
    });
}
