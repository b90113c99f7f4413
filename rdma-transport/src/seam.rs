//! What the parts above the transport see of it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bb_proto::{Failure, Header, Kind, ServiceClass, Tick};
use bb_runtime::{Buf, BufMut};

use crate::auth::Proven;

/// Where a server listens, as the cluster map says it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Address(pub Rc<str>);

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// A request on its way out.
pub struct Outgoing {
    /// What is asked.
    pub kind: Kind,
    /// Who waits.
    pub class: ServiceClass,
    /// Partition or device addressed, or 0.
    pub target: u32,
    /// Configuration number or incarnation that the caller believes in, or 0.
    pub fence: u64,
    /// How long the caller waits for the answer.
    pub deadline: Duration,
    /// The body.
    pub body: Vec<u8>,
    /// The payload, gathered from these. The provider holds them until the transfer can no longer
    /// read them, however long the caller waits (rule 6).
    pub payload: Vec<Buf>,
    /// Where the answer's payload goes, straight from the network. Given back in the answer; after
    /// an error it is gone until the transfer can no longer write to it (rule 6).
    pub sink: Option<BufMut>,
}

impl Outgoing {
    /// A request without payload.
    pub const fn new(kind: Kind, class: ServiceClass, deadline: Duration, body: Vec<u8>) -> Self {
        Self { kind, class, target: 0, fence: 0, deadline, body, payload: Vec::new(), sink: None }
    }

    /// Addresses a partition or device.
    #[must_use]
    pub const fn to(mut self, target: u32, fence: u64) -> Self {
        self.target = target;
        self.fence = fence;
        self
    }

    /// Adds payload.
    #[must_use]
    pub fn with_payload(mut self, payload: Vec<Buf>) -> Self {
        self.payload = payload;
        self
    }

    /// Says where the answer's payload goes.
    #[must_use]
    pub fn with_sink(mut self, sink: BufMut) -> Self {
        self.sink = Some(sink);
        self
    }
}

/// What a server says of itself with every reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Vitals {
    /// Its tick.
    pub tick: Tick,
    /// Load of the addressed device (or of the node), 0 idle to 1000 full.
    pub load: u32,
    /// Free space on the addressed device (or the node), in MiB.
    pub free_mib: u32,
}

/// A good answer.
#[derive(Debug)]
pub struct Answer {
    /// The body.
    pub body: Vec<u8>,
    /// The sink of the request, cut to the payload's length (0 if there was none).
    pub payload: Option<BufMut>,
    /// What the server said of itself.
    pub vitals: Vitals,
}

/// Why there is no good answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The server said no. Its vitals came along.
    #[error("{0}")]
    Refused(Failure, Vitals),
    /// No answer in time. The request may have been, or may still be, carried out.
    #[error("no answer in time")]
    TimedOut,
    /// No connection could be made, so the request was not carried out; or the connection was lost
    /// before the answer came, so it may have been (`maybe_sent`).
    #[error("not connected")]
    Disconnected {
        /// True if the request may have reached the server.
        maybe_sent: bool,
    },
    /// The peer speaks another protocol version, belongs to another cluster, or refused our
    /// authentication. Trying again does not help.
    #[error("connection refused by the peer: {0}")]
    Rejected(String),
}

/// The future of a call. Dropping it abandons the answer, not the request.
pub type CallFuture = Pin<Box<dyn Future<Output = Result<Answer, CallError>>>>;

/// Sends requests. Connections are made, kept, and made again (with back-off) behind it; many
/// requests are under way on each. It does not repeat requests: that is for the caller, who knows
/// what may be repeated.
pub trait Caller {
    /// Sends `request` to the server at `to`.
    fn call(&self, to: &Address, request: Outgoing) -> CallFuture;
}

/// Who is at the other end of a connection. Goes with its requests from one reactor to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Number of the connection, unique within this process.
    pub connection: u64,
    /// What it is. Where authentication proves something, a server has proven it.
    pub role: Role,
    /// What it calls itself, for people.
    pub host: Arc<str>,
    /// Who it is, where authentication proves that.
    pub proven: Option<Proven>,
}

/// What a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Role {
    /// A client.
    Client,
    /// Another server, or this one.
    Server,
}

/// A request that has arrived whole: header and body are checked against the frame's checksum, the
/// payload is in a pool buffer from which a device can write, and is not checked yet.
pub struct Incoming {
    /// The header.
    pub header: Header,
    /// The body.
    pub body: Vec<u8>,
    /// The payload, where there is one.
    pub payload: Option<Buf>,
    /// Who sent it.
    pub peer: Rc<Peer>,
}

/// A good answer on its way out.
#[derive(Default)]
pub struct Response {
    /// The body.
    pub body: Vec<u8>,
    /// The payload, gathered from these; at most as long as the caller's sink.
    pub payload: Vec<Buf>,
}

impl Response {
    /// An answer without payload.
    pub const fn body(body: Vec<u8>) -> Self {
        Self { body, payload: Vec::new() }
    }
}

/// The future of an answer.
pub type HandleFuture = Pin<Box<dyn Future<Output = Result<Response, Failure>>>>;

/// An answer, good or not, and what the server says of itself with it.
pub type Answered = (Result<Response, Failure>, Vitals);

/// The future of both.
pub type AnswerFuture = Pin<Box<dyn Future<Output = Answered>>>;

/// Answers requests. The same request may arrive twice, and answers may be lost.
pub trait Service: 'static {
    /// Answers one request. Runs as a task of its own; it is dropped where it stands when the
    /// server stops, and goes on when the connection is lost.
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture;

    /// As [`Service::handle`], and the vitals of the same moment. Only a service that stands for one
    /// elsewhere has an answer of its own to this: it gets both from there.
    fn answer(self: Rc<Self>, request: Incoming) -> AnswerFuture {
        Box::pin(async move {
            let (kind, target) = (request.header.kind, request.header.target);
            let outcome = self.clone().handle(request).await;
            (outcome, self.vitals(kind, target))
        })
    }

    /// What to say of this server with a reply to a request of `kind` to `target`.
    fn vitals(&self, kind: Kind, target: u32) -> Vitals;

    /// A connection was closed.
    fn disconnected(&self, _peer: &Peer) {}
}
