//! One address and one service for the connections of several reactors, which are threads here.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use bb_proto::ServiceClass;
use bb_runtime::reactor::{self, ReactorOptions, Reactors};
use bb_runtime::uring::{Uring, UringOptions, executor};
use bb_runtime::{BufPool, Rt};
use bb_transport::relay::{self, Host, Relay, RelayEnd};
use bb_transport::{
    Address, Caller, Client, ClientConfig, Complaints, Handed, Part, Role, Server, ServerConfig,
    ServerStats, Tcp, hand_over,
};
use common::{Ask, Echo, holds, identity, pool};
use futures_channel::oneshot;

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

/// What a reactor is started with.
struct Seat {
    relay: RelayEnd,
    handed: Handed,
    stop: oneshot::Receiver<()>,
}

struct World {
    rt: Rt,
    uring: Uring,
    echo: Rc<Echo>,
    server: Server,
    server_pool: BufPool,
    hosts: Vec<Host>,
    stops: Vec<oneshot::Sender<()>>,
    others: Reactors<ServerStats>,
    pool: BufPool,
}

fn config(pool: &BufPool, part: Part, complaints: &Complaints) -> ServerConfig {
    ServerConfig {
        budget_part: part,
        complaints: complaints.clone(),
        handshake_limit: Duration::from_millis(200),
        ..ServerConfig::new(identity(Role::Server, "server"), pool.clone())
    }
}

impl World {
    async fn new(rt: Rt, uring: Uring, count: u64) -> Self {
        let (server_pool, complaints) = (pool(128), Complaints::default());
        let echo = Echo::new(&rt, &server_pool);
        let (mut hosts, mut stops, mut takers, mut seats) = (vec![], vec![], vec![], vec![]);
        for _ in 0..count {
            let (relay, host) = relay::pair();
            let (taker, handed) = hand_over();
            let (stop, stopped) = oneshot::channel();
            hosts.push(Host::start(&rt, echo.clone(), host));
            stops.push(stop);
            takers.push(taker);
            seats.push(Some(Seat { relay, handed, stop: stopped }));
        }
        let listening = Tcp::listen_and_share(&rt, &uring, &"127.0.0.1:0".into(), takers).await;
        let listening = listening.expect("loopback");
        let address = listening.address().0.to_string();
        let options = ReactorOptions {
            cores_before: 1,
            ..ReactorOptions::new(usize::try_from(count).expect("few"))
        };
        let (seats, for_others) = (Mutex::new(seats), (server_pool.clone(), complaints.clone()));
        let others = reactor::start(&options, move |index, rt, uring| {
            let seat = seats.lock().expect("no panic")[index].take().expect("one each");
            let config = config(&for_others.0, Part::Other { others: count }, &for_others.1);
            let address = Address::from(address.as_str());
            async move {
                let listening = Tcp::listen_to(&uring, seat.handed, address);
                let server = Server::start(&rt, listening, Relay::start(&rt, seat.relay), config);
                seat.stop.await.expect("told");
                assert!(server.stop(LONG).await, "what was taken is answered");
                server.stats()
            }
        });
        let config = config(&server_pool, Part::First { others: count }, &complaints);
        let server = Server::start(&rt, listening, echo.clone(), config);
        let others = others.expect("rings");
        Self { rt, uring, echo, server, server_pool, hosts, stops, others, pool: pool(64) }
    }

    fn client(&self) -> Client {
        let config = ClientConfig::new(identity(Role::Client, "client"), self.pool.clone());
        Client::new(&self.rt, Tcp::network(&self.uring), config)
    }

    async fn call(&self, client: &Client, ask: Ask, class: ServiceClass) {
        let mut request = ask.request(&self.pool, LONG).expect("room");
        request.class = class;
        let answer = client.call(self.server.address(), request).await.expect("an answer");
        assert_eq!(answer.body, ask.body());
        assert!(holds(answer.payload.as_deref().unwrap_or(&[]), !ask.id));
    }

    /// Stops all; figures of the first reactor and of the others.
    async fn stop(self) -> (ServerStats, Vec<ServerStats>) {
        self.stops.into_iter().for_each(|stop| stop.send(()).expect("waits"));
        assert!(self.server.stop(LONG).await);
        // The hosts work on meanwhile.
        let (done, joined) = oneshot::channel();
        let others = self.others;
        let thread = std::thread::Builder::new().spawn(move || {
            let stats = others.join().into_iter().map(|stats| stats.expect("no panic"));
            done.send(stats.collect::<Vec<_>>()).expect("waits");
        });
        let stats = joined.await.expect("joined");
        thread.expect("a thread").join().expect("no panic");
        self.hosts.iter().for_each(Host::stop);
        assert_eq!(self.echo.running.get(), 0);
        assert_eq!(self.server_pool.stats().used_bytes, 0);
        (self.server.stats(), stats)
    }
}

