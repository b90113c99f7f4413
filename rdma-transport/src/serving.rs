//! One accepted connection: requests in, answers out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{Code, FLAG_ERROR, FLAG_REPLY, Failure, Header, meta};
use bb_runtime::sync::{Permit, Semaphore};
use bb_runtime::{Buf, Instant};

use crate::hello::Agreed;
use crate::link::{Frame, Lane, Limits, Link, LinkError, LinkRecv};
use crate::outbox::Outbox;
use crate::server::ServerInner;
use crate::{Answered, Incoming, Peer, Service, Vitals};

/// What the tasks of one connection share.
struct Connection {
    server: Rc<ServerInner>,
    peer: Rc<Peer>,
    lane: Lane,
    outbox: Outbox,
    slots: Semaphore,
    /// Payload of requests that have no answer yet.
    under_way_bytes: Cell<u64>,
    /// The largest window that was ever granted here: what the peer may believe in.
    granted_bytes: Cell<u64>,
}

/// Counts the connection for as long as it lives, however it ends.
struct Counted(Rc<ServerInner>, Lane);

impl Counted {
    fn new(server: Rc<ServerInner>, lane: Lane) -> Self {
        {
            let mut stats = server.stats.borrow_mut();
            stats.connections += 1;
            stats.accepted += 1;
        }
        server.budget.opened(lane);
        Self(server, lane)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.stats.borrow_mut().connections -= 1;
        self.0.budget.closed(self.1);
        self.0.changed.notify_all();
    }
}

/// Counts a running request.
struct Running(Rc<ServerInner>);

