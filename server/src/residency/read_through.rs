//! Bytes that no fragment covers, from the backing file system: at the primary of their region,
//! which is the one that writes them there.

use std::rc::Rc;

use crate::rights::check_capability;
use bb_erasure::crc32c;
use bb_proto::meta::{Binding, FileStat, FileState, ReadThrough, ReadThroughReply, decode, encode};
use bb_proto::{
    Capability, Code, Failure, Fid, Kind, PAYLOAD_BYTES_MAX, RegionIndex, Rights, TruncateEpoch,
};
use bb_transport::{Incoming, Response};

use super::{Residency, failures};
use crate::partition::Partition;
use crate::partition::region_mutation::RegionId;
use crate::partition::table::FileRecords;

/// What has to be known of a file to read it.
struct Terms {
    binding: Binding,
    region_log2: u32,
    /// Bytes from here on are zeros: a truncate is under way.
    zeros_from: u64,
}

impl Residency {
    pub(super) async fn serve_read_through(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let wanted: ReadThrough = decode(&request.body)?;
        let capability = Capability::from(&wanted.capability);
        check_capability(&self.ctx.shared, &capability, Rights::READ, &request.peer)?;
        let invalid = |why: &str| Failure::new(Code::Invalid, why);
        if wanted.len == 0 || wanted.len > PAYLOAD_BYTES_MAX {
            return Err(invalid("a read has from 1 byte to one payload"));
        }
        let len = usize::try_from(wanted.len).map_err(|_| invalid("an impossible length"))?;
        let end = wanted.offset.checked_add(u64::from(wanted.len));
        let end = end.filter(|end| *end <= crate::files::FILE_BYTES_MAX);
        let end = end.ok_or_else(|| invalid("no file is that large"))?;
        let fid = capability.fid;
        let terms = self.terms(fid).await?;
        let region = u32::try_from(wanted.offset >> terms.region_log2).map(RegionIndex);
        let region = region.map_err(|_| invalid("no file has such a region"))?;
        if (end - 1) >> terms.region_log2 != u64::from(region.0)
            || self.parts.partition_of(fid, region) != partition.id()
        {
            return Err(invalid("the bytes belong to another partition"));
        }
        let mut buffer = self.ctx.pool.alloc(len).await;
        buffer.set_len(len);
        let read = self.ctx.bfs.read(&terms.binding, wanted.offset, buffer).await;
        let (mut buffer, got) = failures::confirm(&*self.ctx.bfs, read, "read").await?;
        buffer.set_len(len);
        // Looked at after the read: a truncate that began before it counts.
        let id = RegionId { fid, region };
        let here = partition.state().regions.get(id).and_then(|region| region.truncating());
        let zeros_from = here.unwrap_or(u64::MAX).min(terms.zeros_from);
        let kept = usize::try_from(zeros_from.saturating_sub(wanted.offset)).unwrap_or(usize::MAX);
        buffer[got.min(kept).min(len)..].fill(0);
        let body = encode(&ReadThroughReply { crc: crc32c(&buffer) });
        Ok(Response { body, payload: vec![buffer.freeze()] })
    }

    /// From the file's record: of this node, or asked for.
    async fn terms(&self, fid: Fid) -> Result<Terms, Failure> {
        let stale = || Failure::new(Code::StaleFile, "the file is not known here");
        let owner = self.parts.partition_of(fid, RegionIndex(0));
        if let Some(partition) = self.partitions.get(owner) {
            let state = partition.state();
            let record = state.files.get(fid).filter(|record| !record.rare().dropping);
            let record = record.ok_or_else(stale)?;
            let truncates =
                state.files.region_terms(fid, TruncateEpoch(record.epoch.0.saturating_sub(1)));
            let cut = truncates.filter(|terms| terms.truncating).map(|terms| terms.size);
            return Ok(Terms {
                binding: self.binding(record),
                region_log2: u32::from(record.region_log2),
                zeros_from: cut.unwrap_or(u64::MAX),
            });
        }
        let ask = FileStat { fid: fid.into(), counts: false, truncates_after: None };
        let file: FileState = self.parts.ask(Kind::FileStat, owner, &ask).await?;
        let binding = file.binding.filter(|_| file.known).ok_or_else(stale)?;
        let zeros_from = if file.truncating { file.size } else { u64::MAX };
        let region_log2 = file.region_log2.clamp(20, 40);
        Ok(Terms { binding, region_log2, zeros_from })
    }
}
