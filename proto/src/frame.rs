//! The frame: a fixed header of 64 bytes, a body, a payload.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header.
pub const HEADER_BYTES: usize = 64;
/// Longest body. Lists that do not fit are sent in pages.
pub const BODY_BYTES_MAX: u32 = 1 << 20;
/// Longest payload: one block, or one piece of a file read through.
pub const PAYLOAD_BYTES_MAX: u32 = 1 << 20;
/// Flag: this frame answers the request with the same id.
pub const FLAG_REPLY: u8 = 1;
/// Flag of a reply: the body is a [`crate::Failure`].
pub const FLAG_ERROR: u8 = 2;

const MAGIC: u32 = u32::from_le_bytes(*b"BBF1");

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a frame asks for. A reply carries the kind of its request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $value,)* }

        impl Kind {
            /// From the number on the wire.
            pub const fn from_wire(value: u16) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// First frame of a connection: versions, role, start of authentication.
    Hello = 1,
    /// A further step of authentication.
    Auth = 2,
    /// Is anybody there; also carries load and tick.
    Ping = 3,

    /// Cluster map, if newer than the one that the caller has. Target: none.
    GetMap = 16,
    /// A client's session begins. Target: none.
    SessionOpen = 17,
    /// The session lives; lists its open files. Target: session's partition.
    SessionRenew = 18,
    /// The session ends. Target: session's partition.
    SessionClose = 19,
    /// State of a node: devices, space, counts. Target: none.
    NodeStatus = 20,
    /// Raft messages between voters. Target: none.
    Raft = 21,
    /// A command for the map, to the Raft leader. Target: none.
    Propose = 22,
    /// A node's lease, from the Raft leader. Target: none.
    Lease = 23,
    /// A node watches another. Target: none.
    Heartbeat = 24,
    /// A node does not answer, to the Raft leader. Target: none.
    Suspect = 25,
    /// Filling replicas have everything, from their primary to the Raft leader. Target: none.
    Filled = 26,
    /// The Raft leader asks a primary to hand over. Target: none.
    HandOver = 27,

    /// Writes a block. Target: device. Payload: the block.
    PutBlock = 32,
    /// Reads chunks of a block. Target: device. Payload of the reply: the chunks.
    GetBlock = 33,
    /// Home tells a member to free blocks. Target: device.
    FreeBlocks = 34,

    /// Fragments of a new parity group, to its home or to a participant. Target: partition.
    /// Payload: the bytes of an inline group.
    Commit = 48,
    /// Forbids a commit whose outcome the client does not know. Target: home.
    CancelCommit = 49,
    /// What became of parity groups: asked by members and readers. Target: home.
    PgStatus = 50,
    /// A participant holds no fragment of these groups any more. Target: home.
    PgRelease = 51,
    /// Home asks a participant whether it still holds fragments. Target: participant.
    PgHolds = 52,
    /// Fragments and places of a range of a region. Target: partition.
    Lookup = 53,
    /// Bytes of an inline parity group. Target: home or participant that has it.
    GetInline = 54,

    /// Records of many partitions, from a primary to a member. Target: none.
    Replicate = 56,
    /// What a member has of a partition; binds it to a configuration. Target: none.
    ReplicaStatus = 57,
    /// Records of a member's tail. Target: none.
    FetchTail = 58,
    /// A piece of a snapshot, to a filling node. Target: none.
    InstallSnapshot = 59,

    /// Namespace operation on the backing file system. Target: session's partition.
    Namespace = 64,
    /// A file is opened by its binding. Target: partition of (file, region 0).
    FileOpen = 65,
    /// A file is closed; may raise the size. Target: as above.
    FileClose = 66,
    /// Size, times, epoch, counts. Target: as above.
    FileStat = 67,
    /// Registers runs of regions before the first commit there. Target: as above.
    FileRegions = 68,
    /// Raises the size, reserves room for an append, makes the name durable. Target: as above.
    FileSize = 69,
    /// Truncates. Target: as above.
    FileTruncate = 70,
    /// The last name of a file is gone: drops its data. Target: as above.
    FileDrop = 71,
    /// Starts sync, prestage, purge or pin. Target: as above.
    FileOperation = 72,
    /// Asks, awaits or cancels an operation. Target: as above.
    OperationStatus = 73,

    /// A region applies a truncate. Target: partition of the region.
    RegionTruncate = 80,
    /// A region drops everything of a file. Target: as above.
    RegionDrop = 81,
    /// A region synchronizes, stages, purges its part. Target: as above.
    RegionOperation = 82,
    /// Bytes by state, highest byte. Target: as above.
    RegionStat = 83,
    /// Bytes that no fragment covers, from the backing file system. Target: as above. Payload of
    /// the reply: the bytes.
    ReadThrough = 84,
}

