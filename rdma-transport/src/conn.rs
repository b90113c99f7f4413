//! One connection of the calling side: requests out, answers in, and who owns which buffer until
//! when (rule 6).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{FLAG_ERROR, Failure, Header, Kind, ServiceClass, meta};
use bb_runtime::sync::Notify;
use bb_runtime::{Buf, BufMut, Instant, Rt};
use futures_channel::oneshot;

use crate::client::ClientConfig;
use crate::link::{Frame, Limits, Link, LinkError, LinkRecv};
use crate::outbox::Outbox;
use crate::serving::vitals_of;
use crate::{Answer, CallError};

type Outcome = Result<Answer, CallError>;

/// A request without an answer. It owns its buffers until the answer comes or the connection
/// ends, however long its caller waits.
struct Pending {
    kind: Kind,
    reply: Option<oneshot::Sender<Outcome>>,
    sink: Option<BufMut>,
    /// Of a request whose sink was recycled too early: where that was.
    #[cfg(feature = "planted")]
    recycled: Option<crate::planted::RecycledSink>,
    /// Held for the transfer only.
    _payload: Vec<Buf>,
    payload_bytes: u64,
    deadline: Instant,
    /// It may have left; before that nobody can answer it.
    sent: bool,
    /// Nobody waits for the answer any more.
    abandoned: bool,
}

#[derive(Default)]
struct State {
    pending: BTreeMap<u64, Pending>,
    /// Requests that wait for credit, most urgent first.
    waiting: BTreeMap<(ServiceClass, u64), Frame>,
    window_bytes: u64,
    under_way_bytes: u64,
    next_request: u64,
}

/// A connection past its handshake.
pub(crate) struct Conn {
    rt: Rt,
    outbox: Outbox,
    state: RefCell<State>,
    config: Rc<ClientConfig>,
    closed: Cell<bool>,
    opened: Instant,
    /// Something was abandoned, or the connection has ended.
    overdue: Notify,
    remote: Rc<str>,
}

