//! Parity groups and their fragments, as commits carry them and lookups return them.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::{Capability, CapabilityWire, PgIdWire, check_logs};
use crate::ids::{DeviceId, Fid, MEMBERS_MAX, OpId, PartitionId, PgId, TruncateEpoch};
use crate::wire::{DecodeError, Reader, Writer};

/// Bytes of data in a full parity group.
pub const PG_DATA_BYTES_MAX: usize = 2 << 20;
/// Bytes of data in the largest inline parity group.
const INLINE_BYTES_MAX: u32 = 16 << 10;
/// Most fragments of one commit: its log record must fit a part of a log group. A client seals a
/// group that has so many, full or not.
pub const FRAGMENTS_MAX: usize = 8_192;

/// One block of a parity group: where it is, and the CRC32C of the whole block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The device (in one incarnation).
    pub device: DeviceId,
    /// CRC32C over the CRC32Cs (little-endian) of its chunks.
    pub crc: u32,
}

/// Where the bytes of a parity group are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PgBody {
    /// In blocks on devices.
    Blocks {
        /// Number of data blocks.
        data: u8,
        /// Number of parity blocks.
        parity: u8,
        /// Which erasure code made the parity.
        codec: u8,
        /// log2 of the block size in bytes.
        block_log2: u8,
        /// log2 of the chunk size in bytes.
        chunk_log2: u8,
        /// `data + parity` members, by index.
        members: Vec<Member>,
    },
    /// In the log of the partitions that hold it.
    Inline {
        /// Length in bytes, at most 16 KiB.
        len: u32,
        /// CRC32C of the bytes.
        crc: u32,
    },
}

/// Everything a reader needs to get at the bytes of a parity group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgDescriptor {
    /// Its name.
    pub pg: PgId,
    /// Where it is.
    pub body: PgBody,
}

/// A byte range of a file that lies in a parity group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Fragment {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Offset in the group's data (block `pg_offset / block size`), in bytes.
    pub pg_offset: u32,
    /// Length in bytes, not 0.
    pub len: u32,
}

impl Fragment {
    /// First offset in the file behind the fragment.
    pub const fn end(&self) -> u64 {
        self.offset + self.len as u64
    }
}