/// Who waits for a request, most urgent first. Also the order in which resources are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ServiceClass {
    /// Map, leases, heartbeats.
    Control = 0,
    /// Replication of metadata.
    Replication = 1,
    /// Freeing, checkpoints, and what makes room.
    Reclaim = 2,
    /// What applications wait for.
    Client = 3,
    /// Rebuild, prestage, background sync.
    Background = 4,
}

impl ServiceClass {
    const fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Control,
            1 => Self::Replication,
            2 => Self::Reclaim,
            3 => Self::Client,
            4 => Self::Background,
            _ => return None,
        })
    }
}

/// A frame that cannot be one. The connection it came from is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our magic number.
    #[error("not a Burstbay frame")]
    Magic,
    /// Header and body do not match their checksum.
    #[error("frame checksum does not match")]
    Checksum,
    /// A kind, class or flag that this version does not know.
    #[error("frame field {0} has an impossible value")]
    Field(&'static str),
    /// Body or payload longer than permitted.
    #[error("frame of {0} bytes is too long")]
    TooLong(u32),
}

/// The header of a frame, in host form.
///
/// `fence`, `target`, `deadline_ms`, `node`, `uid` and `job` have their meaning in requests. In a
/// reply `fence` is the server's tick, `target` its load (0 idle .. 1000 full), `deadline_ms` its
/// free space in MiB, and `credit_bytes` the payload window that it grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What is asked or answered.
    pub kind: Kind,
    /// [`FLAG_REPLY`], [`FLAG_ERROR`].
    pub flags: u8,
    /// Who waits.
    pub class: ServiceClass,
    /// Length of the body, in bytes.
    pub body_len: u32,
    /// Length of the payload, in bytes.
    pub payload_len: u32,
    /// Ties a reply to its request; unique per connection.
    pub request: u64,
    /// Configuration number of the addressed partition, incarnation of the addressed device, or 0.
    pub fence: u64,
    /// Partition or device addressed, or 0.
    pub target: u32,
    /// Time that the caller still waits, in milliseconds; 0 = no limit. Relative, since clocks
    /// differ.
    pub deadline_ms: u32,
    /// Client's node, as it named itself; for accounting.
    pub node: u32,
    /// Client's user id; for accounting.
    pub uid: u32,
    /// Client's job id; for accounting.
    pub job: u64,
    /// In a reply: bytes of payload that the caller may have under way on this connection.
    pub credit_bytes: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct HeaderWire {
    magic: U32,
    kind: U16,
    flags: u8,
    class: u8,
    body_len: U32,
    payload_len: U32,
    request: U64,
    fence: U64,
    target: U32,
    deadline_ms: U32,
    node: U32,
    uid: U32,
    job: U64,
    credit_bytes: U32,
    /// CRC32C of the 60 bytes before and of the body: guards against a peer that is out of step
    /// and against damage that TCP's checksum lets through. The payload has its own, per chunk.
    crc: U32,
}

const _: () = assert!(size_of::<HeaderWire>() == HEADER_BYTES);

/// Extends a CRC32C by `bytes`; given by the caller, so that this crate needs no implementation.
pub type Crc32c<'a> = &'a dyn Fn(u32, &[u8]) -> u32;

/// The checksum of a frame: CRC32C over the first 60 bytes of the header, then the body.
pub fn frame_crc(header: &[u8; HEADER_BYTES], body: &[u8], crc32c: Crc32c<'_>) -> u32 {
    crc32c(crc32c(0, &header[..HEADER_BYTES - 4]), body)
}

impl Header {
    /// A request with every field at rest.
    pub const fn request(kind: Kind, class: ServiceClass) -> Self {
        Self {
            kind,
            flags: 0,
            class,
            body_len: 0,
            payload_len: 0,
            request: 0,
            fence: 0,
            target: 0,
            deadline_ms: 0,
            node: 0,
            uid: 0,
            job: 0,
            credit_bytes: 0,
        }
    }