impl Running {
    fn new(server: Rc<ServerInner>) -> Self {
        {
            let mut stats = server.stats.borrow_mut();
            stats.running += 1;
            stats.requests += 1;
        }
        Self(server)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stats.borrow_mut().running -= 1;
        self.0.changed.notify_all();
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(server: Rc<ServerInner>, link: Link, agreed: Agreed) {
    let Link { mut recv, send, remote } = link;
    let counted = Counted::new(server.clone(), agreed.lane);
    // Drawn, not counted: unique over the reactors of a process without a shared counter, and the
    // same in each run of one seed.
    let number = server.rt.random_u64().max(1);
    let Agreed { role, host, proven, .. } = agreed;
    let peer = Peer { connection: number, role, host: host.as_ref().into(), proven };
    let connection = Rc::new(Connection {
        peer: Rc::new(peer),
        lane: agreed.lane,
        outbox: Outbox::new(send),
        slots: Semaphore::new(server.config.requests_max),
        under_way_bytes: Cell::new(0),
        granted_bytes: Cell::new(u64::from(agreed.credit_bytes)),
        server: server.clone(),
    });
    let writer = connection.clone();
    let stall_limit = server.config.stall_limit;
    server.rt.spawn(async move {
        let rt = &writer.server.rt;
        let stopped = &writer.server.stopped;
        if stopped.or(writer.outbox.run(rt, stall_limit)).await.is_none() {
            writer.outbox.close();
        }
    });
    let ended = server.stopping.or(connection.receive(recv.as_mut())).await;
    match ended {
        None => connection.drain().await,
        Some(error) => {
            if error.is_peers_fault() {
                server.complaints.closed(&server.rt, &remote, &error);
            } else {
                tracing::debug!(%remote, reason = %error, "connection ended");
            }
        }
    }
    connection.outbox.close();
    drop(counted);
    server.service.disconnected(&connection.peer);
}

impl Connection {
    /// Takes requests until the connection ends; says why it did.
    async fn receive(self: &Rc<Self>, recv: &mut dyn LinkRecv) -> LinkError {
        loop {
            if let Err(error) = self.receive_one(recv).await {
                return error;
            }
        }
    }

    async fn receive_one(self: &Rc<Self>, recv: &mut dyn LinkRecv) -> Result<(), LinkError> {
        // First, so that a peer with too many requests under way waits in its socket.
        let slot = self.slots.acquire(1).await;
        let (header, body) = recv.head(Limits::ESTABLISHED).await?;
        if header.flags != 0 {
            return Err(LinkError::Protocol("a reply where requests are expected"));
        }
        let arrived = self.server.rt.now();
        let mut payload = None;
        if header.payload_len > 0 {
            self.charge(header.payload_len)?;
            let room = self.server.budget.room(self.lane, header.payload_len).await;
            let buf = self.server.config.pool.alloc(header.payload_len as usize).await;
            // It holds room that others wait for, so it must not dawdle.
            let limit = self.server.config.stall_limit;
            let received = self.server.rt.timeout(limit, recv.payload(buf)).await;
            let buf = received.map_err(|_| LinkError::Protocol("a payload does not come"))??;
            payload = Some((buf.freeze(), room));
        }
        let connection = self.clone();
        self.server.rt.spawn(async move {
            connection.answer(header, body, payload, arrived, slot).await;
        });
        Ok(())
    }

    /// Counts a payload against the window.
    fn charge(&self, payload_len: u32) -> Result<(), LinkError> {
        let under_way = self.under_way_bytes.get() + u64::from(payload_len);
        if under_way > self.granted_bytes.get() {
            return Err(LinkError::Protocol("peer overran its payload window"));
        }
        self.under_way_bytes.set(under_way);
        let mut stats = self.server.stats.borrow_mut();
        stats.under_way_bytes_max = stats.under_way_bytes_max.max(under_way);
        Ok(())
    }

    async fn answer(
        self: Rc<Self>,
        header: Header,
        body: Vec<u8>,
        payload: Option<(Buf, Permit)>,
        arrived: Instant,
        slot: Permit,
    ) {
        let running = Running::new(self.server.clone());
        let waited = self.server.rt.now().since(arrived);
        let (payload, room) = payload.unzip();
        let answered = if is_too_late(&header, waited) {
            self.server.stats.borrow_mut().too_late += 1;
            too_late(&*self.server.service, &header)
        } else {
            let incoming = Incoming { header, body, payload, peer: self.peer.clone() };
            let work = self.server.service.clone().answer(incoming);
            match self.server.stopped.or(work).await {
                Some(answered) => answered,
                None => return,
            }
        };
        drop(room);
        self.reply(&header, answered, slot);
        drop(running);
    }

    fn reply(&self, request: &Header, (outcome, vitals): Answered, slot: Permit) {
        let left = self.under_way_bytes.get() - u64::from(request.payload_len);
        self.under_way_bytes.set(left);
        let window = self.server.budget.window(self.lane);
        self.granted_bytes.set(self.granted_bytes.get().max(u64::from(window)));
        let header = reply_header(request, vitals, window);
        let frame = match outcome {
            Ok(response) => {
                Frame::new(header, response.body, response.payload).unwrap_or_else(|| {
                    refusal(header, &Failure::new(Code::Invalid, "the answer exceeds a frame"))
                })
            }
            Err(failure) => refusal(header, &failure),
        };
        self.outbox.push(frame, Some(slot));
    }

    /// Waits until every request that was taken has been answered and the answers have left.
    async fn drain(&self) {
        let server = &self.server;
        let all = self.slots.acquire(server.config.requests_max);
        // Slots come back when their answer has been sent.
        if server.stopped.or(all).await.is_some() {
            debug_assert!(self.outbox.is_idle(), "a slot came back before its answer left");
        }
    }
}

/// True if the caller of a request that waited for so long has stopped waiting.
pub(crate) fn is_too_late(header: &Header, waited: Duration) -> bool {
    let deadline = Duration::from_millis(u64::from(header.deadline_ms));
    header.deadline_ms > 0 && waited >= deadline
}

/// The answer to such a request.
pub(crate) fn too_late(service: &dyn Service, header: &Header) -> Answered {
    let failure = Failure::new(Code::Busy, "the deadline passed before work began");
    (Err(failure), service.vitals(header.kind, header.target))
}

/// The header of an answer: the server's state travels in the fields that only requests need.
pub(crate) fn reply_header(request: &Header, vitals: Vitals, window: u32) -> Header {
    Header {
        flags: FLAG_REPLY,
        request: request.request,
        fence: vitals.tick.0,
        target: vitals.load,
        deadline_ms: vitals.free_mib,
        credit_bytes: window,
        ..Header::request(request.kind, request.class)
    }
}

fn refusal(mut header: Header, failure: &Failure) -> Frame {
    header.flags |= FLAG_ERROR;
    let mut body = meta::encode(failure);
    if body.len() > bb_proto::BODY_BYTES_MAX as usize {
        body = meta::encode(&Failure { detail: String::new(), ..failure.clone() });
    }
    Frame::new(header, body, Vec::new()).expect("a failure without detail fits a frame")
}

/// Kept here so that both ends read the fields alike.
pub(crate) fn vitals_of(header: &Header) -> Vitals {
    Vitals { tick: bb_proto::Tick(header.fence), load: header.target, free_mib: header.deadline_ms }
}
