//! The envelope around everything that leaves this crate: messages, records, checkpoints.
//!
//! ```text
//! 0   magic     which of the three it is
//! 4   version   of the body's layout; a newer one is refused
//! 6   kind      of the body
//! 8   crc       CRC32C over the other header fields and the body
//! 12  body_len  bytes that follow the header, no more and no less
//! 16  voter     who wrote it: a record of another voter, or a message under a false name, is refused
//! 24  body
//! ```
//!
//! Bodies are read by hand, not by protobuf's parser: that one recurses as deep as its input asks.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::VoterNumber;

/// The layout that this build writes.
pub(crate) const VERSION: u16 = 1;

/// Where bytes belong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Message,
    Record,
    Checkpoint,
}

impl Place {
    fn magic(self) -> u32 {
        u32::from_le_bytes(match self {
            Self::Message => *b"BBcm",
            Self::Record => *b"BBcr",
            Self::Checkpoint => *b"BBcc",
        })
    }
}

/// Why bytes were refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than it must be.
    #[error("{what}: cut off")]
    CutOff {
        /// Which part.
        what: &'static str,
    },
    /// Longer than it says.
    #[error("{what}: bytes left over")]
    LeftOver {
        /// Which part.
        what: &'static str,
    },
    /// Not ours at all.
    #[error("not a consensus message, record or checkpoint: magic {found:#x}")]
    Magic {
        /// What stands in its place.
        found: u32,
    },
    /// Written by a newer version of this program.
    #[error("layout version {found} is newer than {VERSION}, the newest that this build reads")]
    Newer {
        /// The version it has.
        found: u16,
    },
    /// The checksum does not match.
    #[error("damaged: checksum mismatch")]
    Checksum,
    /// A field has a value that nothing here writes.
    #[error("impossible {what}: {value}")]
    Impossible {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: U32,
    version: U16,
    kind: U16,
    crc: U32,
    body_len: U32,
    voter: U64,
}

pub(crate) const HEADER_BYTES: usize = 24;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

impl Header {
    fn checksum(&self, body: &[u8]) -> u32 {
        let blank = Self { crc: U32::ZERO, ..*self };
        crc32c::crc32c_append(crc32c::crc32c(blank.as_bytes()), body)
    }
}

/// A body with its header, ready to leave.
pub(crate) fn seal(place: Place, kind: u16, voter: VoterNumber, body: &Writer) -> Vec<u8> {
    let mut header = Header {
        magic: place.magic().into(),
        version: VERSION.into(),
        kind: kind.into(),
        crc: U32::ZERO,
        body_len: u32::try_from(body.bytes.len()).expect("bodies are limited to far less").into(),
        voter: voter.0.into(),
    };
    header.crc = header.checksum(&body.bytes).into();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.bytes.len());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&body.bytes);
    bytes
}

/// What was in an envelope: kind, writer, body.
pub(crate) fn open(
    place: Place,
    bytes: &[u8],
) -> Result<(u16, VoterNumber, Reader<'_>), DecodeError> {
    let (header, body) =
        Header::ref_from_prefix(bytes).map_err(|_| DecodeError::CutOff { what: "header" })?;
    if header.magic.get() != place.magic() {
        return Err(DecodeError::Magic { found: header.magic.get() });
    }
    // Before the checksum: a newer version may compute that in another way.
    if header.version.get() > VERSION {
        return Err(DecodeError::Newer { found: header.version.get() });
    }
    if header.version.get() == 0 {
        return Err(DecodeError::Impossible { what: "version", value: 0 });
    }
    match u64::from(header.body_len.get()).cmp(&(body.len() as u64)) {
        std::cmp::Ordering::Greater => return Err(DecodeError::CutOff { what: "body" }),
        std::cmp::Ordering::Less => return Err(DecodeError::LeftOver { what: "body" }),
        std::cmp::Ordering::Equal => {}
    }
    if header.crc.get() != header.checksum(body) {
        return Err(DecodeError::Checksum);
    }
    let voter = header.voter.get();
    if voter == 0 {
        return Err(DecodeError::Impossible { what: "voter number", value: 0 });
    }
    Ok((header.kind.get(), VoterNumber(voter), Reader { rest: body }))
}

/// Puts a body together.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn put<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.bytes.extend_from_slice(value.as_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A length, then the bytes.
    pub(crate) fn blob(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    pub(crate) fn count(&mut self, count: usize) {
        let count = u32::try_from(count).expect("limited by the size of a message or a snapshot");
        self.put(&U32::new(count));
    }
}

/// Takes a body apart.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn take<T: FromBytes + Unaligned + KnownLayout + Immutable>(
        &mut self,
        what: &'static str,
    ) -> Result<&'a T, DecodeError> {
        let (value, rest) =
            T::ref_from_prefix(self.rest).map_err(|_| DecodeError::CutOff { what })?;
        self.rest = rest;
        Ok(value)
    }

    pub(crate) fn raw(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::CutOff { what })?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn blob(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let len = self.take::<U32>(what)?.get();
        self.raw(usize::try_from(len).map_err(|_| DecodeError::CutOff { what })?, what)
    }

    /// How many follow, each at least `each_min_bytes` long: so that a wrong count can't make us
    /// reserve memory for what isn't there.
    pub(crate) fn count(
        &mut self,
        each_min_bytes: usize,
        what: &'static str,
    ) -> Result<usize, DecodeError> {
        let count = self.take::<U32>(what)?.get();
        let count = usize::try_from(count).map_err(|_| DecodeError::CutOff { what })?;
        if count.saturating_mul(each_min_bytes) > self.rest.len() {
            return Err(DecodeError::CutOff { what });
        }
        Ok(count)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn end(self, what: &'static str) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::LeftOver { what }) }
    }
}
