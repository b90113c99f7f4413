//! One service for the connections of several reactors.
//!
//! A reactor that owns connections, and not what requests are about, has a [`Relay`] for a service.
//! It hands each request, with its payload's buffer, to the reactor of the true service, whose
//! [`Host`] has it answered there. Nothing is shared but the mailboxes in between: what one turn of
//! a reactor produces for the other leaves at its end with one look at the mailbox and at most one
//! wake-up, and what has arrived is taken all at once.
//!
//! A request goes on at its service when its connection is lost, as it does without a relay. Where
//! the host is gone, a request has no answer at all: it may have been carried out, and "no" would be
//! a lie. Its connection ends without a word then.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bb_proto::{Header, Kind, Tick};
use bb_runtime::mailbox::{self, Receiver, Sender};
use bb_runtime::sync::Notify;
use bb_runtime::{Buf, Instant, Rt};
use futures_channel::oneshot;

use crate::flag::Flag;
use crate::serving::{is_too_late, too_late};
use crate::{AnswerFuture, Answered, HandleFuture, Incoming, Peer, Service, Vitals};

/// To the host. Bounded by the requests that connections may have under way.
enum Message {
    Request(Box<Request>),
    Closed(Peer),
}

struct Request {
    header: Header,
    body: Vec<u8>,
    payload: Option<Buf>,
    peer: Peer,
    sent: Instant,
    reply: oneshot::Sender<Answered>,
}

/// Back to the relay, which passes it on in its own thread.
struct Reply {
    to: oneshot::Sender<Answered>,
    answered: Answered,
}

/// What a [`Relay`] is made of, in its reactor.
pub struct RelayEnd {
    requests: Sender<Message>,
    replies: Receiver<Reply>,
}

/// What a [`Host`] is made of, in the reactor of the service.
pub struct HostEnd {
    requests: Receiver<Message>,
    replies: Sender<Reply>,
}

/// The two ends of a relay, for two reactors.
pub fn pair() -> (RelayEnd, HostEnd) {
    let (to_host, at_host) = mailbox::unbounded();
    let (to_relay, at_relay) = mailbox::unbounded();
    let relay = RelayEnd { requests: to_host, replies: at_relay };
    (relay, HostEnd { requests: at_host, replies: to_relay })
}

/// Messages of one turn.
struct Batch<T> {
    to: Sender<T>,
    queue: RefCell<Vec<T>>,
    changed: Notify,
}

impl<T: Send + 'static> Batch<T> {
    /// Starts the task that sends. It runs after whoever was ready when the first message came.
    fn start(rt: &Rt, to: Sender<T>, until: Flag) -> Rc<Self> {
        let batch = Rc::new(Self { to, queue: RefCell::default(), changed: Notify::new() });
        let sending = batch.clone();
        rt.spawn(async move {
            // Ended: by the flag, or because nobody receives.
            let _ = until.or(sending.run()).await;
        });
        batch
    }

    fn push(&self, message: T) {
        self.queue.borrow_mut().push(message);
        self.changed.notify_all();
    }

    async fn run(&self) {
        loop {
            if self.queue.borrow().is_empty() {
                self.changed.notified().await;
                continue;
            }
            if self.to.send_all(&mut self.queue.borrow_mut()).is_err() {
                return;
            }
        }
    }
}

/// Stands for a service that lives with another reactor.
pub struct Relay {
    rt: Rt,
    requests: Rc<Batch<Message>>,
    /// The newest one that was heard of.
    tick: Cell<Tick>,
}

impl Relay {
    /// Starts relaying, in tasks of `rt`'s domain.
    pub fn start(rt: &Rt, end: RelayEnd) -> Rc<Self> {
        let RelayEnd { requests, mut replies } = end;
        rt.spawn(async move {
            loop {
                let arrived = replies.recv_all().await;
                if arrived.is_empty() {
                    return;
                }
                for Reply { to, answered } in arrived {
                    // Nobody waits any more where the server was stopped.
                    let _ = to.send(answered);
                }
            }
        });
        let requests = Batch::start(rt, requests, Flag::default());
        Rc::new(Self { rt: rt.clone(), requests, tick: Cell::default() })
    }

