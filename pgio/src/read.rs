//! Reading bytes of a parity group's data.

use bb_erasure::crc32c;
use bb_proto::meta::{self, GetInline};
use bb_proto::{Capability, Code, Kind, PgBody, PgDescriptor};
use bb_runtime::Buf;
use bb_transport::{CallError, Outgoing};

use crate::ReadError;
use crate::gather::{ReadOptions, ReadReport, Want};
use crate::io::{PgIo, Place, Primary, partition_lost, while_current};
use crate::layout::BlockLayout;

/// How often inline bytes that came damaged are asked for again.
const DAMAGED_TRIES: u32 = 2;

/// Bytes of a group's data.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where they lie in the group's data, in bytes.
    pub pg_offset: usize,
    /// The bytes.
    pub bytes: Buf,
}

impl PgIo {
    /// Reads `out.len()` bytes from `pg_offset` of the group's data.
    ///
    /// # Errors
    /// [`ReadError`]; `out` is undefined then.
    pub async fn read(
        &self,
        capability: &Capability,
        descriptor: &PgDescriptor,
        pg_offset: usize,
        out: &mut [u8],
        options: ReadOptions,
    ) -> Result<ReadReport, ReadError> {
        let (pieces, report) =
            self.fetch(capability, descriptor, pg_offset, out.len(), options).await?;
        for piece in pieces {
            out[piece.pg_offset - pg_offset..][..piece.bytes.len()].copy_from_slice(&piece.bytes);
        }
        Ok(report)
    }

