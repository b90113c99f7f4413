//! Messages about blocks: the path that payload takes.

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ids::{Fid, PartitionId, PgId, SessionId, Tick};
use crate::wire::{DecodeError, Reader, Writer};

/// What a capability permits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Rights(pub u32);

impl Rights {
    /// Reading the file's data.
    pub const READ: Self = Self(1);
    /// Writing the file's data.
    pub const WRITE: Self = Self(2);
    /// What servers give each other: everything.
    pub const SERVER: Self = Self(1 << 31);

    /// True if all of `wanted` is permitted.
    pub const fn allows(self, wanted: Self) -> bool {
        self.0 & Self::SERVER.0 != 0 || self.0 & wanted.0 == wanted.0
    }
}

/// Permission of a session for one file, handed out at open and carried by every request for the
/// file's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Capability {
    /// The session it was given to.
    pub session: SessionId,
    /// The file.
    pub fid: Fid,
    /// What it permits.
    pub rights: Rights,
    /// Signature of the server that handed it out; zero where users are not proven.
    pub signature: [u8; 16],
}

impl Capability {
    /// What a server uses towards other servers for `fid`.
    pub const fn server(fid: Fid) -> Self {
        Self { session: SessionId(0), fid, rights: Rights::SERVER, signature: [0; 16] }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct PgIdWire {
    slot: U64,
    session: U64,
    sequence: U32,
    home: U32,
}

impl From<PgId> for PgIdWire {
    fn from(id: PgId) -> Self {
        Self {
            slot: U64::new(id.slot.0),
            session: U64::new(id.session.0),
            sequence: U32::new(id.sequence),
            home: U32::new(id.home.0),
        }
    }
}

impl From<&PgIdWire> for PgId {
    fn from(wire: &PgIdWire) -> Self {
        Self {
            slot: Tick(wire.slot.get()),
            session: SessionId(wire.session.get()),
            sequence: wire.sequence.get(),
            home: PartitionId(wire.home.get()),
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct CapabilityWire {
    session: U64,
    fid: [u8; 16],
    rights: U32,
    signature: [u8; 16],
}

impl From<&Capability> for CapabilityWire {
    fn from(cap: &Capability) -> Self {
        Self {
            session: U64::new(cap.session.0),
            fid: cap.fid.0.to_le_bytes(),
            rights: U32::new(cap.rights.0),
            signature: cap.signature,
        }
    }
}

impl From<&CapabilityWire> for Capability {
    fn from(wire: &CapabilityWire) -> Self {
        Self {
            session: SessionId(wire.session.get()),
            fid: Fid(u128::from_le_bytes(wire.fid)),
            rights: Rights(wire.rights.get()),
            signature: wire.signature,
        }
    }
}

/// Smallest block that holds `bytes`: a power of two from 4 KiB to 1 MiB.
pub const fn block_bytes_for(bytes: usize) -> Option<usize> {
    if bytes > 1 << 20 {
        return None;
    }
    let floor = if bytes < 4096 { 4096 } else { bytes };
    Some(floor.next_power_of_two())
}

/// Writes one block of a parity group. The payload is the block, of `2^block_log2` bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutBlock {
    /// The group.
    pub pg: PgId,
    /// Permission to write the file.
    pub capability: Capability,
    /// Which block of the group: `0 ..N` data, `N ..N+K` parity.
    pub index: u8,
    /// log2 of the block's size in bytes, 12 to 20.
    pub block_log2: u8,
    /// log2 of the chunk's size in bytes, 12 to `block_log2`.
    pub chunk_log2: u8,
    /// CRC32C of each chunk of the block.
    pub chunk_crcs: Vec<u32>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct PutBlockWire {
    pg: PgIdWire,
    capability: CapabilityWire,
    index: u8,
    block_log2: u8,
    chunk_log2: u8,
    reserved: u8,
}

const _: () = assert!(size_of::<PutBlockWire>() == 72);

impl PutBlock {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(size_of::<PutBlockWire>() + 4 * self.chunk_crcs.len());
        out.put(&PutBlockWire {
            pg: self.pg.into(),
            capability: (&self.capability).into(),
            index: self.index,
            block_log2: self.block_log2,
            chunk_log2: self.chunk_log2,
            reserved: 0,
        });
        put_crcs(&mut out, &self.chunk_crcs);
        out.finish()
    }

    /// Reads a body. Sizes are consistent with each other; whether they fit the payload is for the
    /// receiver.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let wire: &PutBlockWire = reader.take()?;
        if usize::from(wire.index) >= crate::MEMBERS_MAX {
            return Err(DecodeError::Field("index"));
        }
        check_logs(wire.block_log2, wire.chunk_log2)?;
        let chunk_crcs = take_crcs(&mut reader, 1 << (wire.block_log2 - wire.chunk_log2))?;
        reader.finish()?;
        Ok(Self {
            pg: (&wire.pg).into(),
            capability: (&wire.capability).into(),
            index: wire.index,
            block_log2: wire.block_log2,
            chunk_log2: wire.chunk_log2,
            chunk_crcs,
        })
    }

    /// Size of the block, in bytes.
    pub const fn block_bytes(&self) -> usize {
        1 << self.block_log2
    }
}

pub(crate) fn check_logs(block_log2: u8, chunk_log2: u8) -> Result<(), DecodeError> {
    if !(12..=20).contains(&block_log2) {
        return Err(DecodeError::Field("block_log2"));
    }
    if !(12..=block_log2).contains(&chunk_log2) {
        return Err(DecodeError::Field("chunk_log2"));
    }
    Ok(())
}

fn put_crcs(out: &mut Writer, crcs: &[u32]) {
    for crc in crcs {
        out.put(&U32::new(*crc));
    }
}

fn take_crcs(reader: &mut Reader<'_>, count: usize) -> Result<Vec<u32>, DecodeError> {
    Ok(reader.take_slice::<U32>(count)?.iter().map(|crc| crc.get()).collect())
}

/// Reads whole chunks of a block. The reply's body is a [`GetBlockReply`], its payload the chunks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetBlock {
    /// The group.
    pub pg: PgId,
    /// Permission to read the file.
    pub capability: Capability,
    /// Which block of the group.
    pub index: u8,
    /// log2 of the chunk's size, as the group's record says.
    pub chunk_log2: u8,
    /// First chunk.
    pub chunk_first: u16,
    /// How many chunks, at least 1.
    pub chunk_count: u16,
    /// More of them, each as first and count, behind the ones before: they follow in the payload.
    pub more: Vec<(u16, u16)>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct GetBlockWire {
    pg: PgIdWire,
    capability: CapabilityWire,
    index: u8,
    chunk_log2: u8,
    chunk_first: zerocopy::little_endian::U16,
    chunk_count: zerocopy::little_endian::U16,
    reserved: [u8; 2],
}

const _: () = assert!(size_of::<GetBlockWire>() == 76);

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RunWire {
    first: zerocopy::little_endian::U16,
    count: zerocopy::little_endian::U16,
}

const _: () = assert!(size_of::<RunWire>() == 4);

impl GetBlock {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(
            size_of::<GetBlockWire>() + size_of::<RunWire>() * self.more.len(),
        );
        out.put(&GetBlockWire {
            pg: self.pg.into(),
            capability: (&self.capability).into(),
            index: self.index,
            chunk_log2: self.chunk_log2,
            chunk_first: self.chunk_first.into(),
            chunk_count: self.chunk_count.into(),
            reserved: [0; 2],
        });
        for (first, count) in &self.more {
            out.put(&RunWire { first: (*first).into(), count: (*count).into() });
        }
        out.finish()
    }

    /// The chunks, run by run.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let first = (self.chunk_first, self.chunk_count);
        std::iter::once(first).chain(self.more.iter().copied()).map(|(first, count)| {
            let first = usize::from(first);
            first..first + usize::from(count)
        })
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let wire: &GetBlockWire = reader.take()?;
        let rest = body.len().saturating_sub(size_of::<GetBlockWire>());
        let more = reader.take_slice::<RunWire>(rest / size_of::<RunWire>())?;
        let more: Vec<(u16, u16)> = more.iter().map(|r| (r.first.get(), r.count.get())).collect();
        reader.finish()?;
        if usize::from(wire.index) >= crate::MEMBERS_MAX {
            return Err(DecodeError::Field("index"));
        }
        check_logs(20, wire.chunk_log2)?;
        let get = Self {
            pg: (&wire.pg).into(),
            capability: (&wire.capability).into(),
            index: wire.index,
            chunk_log2: wire.chunk_log2,
            chunk_first: wire.chunk_first.get(),
            chunk_count: wire.chunk_count.get(),
            more,
        };
        let mut end = 0;
        for run in get.runs() {
            if run.is_empty() || run.start < end {
                return Err(DecodeError::Field("chunks"));
            }
            end = run.end;
        }
        Ok(get)
    }
}

/// CRC32Cs of the chunks in the payload of the same reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetBlockReply {
    /// One per chunk, in the order of the payload.
    pub chunk_crcs: Vec<u32>,
}

impl GetBlockReply {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(4 * self.chunk_crcs.len());
        put_crcs(&mut out, &self.chunk_crcs);
        out.finish()
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let chunk_crcs = take_crcs(&mut reader, body.len() / 4)?;
        reader.finish()?;
        Ok(Self { chunk_crcs })
    }
}