fn run<F: Future>(others: u64, test: impl FnOnce(World) -> F) {
    let (executor, uring) = executor(&UringOptions::for_reactor()).expect("io_uring");
    executor.block_on(async { test(World::new(executor.rt(), uring, others).await).await });
}

#[test]
fn few_connections_are_spread_evenly_and_what_is_urgent_stays_with_the_first() {
    run(3, |w| async move {
        let mut clients = Vec::new();
        for id in 0..6 {
            let client = w.client();
            w.call(&client, Ask::new(id), ServiceClass::Client).await;
            w.call(&client, Ask::new(id), ServiceClass::Control).await;
            w.call(&client, Ask::new(id), ServiceClass::Replication).await;
            clients.push(client);
        }
        // All of one reactor go; those that come take their places.
        for client in [clients.remove(3), clients.remove(0)] {
            client.close();
        }
        while w.echo.disconnected.get() < 6 {
            w.rt.sleep(Duration::from_millis(1)).await;
        }
        for id in 6..8 {
            let client = w.client();
            w.call(&client, Ask::new(id), ServiceClass::Client).await;
            clients.push(client);
        }
        clients.iter().for_each(Client::close);
        let (first, others) = w.stop().await;
        assert_eq!((first.accepted, first.requests), (12, 12));
        let accepted: Vec<u64> = others.iter().map(|stats| stats.accepted).collect();
        assert_eq!(accepted, [4, 2, 2]);
    });
}

#[test]
fn payload_goes_both_ways_between_reactors_and_everything_comes_back() {
    run(1, |w| async move {
        let w = Rc::new(w);
        let mut calls = Vec::new();
        for client in (0..4).map(|_| Rc::new(w.client())) {
            for id in 0..60 {
                let (w, client) = (w.clone(), client.clone());
                let len = [0, 5000, 128 << 10, 1 << 20][usize::try_from(id).expect("small") % 4];
                let ask = Ask { put_len: len, get_len: len / 2, ..Ask::new(id) };
                calls.push(w.rt.clone().spawn(async move {
                    while w.pool.stats().used_bytes > 48 << 20 {
                        w.rt.sleep(Duration::from_millis(1)).await;
                    }
                    w.call(&client, ask, ServiceClass::Client).await;
                }));
            }
        }
        for call in calls {
            call.await.expect("ends");
        }
        assert_eq!(w.pool.stats().used_bytes, 0);
        let w = Rc::into_inner(w).expect("all have ended");
        let requests = w.hosts[0].stats().requests;
        let (first, others) = w.stop().await;
        assert_eq!((first.accepted, others[0].accepted), (0, 4));
        assert_eq!((requests, others[0].requests), (240, 240));
    });
}

#[test]
fn a_graceful_stop_of_all_reactors_answers_every_request_that_was_taken() {
    run(2, |w| async move {
        let (rt, pool) = (w.rt.clone(), w.pool.clone());
        let mut calls = Vec::new();
        for id in 0..40 {
            let client = w.client();
            let ask = Ask { get_len: 9000, delay_ms: 300, ..Ask::new(id) };
            let request = ask.request(&pool, LONG).expect("room");
            let to = w.server.address().clone();
            calls.push(rt.spawn(async move { client.call(&to, request).await }));
        }
        while w.echo.seen.borrow().len() < 40 {
            rt.sleep(Duration::from_millis(1)).await;
        }
        let (_, others) = w.stop().await;
        for call in calls {
            call.await.expect("ends").expect("it was running");
        }
        assert_eq!(others.iter().map(|stats| stats.requests).collect::<Vec<_>>(), [20, 20]);
    });
}

#[test]
fn strangers_hold_up_nobody_and_have_one_line_from_all_reactors() {
    run(2, |w| async move {
        let to = w.server.address().0.to_string();
        let silent = TcpStream::connect(&to).expect("connects");
        let garbage: Vec<TcpStream> = (0..4)
            .map(|_| {
                let mut stream = TcpStream::connect(&to).expect("connects");
                stream.write_all(&[0xA5; 200]).expect("writes");
                stream
            })
            .collect();
        w.call(&w.client(), Ask::new(1), ServiceClass::Client).await;
        w.call(&w.client(), Ask::new(2), ServiceClass::Control).await;
        let begin = w.rt.now();
        let stats = loop {
            let stats = w.server.stats();
            if stats.bad_peers == 5 {
                break stats;
            }
            assert!(w.rt.now() - begin < LONG, "{stats:?}");
            w.rt.sleep(10 * SECOND / 1000).await;
        };
        assert_eq!(stats.bad_peer_lines, 1);
        for mut stream in garbage.into_iter().chain([silent]) {
            // The end of the stream, or a reset where something was left unread.
            let _ = stream.read_to_end(&mut Vec::new());
        }
        w.stop().await;
    });
}