    /// The same without a copy: the range comes in pieces of at most one block, in order.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn fetch(
        &self,
        capability: &Capability,
        descriptor: &PgDescriptor,
        pg_offset: usize,
        len: usize,
        options: ReadOptions,
    ) -> Result<(Vec<Piece>, ReadReport), ReadError> {
        let room = usize::try_from(descriptor.data_bytes()).unwrap_or(0);
        if len == 0 || pg_offset.checked_add(len).is_none_or(|end| end > room) {
            return Err(ReadError::Descriptor("range outside of the group".into()));
        }
        let Some(layout) = BlockLayout::of(&descriptor.body)? else {
            let bytes =
                self.inline(capability, descriptor).await?.slice(pg_offset..pg_offset + len);
            return Ok((vec![Piece { pg_offset, bytes }], ReadReport::default()));
        };
        let (block_bytes, end) = (layout.shape.block_bytes(), pg_offset + len);
        let chunk_log2 = layout.shape.chunk_log2;
        let mut wants = Vec::new();
        for index in pg_offset / block_bytes..end.div_ceil(block_bytes) {
            let base = index * block_bytes;
            let from = pg_offset.saturating_sub(base) >> chunk_log2;
            let to = (end - base).min(block_bytes).div_ceil(1 << chunk_log2);
            let chunk = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
            wants.push(Want { index, chunks: chunk(from)..chunk(to) });
        }
        let (bufs, report) =
            self.gather(capability, descriptor.pg, &layout, &wants, options).await?;
        let cut = |(want, buf): (&Want, Buf)| {
            let base = want.index * block_bytes + (usize::from(want.chunks.start) << chunk_log2);
            let from = pg_offset.max(base);
            let to = end.min(base + buf.len());
            Piece { pg_offset: from, bytes: buf.slice(from - base..to - base) }
        };
        Ok((wants.iter().zip(bufs).map(cut).collect(), report))
    }

    /// True if a data block of the group is known to be out of reach, and computed when it is read.
    pub fn lacks_data(&self, descriptor: &PgDescriptor) -> bool {
        let PgBody::Blocks { data, members, .. } = &descriptor.body else { return false };
        let (map, now) = (self.view.map(), self.rt.now());
        members.iter().take(usize::from(*data)).any(|member| {
            !matches!(self.place(member.device), Place::At(..))
                || self.devices.is_silent(&map, member.device, now)
        })
    }

    /// The same stretch, of whole chunks, of every data block, which `pg_offset` names in one of them:
    /// to compute it for one block takes the others, so that all together cost no more.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn fetch_across(
        &self,
        capability: &Capability,
        descriptor: &PgDescriptor,
        pg_offset: usize,
        len: usize,
        options: ReadOptions,
    ) -> Result<Vec<Piece>, ReadError> {
        let outside = || ReadError::Descriptor("range outside of the block".into());
        let layout = BlockLayout::of(&descriptor.body)?.ok_or_else(outside)?;
        let (block_bytes, log2) = (layout.shape.block_bytes(), layout.shape.chunk_log2);
        let from = pg_offset % block_bytes;
        if len == 0 || from + len > block_bytes || !(from | len).is_multiple_of(1 << log2) {
            return Err(outside());
        }
        let chunk = |n: usize| u16::try_from(n >> log2).unwrap_or(u16::MAX);
        let chunks = chunk(from)..chunk(from + len);
        let data = 0..layout.shape.geometry.data();
        let wants: Vec<Want> = data.map(|index| Want { index, chunks: chunks.clone() }).collect();
        let (bufs, _) = self.gather(capability, descriptor.pg, &layout, &wants, options).await?;
        let piece = |(want, bytes): (&Want, Buf)| Piece {
            pg_offset: want.index * block_bytes + from,
            bytes,
        };
        Ok(wants.iter().zip(bufs).map(piece).collect())
    }

    /// All bytes of an inline group, from its home partition.
    async fn inline(
        &self,
        capability: &Capability,
        descriptor: &PgDescriptor,
    ) -> Result<Buf, ReadError> {
        let PgBody::Inline { len, crc } = descriptor.body else {
            return Err(ReadError::Descriptor("not an inline group".into()));
        };
        let (len, home) = (len as usize, descriptor.pg.home);
        let pg = descriptor.pg.into();
        let body = meta::encode(&GetInline { capability: capability.into(), pg });
        let give_up = self.rt.now() + self.limits.give_up;
        for attempt in 0.. {
            let primary = Primary::of(&self.view.map(), home);
            let (address, fence) = match &primary {
                Primary::At { address, config, .. } => (address, *config),
                Primary::Lost => return Err(ReadError::Refused(partition_lost(home))),
                Primary::Down if self.rt.now() >= give_up => return Err(ReadError::Unreachable),
                Primary::Down => {
                    self.back_off(attempt).await;
                    self.view.refresh().await;
                    continue;
                }
            };
            let timeout = self.limits.get_timeout;
            let mut request =
                Outgoing::new(Kind::GetInline, self.limits.class, timeout, body.clone())
                    .to(home.0, fence);
            request.sink = self.take_buffers(&[len]).await.pop();
            let call = self.caller.call(address, request);
            let is_current = || primary.is_still(&self.view.map(), home);
            match while_current(&self.rt, &*self.view, call, is_current).await {
                Ok(answer) => {
                    self.view.seen(answer.vitals);
                    let bytes = answer.payload.map(bb_runtime::BufMut::freeze);
                    let good =
                        bytes.filter(|b| b.len() == len && (crc32c(b) == crc || self.trusts()));
                    match good {
                        Some(bytes) => return Ok(bytes),
                        // Damaged on its way, or at home: there is no other copy to ask for.
                        None if attempt < DAMAGED_TRIES => {}
                        None => return Err(ReadError::Lost { missing: 1, parity: 0 }),
                    }
                }
                Err(CallError::Refused(failure, vitals)) => {
                    self.view.seen(vitals);
                    match failure.kind() {
                        Code::Stale => return Err(ReadError::Stale),
                        Code::Corrupt => return Err(ReadError::Lost { missing: 1, parity: 0 }),
                        Code::Busy | Code::Fenced => {}
                        _ => return Err(ReadError::Refused(failure)),
                    }
                }
                Err(_) => {}
            }
            if self.rt.now() >= give_up {
                return Err(ReadError::Unreachable);
            }
            self.back_off(attempt).await;
            self.view.refresh().await;
        }
        Err(ReadError::Unreachable)
    }

    #[cfg(feature = "planted")]
    fn trusts(&self) -> bool {
        self.trust_crcs.get()
    }

    #[cfg(not(feature = "planted"))]
    #[expect(clippy::unused_self, reason = "the other build asks")]
    const fn trusts(&self) -> bool {
        false
    }
}