    fn send(&self, request: Incoming) -> oneshot::Receiver<Answered> {
        let Incoming { header, body, payload, peer } = request;
        let (reply, answered) = oneshot::channel();
        let (peer, sent) = (Peer::clone(&peer), self.rt.now());
        let request = Request { header, body, payload, peer, sent, reply };
        self.requests.push(Message::Request(Box::new(request)));
        answered
    }
}

impl Service for Relay {
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture {
        Box::pin(async move { self.answer(request).await.0 })
    }

    fn answer(self: Rc<Self>, request: Incoming) -> AnswerFuture {
        Box::pin(async move {
            let Ok((outcome, vitals)) = self.send(request).await else {
                return std::future::pending().await;
            };
            self.tick.set(self.tick.get().max(vitals.tick));
            (outcome, vitals)
        })
    }

    /// Only for answers that the service does not give: to callers who wait no longer.
    fn vitals(&self, _kind: Kind, _target: u32) -> Vitals {
        Vitals { tick: self.tick.get(), ..Vitals::default() }
    }

    fn disconnected(&self, peer: &Peer) {
        self.requests.push(Message::Closed(peer.clone()));
    }
}

/// What a host has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostStats {
    /// Requests that run.
    pub running: u64,
    /// Requests that were handed to the service so far.
    pub requests: u64,
    /// Requests answered without a look, because their caller had stopped waiting.
    pub too_late: u64,
}

/// Has the requests of a relay answered.
pub struct Host {
    inner: Rc<HostInner>,
}

struct HostInner {
    rt: Rt,
    service: Rc<dyn Service>,
    replies: Rc<Batch<Reply>>,
    stopped: Flag,
    stats: Cell<HostStats>,
}

/// Counts a running request.
struct Running(Rc<HostInner>);

impl Drop for Running {
    fn drop(&mut self) {
        let stats = &self.0.stats;
        stats.set(HostStats { running: stats.get().running - 1, ..stats.get() });
    }
}

impl Host {
    /// Starts, in tasks of `rt`'s domain.
    pub fn start(rt: &Rt, service: Rc<dyn Service>, end: HostEnd) -> Self {
        let HostEnd { mut requests, replies } = end;
        let stopped = Flag::default();
        let replies = Batch::start(rt, replies, stopped.clone());
        let stats = Cell::default();
        let inner = Rc::new(HostInner { rt: rt.clone(), service, replies, stopped, stats });
        let host = inner.clone();
        rt.spawn(async move {
            while let Some(arrived) = host.stopped.or(requests.recv_all()).await {
                if arrived.is_empty() {
                    return;
                }
                for message in arrived {
                    match message {
                        Message::Request(request) => host.clone().take(*request),
                        Message::Closed(peer) => host.service.disconnected(&peer),
                    }
                }
            }
        });
        Self { inner }
    }

    /// Figures.
    pub fn stats(&self) -> HostStats {
        self.inner.stats.get()
    }

    /// Drops what runs, where it stands. Servers over the relay must have been stopped before, so
    /// that what was taken has been answered.
    pub fn stop(&self) {
        self.inner.stopped.raise();
    }
}

impl HostInner {
    fn take(self: Rc<Self>, request: Request) {
        let rt = self.rt.clone();
        let stats = self.stats.get();
        self.stats.set(HostStats { running: stats.running + 1, ..stats });
        let running = Running(self.clone());
        rt.spawn(async move {
            let _running = running;
            let Request { header, body, payload, peer, sent, reply } = request;
            let stats = self.stats.get();
            let answered = if is_too_late(&header, self.rt.now().since(sent)) {
                self.stats.set(HostStats { too_late: stats.too_late + 1, ..stats });
                too_late(&*self.service, &header)
            } else {
                self.stats.set(HostStats { requests: stats.requests + 1, ..stats });
                let peer = Rc::new(peer);
                let work = self.service.clone().answer(Incoming { header, body, payload, peer });
                match self.stopped.or(work).await {
                    Some(answered) => answered,
                    None => return,
                }
            };
            self.replies.push(Reply { to: reply, answered });
        });
    }
}