impl Conn {
    /// Takes over a connection, and starts the tasks that serve it.
    pub(crate) fn start(
        rt: &Rt,
        link: Link,
        window_bytes: u32,
        config: Rc<ClientConfig>,
    ) -> Rc<Self> {
        let Link { mut recv, send, remote } = link;
        let state = State { window_bytes: u64::from(window_bytes), ..State::default() };
        let conn = Rc::new(Self {
            rt: rt.clone(),
            outbox: Outbox::new(send),
            state: RefCell::new(State { next_request: 1, ..state }),
            config,
            closed: Cell::new(false),
            opened: rt.now(),
            overdue: Notify::new(),
            remote,
        });
        let writer = conn.clone();
        rt.spawn(async move {
            let error = writer.outbox.run(&writer.rt, writer.config.stall_limit).await;
            writer.close(&error);
        });
        let reader = conn.clone();
        rt.spawn(async move {
            let error = reader.receive(recv.as_mut()).await;
            reader.close(&error);
        });
        let watch = conn.clone();
        rt.spawn(async move {
            if let Some(error) = watch.watch_overdue().await {
                watch.close(&error);
            }
        });
        conn
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// How long it has lived.
    pub(crate) fn age(&self) -> Duration {
        self.rt.now().since(self.opened)
    }

    /// How often frames were handed to the system.
    pub(crate) fn batches(&self) -> u64 {
        self.outbox.batches()
    }

    /// Payload bytes under way, and the window.
    pub(crate) fn credit(&self) -> (u64, u64) {
        let state = self.state.borrow();
        (state.under_way_bytes, state.window_bytes)
    }

    /// Ends the connection. Callers learn whether their request may have left.
    pub(crate) fn close(&self, why: &LinkError) {
        if self.closed.replace(true) {
            return;
        }
        if why.is_peers_fault() {
            tracing::warn!(remote = %self.remote, reason = %why, "closed a connection");
        } else {
            tracing::debug!(remote = %self.remote, reason = %why, "connection ended");
        }
        self.outbox.close();
        let (pending, _waiting) = {
            let mut state = self.state.borrow_mut();
            (std::mem::take(&mut state.pending), std::mem::take(&mut state.waiting))
        };
        for mut entry in pending.into_values() {
            if let Some(reply) = entry.reply.take() {
                // An error here means that the caller has gone.
                let _ = reply.send(Err(CallError::Disconnected { maybe_sent: entry.sent }));
            }
        }
        self.overdue.notify_all();
    }

    /// Queues a request.
    pub(crate) fn send(
        self: &Rc<Self>,
        frame: Frame,
        held: Vec<Buf>,
        sink: Option<BufMut>,
        deadline: Instant,
    ) -> Call {
        let (reply, receiver) = oneshot::channel();
        let mut frame = frame;
        let (id, class) = {
            let mut state = self.state.borrow_mut();
            let id = state.next_request;
            state.next_request += 1;
            frame.header_mut().request = id;
            let entry = Pending {
                kind: frame.header().kind,
                reply: Some(reply),
                sink,
                #[cfg(feature = "planted")]
                recycled: None,
                _payload: held,
                payload_bytes: u64::from(frame.header().payload_len),
                deadline,
                sent: false,
                abandoned: false,
            };
            if !self.closed.get() {
                state.pending.insert(id, entry);
            }
            (id, frame.header().class)
        };
        let call = Call { conn: self.clone(), id, class, receiver, finished: false };
        if self.closed.get() {
            return call;
        }
        if frame.header().payload_len == 0 {
            self.launch(frame);
        } else {
            self.state.borrow_mut().waiting.insert((class, id), frame);
            self.spend_credit();
        }
        call
    }

    /// Puts a frame on its way, with the time that its caller still waits.
    fn launch(&self, mut frame: Frame) {
        let id = frame.header().request;
        let deadline = {
            let mut state = self.state.borrow_mut();
            let Some(entry) = state.pending.get_mut(&id) else { return };
            entry.sent = true;
            entry.deadline
        };
        let left = deadline.since(self.rt.now()).as_millis();
        // 0 would mean "no limit".
        frame.header_mut().deadline_ms = u32::try_from(left).unwrap_or(u32::MAX).max(1);
        self.outbox.push(frame, None);
    }

    /// Sends what waits for credit and now has it, in order: one that does not fit holds back
    /// those behind it, or large ones would starve.
    fn spend_credit(&self) {
        loop {
            let frame = {
                let mut state = self.state.borrow_mut();
                let Some(first) = state.waiting.first_entry() else { return };
                let bytes = u64::from(first.get().header().payload_len);
                // `first` borrows the state.
                let key = *first.key();
                if state.under_way_bytes + bytes > state.window_bytes {
                    return;
                }
                state.under_way_bytes += bytes;
                state.waiting.remove(&key)
            };
            if let Some(frame) = frame {
                self.launch(frame);
            }
        }
    }

    async fn receive(&self, recv: &mut dyn LinkRecv) -> LinkError {
        loop {
            if let Err(error) = self.receive_one(recv).await {
                return error;
            }
        }
    }

    async fn receive_one(&self, recv: &mut dyn LinkRecv) -> Result<(), LinkError> {
        let (header, body) = recv.head(Limits::ESTABLISHED).await?;
        if !header.is_reply() {
            return Err(LinkError::Protocol("a request where replies are expected"));
        }
        let sink = match self.state.borrow_mut().pending.get_mut(&header.request) {
            Some(entry) if entry.sent && entry.kind == header.kind => entry.sink.take(),
            Some(_) => return Err(LinkError::Protocol("a reply to something else")),
            None => None,
        };
        if !self.state.borrow().pending.contains_key(&header.request) {
            // Answered before: the network delivered it twice.
            return recv.skip_payload().await;
        }
        let payload = self.receive_payload(recv, &header, sink).await?;
        // It stays in the table until here, so that one that hangs in the middle is overdue too.
        let entry = {
            let mut state = self.state.borrow_mut();
            state.window_bytes = u64::from(header.credit_bytes);
            let entry = state.pending.remove(&header.request);
            if let Some(entry) = &entry {
                state.under_way_bytes -= entry.payload_bytes;
            }
            entry
        };
        self.spend_credit();
        if let Some(reply) = entry.and_then(|mut entry| entry.reply.take()) {
            // An error means that nobody waits any more; the sink goes back to its pool now.
            let _ = reply.send(outcome(&header, body, payload)?);
        }
        Ok(())
    }

    async fn receive_payload(
        &self,
        recv: &mut dyn LinkRecv,
        header: &Header,
        sink: Option<BufMut>,
    ) -> Result<Option<BufMut>, LinkError> {
        let len = header.payload_len as usize;
        #[cfg(feature = "planted")]
        if let Some(recycled) = self.recycled(header.request) {
            recycled.fill(recv, len, &self.config.pool).await?;
            return Ok(None);
        }
        match sink {
            Some(mut sink) if len <= sink.len() => {
                sink.set_len(len);
                Ok(Some(if len > 0 { recv.payload(sink).await? } else { sink }))
            }
            None if len == 0 => Ok(None),
            _ => Err(LinkError::Protocol("a reply with more payload than there is room for")),
        }
    }

    /// The caller of `id` waits no longer. A request that was not sent is forgotten; another
    /// keeps its buffers.
    fn abandon(&self, id: u64, class: ServiceClass) {
        let dropped = {
            let mut state = self.state.borrow_mut();
            if state.waiting.remove(&(class, id)).is_some() {
                state.pending.remove(&id)
            } else {
                if let Some(entry) = state.pending.get_mut(&id) {
                    entry.abandoned = true;
                    entry.reply = None;
                    #[cfg(feature = "planted")]
                    crate::planted::recycle(&mut entry.sink, &mut entry.recycled);
                }
                None
            }
        };
        drop(dropped);
        self.overdue.notify_all();
        // It may have held back others.
        self.spend_credit();
    }

    /// Waits until abandoned requests have piled up or one has become too old: their buffers can
    /// then only be had back by ending the connection.
    async fn watch_overdue(&self) -> Option<LinkError> {
        loop {
            if self.closed.get() {
                return None;
            }
            let changed = self.overdue.notified();
            let (count, oldest) = {
                let state = self.state.borrow();
                let abandoned = || state.pending.values().filter(|entry| entry.abandoned);
                (abandoned().count(), abandoned().map(|entry| entry.deadline).min())
            };
            if count > self.config.overdue_max {
                return Some(LinkError::Protocol("too many requests without an answer"));
            }
            match oldest.map(|deadline| deadline + self.config.overdue_limit) {
                Some(end) if end <= self.rt.now() => {
                    return Some(LinkError::Protocol("a request got no answer for long"));
                }
                Some(end) => {
                    // Whichever comes first; the loop looks again.
                    let _ = self.rt.timeout(end.since(self.rt.now()), changed).await;
                }
                None => changed.await,
            }
        }
    }

    #[cfg(feature = "planted")]
    fn recycled(&self, id: u64) -> Option<crate::planted::RecycledSink> {
        self.state.borrow_mut().pending.get_mut(&id).and_then(|entry| entry.recycled.take())
    }
}

fn outcome(header: &Header, body: Vec<u8>, payload: Option<BufMut>) -> Result<Outcome, LinkError> {
    let vitals = vitals_of(header);
    if header.flags & FLAG_ERROR == 0 {
        return Ok(Ok(Answer { body, payload, vitals }));
    }
    let failure: Failure =
        meta::decode(&body).map_err(|_| LinkError::Protocol("a refusal does not decode"))?;
    Ok(Err(CallError::Refused(failure, vitals)))
}

/// Waits for an answer. Dropping it abandons the answer.
pub(crate) struct Call {
    conn: Rc<Conn>,
    id: u64,
    class: ServiceClass,
    receiver: oneshot::Receiver<Outcome>,
    finished: bool,
}

impl Call {
    pub(crate) async fn outcome(mut self, left: Duration) -> Outcome {
        let rt = self.conn.rt.clone();
        match rt.timeout(left, &mut self.receiver).await {
            Ok(outcome) => {
                self.finished = true;
                // Cancelled: the connection had ended before the request was queued, or its
                // answer made no sense.
                outcome.unwrap_or(Err(CallError::Disconnected { maybe_sent: true }))
            }
            Err(_) => Err(CallError::TimedOut),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.finished {
            self.conn.abandon(self.id, self.class);
        }
    }
}
