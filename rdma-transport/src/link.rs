//! What a provider is: connections that carry whole frames. The RPC core above is the same for all
//! of them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bb_proto::{FrameError, Header, ServiceClass};
use bb_runtime::{Buf, BufMut};

use crate::Address;

/// A boxed future of this thread.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer, or this side, closed it.
    #[error("connection closed")]
    Closed,
    /// The system says so.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The peer sent what cannot be a frame.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The peer sent a frame that breaks a rule.
    #[error("{0}")]
    Protocol(&'static str),
}

impl LinkError {
    /// True if the peer misbehaved, rather than went away.
    pub const fn is_peers_fault(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Protocol(_))
    }
}

/// A frame on its way out. The lengths in the header are those of its parts.
pub struct Frame {
    header: Header,
    body: Vec<u8>,
    payload: Vec<Buf>,
}

impl Frame {
    /// A frame of these parts, or `None` where one is longer than a frame may carry.
    pub fn new(mut header: Header, body: Vec<u8>, payload: Vec<Buf>) -> Option<Self> {
        let payload_len: usize = payload.iter().map(|part| part.len()).sum();
        header.body_len = u32::try_from(body.len()).ok()?;
        header.payload_len = u32::try_from(payload_len).ok()?;
        (header.body_len <= bb_proto::BODY_BYTES_MAX
            && header.payload_len <= bb_proto::PAYLOAD_BYTES_MAX)
            .then_some(Self { header, body, payload })
    }

    /// The header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) const fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// All bytes on the wire.
    pub const fn wire_bytes(&self) -> usize {
        bb_proto::HEADER_BYTES + self.header.body_len as usize + self.header.payload_len as usize
    }

    /// Header, body and payload as they travel, one behind the other.
    pub fn into_parts(self) -> ([u8; bb_proto::HEADER_BYTES], Vec<u8>, Vec<Buf>) {
        (self.header.encode(&self.body, &crate::codec::crc), self.body, self.payload)
    }

    /// Header and body in one piece, and the payload that follows.
    pub fn into_wire(self) -> (Vec<u8>, Vec<Buf>) {
        let (head, body, payload) = self.into_parts();
        ([head.as_slice(), &body].concat(), payload)
    }
}

/// What a frame may be at this moment of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest body, in bytes.
    pub body_bytes: u32,
    /// Longest payload, in bytes.
    pub payload_bytes: u32,
    /// Only [`bb_proto::Kind::Hello`] and [`bb_proto::Kind::Auth`] may come.
    pub handshake: bool,
}

impl Limits {
    /// Until a peer has introduced itself: little memory, no payload.
    pub const HANDSHAKE: Self = Self { body_bytes: 4096, payload_bytes: 0, handshake: true };
    /// Afterwards.
    pub const ESTABLISHED: Self = Self {
        body_bytes: bb_proto::BODY_BYTES_MAX,
        payload_bytes: bb_proto::PAYLOAD_BYTES_MAX,
        handshake: false,
    };
}

/// The receiving half of a connection.
pub trait LinkRecv {
    /// Header and body of the next frame, checked against its checksum. Its payload must then be
    /// taken or skipped.
    fn head(&mut self, limits: Limits) -> LocalFuture<'_, Result<(Header, Vec<u8>), LinkError>>;

    /// Fills `buf`, whose length is that of the payload, with the payload of the last head.
    fn payload(&mut self, buf: BufMut) -> LocalFuture<'_, Result<BufMut, LinkError>>;

    /// Reads past the payload of the last head.
    fn skip_payload(&mut self) -> LocalFuture<'_, Result<(), LinkError>>;
}

/// The sending half of a connection.
pub trait LinkSend {
    /// Sends these frames in order, in as few system calls as possible.
    fn send(&self, frames: Vec<Frame>) -> LocalFuture<'_, Result<(), LinkError>>;

    /// Ends the connection in both directions; the receiving half sees the end at once.
    fn close(&self);
}

/// An established connection.
pub struct Link {
    /// The receiving half.
    pub recv: Box<dyn LinkRecv>,
    /// The sending half.
    pub send: Rc<dyn LinkSend>,
    /// Who is at the other end, without a port: for log lines and their rate.
    pub remote: Rc<str>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("remote", &self.remote).finish_non_exhaustive()
    }
}

/// Waits for connections.
pub trait Listener {
    /// The next one.
    fn accept(&mut self) -> LocalFuture<'_, Result<Link, LinkError>>;

    /// Where it listens: with the port that the system chose.
    fn address(&self) -> Address;
}

/// A provider, as one process sees it.
pub trait Network {
    /// Connects. Has no time limit of its own.
    fn connect(&self, to: &Address) -> LocalFuture<'static, Result<Link, LinkError>>;

    /// Listens.
    fn listen(&self, at: &Address) -> LocalFuture<'static, Result<Box<dyn Listener>, LinkError>>;
}

/// Which of the connections between two processes carries a request: what is urgent must not
/// queue behind what is large.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Map, leases, heartbeats: load must not look like death.
    Control = 0,
    /// Replication, and what makes room.
    Metadata = 1,
    /// What applications wait for, and rebuild.
    Bulk = 2,
}

impl Lane {
    /// How many there are.
    pub(crate) const COUNT: usize = 3;

    /// The lane of a class. (The Hello of a connection carries a class of its lane in its header.)
    pub const fn of(class: ServiceClass) -> Self {
        match class {
            ServiceClass::Control => Self::Control,
            ServiceClass::Replication | ServiceClass::Reclaim => Self::Metadata,
            ServiceClass::Client | ServiceClass::Background => Self::Bulk,
        }
    }

    /// The class that stands for it.
    pub const fn class(self) -> ServiceClass {
        match self {
            Self::Control => ServiceClass::Control,
            Self::Metadata => ServiceClass::Replication,
            Self::Bulk => ServiceClass::Client,
        }
    }
}
