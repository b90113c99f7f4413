//! The reactors of a process beside the first one.
//!
//! The first reactor owns devices, log, partitions and the node's part in the cluster; it accepts
//! connections and keeps those of the control and metadata lanes. Each further one owns clients'
//! connections: handshake and authentication, receiving into pool buffers, decoding, sending. Their
//! requests go to the first reactor and come back as answers ([`bb_transport::relay`]).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;
use std::task::Poll;
use std::time::Duration;

use bb_runtime::reactor::{self, ReactorOptions, Reactors};
use bb_runtime::uring::Uring;
use bb_runtime::{BufPool, Rt};
use bb_transport::relay::{self, Host, Relay, RelayEnd};
use bb_transport::{
    Address, Complaints, Handed, Identity, Part, Role, Server, ServerConfig, ServerStats, Service,
    Taker, Tcp, hand_over,
};
use futures_channel::oneshot;
use futures_util::{FutureExt, future};

use super::DaemonError;
use super::auth::Auth;

/// So much longer than its server may take to stop is waited for a reactor.
const END_LIMIT: Duration = Duration::from_secs(1);

/// What the servers of all reactors have in common.
#[derive(Clone)]
pub(super) struct Terms {
    /// How many reactors there are.
    pub reactors: u32,
    /// Where they listen.
    pub address: String,
    /// What they call themselves.
    pub host: String,
    /// UUID of the cluster.
    pub cluster: Vec<u8>,
    /// Incarnation of the process.
    pub incarnation: u64,
    /// How they prove themselves, and have others do so.
    pub auth: Auth,
    /// Buffers.
    pub pool: BufPool,
    /// About peers.
    pub complaints: Complaints,
}

impl Terms {
    /// Settings of the server in this reactor: 0 is the first one.
    pub fn server(&self, reactor: u32) -> ServerConfig {
        let identity = Identity {
            role: Role::Server,
            host: self.host.as_str().into(),
            cluster: self.cluster.clone(),
            incarnation: self.incarnation,
            auth: self.auth.method(),
        };
        let others = u64::from(self.reactors - 1);
        let budget_part = match reactor {
            _ if others == 0 => Part::Whole,
            0 => Part::First { others },
            _ => Part::Other { others },
        };
        let complaints = self.complaints.clone();
        ServerConfig { budget_part, complaints, ..ServerConfig::new(identity, self.pool.clone()) }
    }
}

/// What a further reactor is started with.
struct Seat {
    number: u32,
    relay: RelayEnd,
    handed: Handed,
    stop: oneshot::Receiver<Duration>,
    ended: oneshot::Sender<ServerStats>,
}

/// The reactors beside the first one, which run until they are told to stop.
pub(super) struct Others {
    threads: Reactors<()>,
    hosts: Vec<Host>,
    stops: Vec<oneshot::Sender<Duration>>,
    ended: RefCell<Vec<oneshot::Receiver<ServerStats>>>,
    all_ended: bool,
}

impl Others {
    /// Starts them, with `service` for their requests. They get their connections through the takers
    /// that come back.
    pub fn start(
        rt: &Rt,
        service: &Rc<dyn Service>,
        terms: &Terms,
    ) -> Result<(Self, Vec<Taker>), DaemonError> {
        let (mut seats, mut takers) = (Vec::new(), Vec::new());
        let (mut hosts, mut stops, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..terms.reactors {
            let (relay, host) = relay::pair();
            let (taker, handed) = hand_over();
            let (stop, at_stop) = oneshot::channel();
            let (end, at_end) = oneshot::channel();
            hosts.push(Host::start(rt, service.clone(), host));
            takers.push(taker);
            stops.push(stop);
            ended.push(at_end);
            seats.push(Some(Seat { number, relay, handed, stop: at_stop, ended: end }));
        }
        let options = ReactorOptions { cores_before: 1, ..ReactorOptions::new(seats.len()) };
        let (seats, terms) = (Mutex::new(seats), terms.clone());
        let threads = reactor::start(&options, move |index, rt, uring| {
            let seat = seats.lock().ok().and_then(|mut seats| seats[index].take());
            let terms = terms.clone();
            async move {
                if let Some(seat) = seat {
                    serve(&rt, &uring, seat, &terms).await;
                }
            }
        })?;
        let ended = RefCell::new(ended);
        Ok((Self { threads, hosts, stops, ended, all_ended: false }, takers))
    }

    /// Ends when one of them does, untold: something in it has panicked.
    pub async fn one_ended(&self) {
        future::poll_fn(|cx| {
            let mut ended = self.ended.borrow_mut();
            if ended.iter_mut().any(|one| one.poll_unpin(cx).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Has each of them answer what it has taken, for at most `limit`; then drops what still runs
    /// for them.
    pub async fn stop(&mut self, rt: &Rt, limit: Duration) {
        for stop in self.stops.drain(..) {
            // One that has panicked hears nothing.
            let _ = stop.send(limit);
        }
        let ended = future::join_all(self.ended.take());
        match rt.timeout(limit + END_LIMIT, ended).await {
            Ok(ended) => {
                self.all_ended = ended.iter().all(Result::is_ok);
                for (stats, number) in ended.into_iter().flatten().zip(1_u32..) {
                    log_stopped(number, stats);
                }
            }
            Err(_) => tracing::warn!("a reactor does not end"),
        }
        self.hosts.iter().for_each(Host::stop);
    }

    /// Waits for the threads, after they were stopped.
    pub fn join(self) {
        if self.all_ended {
            // They have said that they end; one that panics at the very end has told that itself.
            drop(self.threads.join());
        }
    }
}

/// What a reactor has served: 0 is the first one.
pub(super) fn log_stopped(reactor: u32, stats: ServerStats) {
    let (connections, requests) = (stats.accepted, stats.requests);
    tracing::info!(reactor, connections, requests, "a reactor serves no more");
}

/// The life of one of them.
async fn serve(rt: &Rt, uring: &Uring, seat: Seat, terms: &Terms) {
    let listener = Tcp::listen_to(uring, seat.handed, Address::from(terms.address.as_str()));
    let relay = Relay::start(rt, seat.relay);
    let server = Server::start(rt, listener, relay, terms.server(seat.number));
    // Where the first one is gone without a word, there is nobody who could answer.
    let limit = seat.stop.await.unwrap_or_default();
    server.stop(limit).await;
    // The first one has stopped waiting where this fails.
    let _ = seat.ended.send(server.stats());
}