/// Puts a parity group on record and its fragments into one partition's map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commit {
    /// Permission to write the file, and which file.
    pub capability: Capability,
    /// Truncate epoch of the file under which the bytes were written.
    pub epoch: TruncateEpoch,
    /// New size of the file in bytes if the application extended it, else 0. Only to the partition
    /// of region 0.
    pub size_raise: u64,
    /// When the application wrote, in nanoseconds since 1970; 0 to leave the file's time as it is.
    /// Only to the partition of region 0.
    pub mtime_ns: i64,
    /// The open of the file that ends when this is on record, or 0: spares the close of a small file
    /// a request. Only to the partition of region 0. Not kept in the log.
    pub closes: u64,
    /// For what a prestage brings: its operation, whose placeholders the fragments may replace.
    /// Zero for what an application wrote.
    pub stage: OpId,
    /// The group.
    pub descriptor: PgDescriptor,
    /// Every other partition that takes fragments of the group; the list is sent to home only.
    pub participants: Vec<PartitionId>,
    /// Fragments for the addressed partition, sorted by offset, without overlap, none across a
    /// region border.
    pub fragments: Vec<Fragment>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct CommitWire {
    capability: CapabilityWire,
    epoch: U64,
    size_raise: U64,
    mtime_ns: I64,
    closes: U64,
    stage: U64,
    participant_count: U32,
    fragment_count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct DescriptorWire {
    pg: PgIdWire,
    /// 0 = blocks, 1 = inline.
    form: u8,
    data: u8,
    parity: u8,
    codec: u8,
    block_log2: u8,
    chunk_log2: u8,
    member_count: U16,
    inline_len: U32,
    inline_crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct MemberWire {
    device: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct FragmentWire {
    offset: U64,
    pg_offset: U32,
    len: U32,
}

const _: () = assert!(size_of::<CommitWire>() == 92);
const _: () = assert!(size_of::<DescriptorWire>() == 40);
const _: () = assert!(size_of::<FragmentWire>() == 16);

fn count_u16(count: usize) -> U16 {
    U16::new(u16::try_from(count).unwrap_or(u16::MAX))
}

fn count_u32(count: usize) -> U32 {
    U32::new(u32::try_from(count).unwrap_or(u32::MAX))
}

impl PgDescriptor {
    /// Adds the descriptor to `out`.
    pub fn encode(&self, out: &mut Writer) {
        let mut wire = DescriptorWire {
            pg: self.pg.into(),
            form: 0,
            data: 0,
            parity: 0,
            codec: 0,
            block_log2: 0,
            chunk_log2: 0,
            member_count: U16::new(0),
            inline_len: U32::new(0),
            inline_crc: U32::new(0),
        };
        match &self.body {
            PgBody::Blocks { data, parity, codec, block_log2, chunk_log2, members } => {
                wire.data = *data;
                wire.parity = *parity;
                wire.codec = *codec;
                wire.block_log2 = *block_log2;
                wire.chunk_log2 = *chunk_log2;
                wire.member_count = count_u16(members.len());
                out.put(&wire);
                for member in members {
                    out.put(&MemberWire {
                        device: U32::new(member.device.0),
                        crc: U32::new(member.crc),
                    });
                }
            }
            PgBody::Inline { len, crc } => {
                wire.form = 1;
                wire.inline_len = U32::new(*len);
                wire.inline_crc = U32::new(*crc);
                out.put(&wire);
            }
        }
    }

    /// Takes a descriptor off the front of `reader`, with consistent numbers.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let wire: &DescriptorWire = reader.take()?;
        let body = match wire.form {
            0 => {
                let count = usize::from(wire.data) + usize::from(wire.parity);
                if wire.data == 0 || wire.data > 16 || wire.parity > 4 || count > MEMBERS_MAX {
                    return Err(DecodeError::Field("geometry"));
                }
                if usize::from(wire.member_count.get()) != count {
                    return Err(DecodeError::Field("member_count"));
                }
                check_logs(wire.block_log2, wire.chunk_log2)?;
                let members = reader.take_slice::<MemberWire>(count)?;
                PgBody::Blocks {
                    data: wire.data,
                    parity: wire.parity,
                    codec: wire.codec,
                    block_log2: wire.block_log2,
                    chunk_log2: wire.chunk_log2,
                    members: members
                        .iter()
                        .map(|m| Member { device: DeviceId(m.device.get()), crc: m.crc.get() })
                        .collect(),
                }
            }
            1 => {
                let len = wire.inline_len.get();
                if len == 0 || len > INLINE_BYTES_MAX {
                    return Err(DecodeError::Field("inline_len"));
                }
                PgBody::Inline { len, crc: wire.inline_crc.get() }
            }
            _ => return Err(DecodeError::Field("form")),
        };
        Ok(Self { pg: (&wire.pg).into(), body })
    }

    /// Bytes of data that the group can hold.
    pub fn data_bytes(&self) -> u64 {
        match &self.body {
            PgBody::Blocks { data, block_log2, .. } => u64::from(*data) << block_log2,
            PgBody::Inline { len, .. } => u64::from(*len),
        }
    }
}

impl Commit {
    /// Bytes of the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(256 + 16 * self.fragments.len());
        out.put(&CommitWire {
            capability: (&self.capability).into(),
            epoch: U64::new(self.epoch.0),
            size_raise: U64::new(self.size_raise),
            mtime_ns: I64::new(self.mtime_ns),
            closes: U64::new(self.closes),
            stage: U64::new(self.stage.0),
            participant_count: count_u32(self.participants.len()),
            fragment_count: count_u32(self.fragments.len()),
        });
        self.descriptor.encode(&mut out);
        for partition in &self.participants {
            out.put(&U32::new(partition.0));
        }
        for fragment in &self.fragments {
            out.put(&FragmentWire {
                offset: U64::new(fragment.offset),
                pg_offset: U32::new(fragment.pg_offset),
                len: U32::new(fragment.len),
            });
        }
        out.finish()
    }

    /// The open that ends with the commit, and of which file, if there is one: read ahead of the rest of a
    /// body that is decoded elsewhere.
    pub fn closing(body: &[u8]) -> Option<(Fid, u64)> {
        let wire: &CommitWire = Reader::new(body).take().ok()?;
        let fid = Capability::from(&wire.capability).fid;
        Some((fid, wire.closes.get())).filter(|(_, open_id)| *open_id != 0)
    }

    /// Reads a body. Fragments are sorted, do not overlap in the file, and lie within the group.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let wire: &CommitWire = reader.take()?;
        let descriptor = PgDescriptor::decode(&mut reader)?;
        let participants = reader
            .take_slice::<U32>(wire.participant_count.get() as usize)?
            .iter()
            .map(|p| PartitionId(p.get()))
            .collect();
        let count = wire.fragment_count.get() as usize;
        if count == 0 || count > FRAGMENTS_MAX {
            return Err(DecodeError::Field("fragment_count"));
        }
        let room = descriptor.data_bytes();
        // Before memory is reserved for as many: the number may be a lie.
        let wires = reader.take_slice::<FragmentWire>(count)?;
        let mut fragments: Vec<Fragment> = Vec::with_capacity(count);
        for wire in wires {
            let (offset, len) = (wire.offset.get(), wire.len.get());
            let inside = u64::from(wire.pg_offset.get()) + u64::from(len) <= room;
            let sorted = fragments.last().is_none_or(|last| last.end() <= offset);
            let bounded =
                offset.checked_add(u64::from(len)).is_some_and(|end| end <= i64::MAX as u64);
            if len == 0 || !inside || !sorted || !bounded {
                return Err(DecodeError::Field("fragment"));
            }
            fragments.push(Fragment { offset, pg_offset: wire.pg_offset.get(), len });
        }
        reader.finish()?;
        Ok(Self {
            capability: (&wire.capability).into(),
            epoch: TruncateEpoch(wire.epoch.get()),
            size_raise: wire.size_raise.get(),
            mtime_ns: wire.mtime_ns.get(),
            closes: wire.closes.get(),
            stage: OpId(wire.stage.get()),
            descriptor,
            participants,
            fragments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SessionId, Tick};

    fn sample() -> Commit {
        let pg = PgId { slot: Tick(9), session: SessionId(3), sequence: 4, home: PartitionId(5) };
        Commit {
            capability: Capability { session: SessionId(3), fid: Fid(7), ..Capability::default() },
            epoch: TruncateEpoch(1),
            size_raise: 100,
            mtime_ns: -5,
            closes: 17,
            stage: OpId(0),
            descriptor: PgDescriptor {
                pg,
                body: PgBody::Blocks {
                    data: 2,
                    parity: 1,
                    codec: 1,
                    block_log2: 20,
                    chunk_log2: 14,
                    members: (0..3).map(|i| Member { device: DeviceId(i), crc: i * 7 }).collect(),
                },
            },
            participants: vec![PartitionId(8)],
            fragments: vec![
                Fragment { offset: 0, pg_offset: 10, len: 50 },
                Fragment { offset: 50, pg_offset: 0, len: 10 },
            ],
        }
    }

    #[test]
    fn a_commit_survives_the_wire() {
        let commit = sample();
        assert_eq!(Commit::closing(&commit.encode()), Some((Fid(7), 17)));
        assert_eq!(Commit::decode(&commit.encode()), Ok(commit));
        assert_eq!(Commit::closing(&[0; 10]), None);
    }

    #[test]
    fn fragments_that_overlap_or_lie_outside_are_refused() {
        let mut commit = sample();
        commit.fragments[1].offset = 49;
        assert_eq!(Commit::decode(&commit.encode()), Err(DecodeError::Field("fragment")));
        let mut commit = sample();
        commit.fragments[1].pg_offset = 2 << 20;
        assert_eq!(Commit::decode(&commit.encode()), Err(DecodeError::Field("fragment")));
        let mut bytes = sample().encode();
        bytes.pop();
        assert!(matches!(Commit::decode(&bytes), Err(DecodeError::Short { .. })));
    }
}