    /// True for a reply.
    pub const fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// The bytes of the header, sealed over `body`.
    pub fn encode(&self, body: &[u8], crc32c: Crc32c<'_>) -> [u8; HEADER_BYTES] {
        let wire = HeaderWire {
            magic: U32::new(MAGIC),
            kind: U16::new(self.kind as u16),
            flags: self.flags,
            class: self.class as u8,
            body_len: U32::new(self.body_len),
            payload_len: U32::new(self.payload_len),
            request: U64::new(self.request),
            fence: U64::new(self.fence),
            target: U32::new(self.target),
            deadline_ms: U32::new(self.deadline_ms),
            node: U32::new(self.node),
            uid: U32::new(self.uid),
            job: U64::new(self.job),
            credit_bytes: U32::new(self.credit_bytes),
            crc: U32::new(0),
        };
        let mut bytes: [u8; HEADER_BYTES] = zerocopy::transmute!(wire);
        let crc = frame_crc(&bytes, body, crc32c);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. Lengths are within bounds; the checksum is not checked yet, because the
    /// body has not arrived: see [`Header::verify`].
    ///
    /// # Errors
    /// [`FrameError`] for anything that no peer of ours would send.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let wire: HeaderWire = zerocopy::transmute!(*bytes);
        if wire.magic.get() != MAGIC {
            return Err(FrameError::Magic);
        }
        if wire.body_len.get() > BODY_BYTES_MAX {
            return Err(FrameError::TooLong(wire.body_len.get()));
        }
        if wire.payload_len.get() > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong(wire.payload_len.get()));
        }
        if wire.flags & !(FLAG_REPLY | FLAG_ERROR) != 0 {
            return Err(FrameError::Field("flags"));
        }
        Ok(Self {
            kind: Kind::from_wire(wire.kind.get()).ok_or(FrameError::Field("kind"))?,
            flags: wire.flags,
            class: ServiceClass::from_wire(wire.class).ok_or(FrameError::Field("class"))?,
            body_len: wire.body_len.get(),
            payload_len: wire.payload_len.get(),
            request: wire.request.get(),
            fence: wire.fence.get(),
            target: wire.target.get(),
            deadline_ms: wire.deadline_ms.get(),
            node: wire.node.get(),
            uid: wire.uid.get(),
            job: wire.job.get(),
            credit_bytes: wire.credit_bytes.get(),
        })
    }

    /// Checks header and body against the checksum in the header.
    ///
    /// # Errors
    /// [`FrameError::Checksum`].
    pub fn verify(
        bytes: &[u8; HEADER_BYTES],
        body: &[u8],
        crc32c: Crc32c<'_>,
    ) -> Result<(), FrameError> {
        let wire: HeaderWire = zerocopy::transmute!(*bytes);
        if wire.crc.get() == frame_crc(bytes, body, crc32c) {
            Ok(())
        } else {
            Err(FrameError::Checksum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(seed: u32, bytes: &[u8]) -> u32 {
        bytes.iter().fold(seed, |a, b| a.rotate_left(5) ^ u32::from(*b))
    }

    #[test]
    fn a_header_survives_the_wire_and_damage_is_seen() {
        let mut header = Header::request(Kind::PutBlock, ServiceClass::Client);
        header.body_len = 3;
        header.request = 77;
        header.job = u64::MAX;
        let bytes = header.encode(b"abc", &sum);
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(Header::verify(&bytes, b"abc", &sum), Ok(()));
        assert_eq!(Header::verify(&bytes, b"abd", &sum), Err(FrameError::Checksum));
    }

    #[test]
    fn impossible_headers_are_refused() {
        let good = Header::request(Kind::Ping, ServiceClass::Control).encode(b"", &sum);
        let mut bad = good;
        bad[0] ^= 1;
        assert_eq!(Header::decode(&bad), Err(FrameError::Magic));
        bad = good;
        bad[4] = 0xFF;
        assert_eq!(Header::decode(&bad), Err(FrameError::Field("kind")));
        bad = good;
        bad[11] = 0xFF;
        assert!(matches!(Header::decode(&bad), Err(FrameError::TooLong(_))));
    }
}
