//! What files and namespace need of the node, and how they ask other partitions.

use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{Binding, Done, decode, encode};
use bb_proto::{Code, Failure, Fid, Kind, PartitionId, RegionIndex, ServiceClass, partition_of};
use bb_runtime::Rt;
use bb_transport::{CallError, Caller, Outgoing};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::everybody::tell_nodes;
use crate::bfs::{Bfs, BfsError};
use crate::context::{Context, Shared};
use crate::partition::region_mutation::ProcessId;

/// How long one attempt waits for its answer.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long a question is repeated, while whoever has to answer restarts.
const PATIENCE: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Regions that are asked at once. A file has up to 1,024 for each registered run.
const REGIONS_AT_ONCE: usize = 64;

/// What files and namespace work with. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    /// Time, chance, tasks.
    pub rt: Rt,
    /// Sends messages to partitions, this node's included.
    pub caller: Rc<dyn Caller>,
    /// The backing file system.
    pub bfs: Rc<dyn Bfs>,
    /// Map, tick, who this is.
    pub shared: Rc<Shared>,
}

impl From<&Context> for Parts {
    fn from(ctx: &Context) -> Self {
        Self {
            rt: ctx.rt.clone(),
            caller: ctx.caller.clone(),
            bfs: ctx.bfs.clone(),
            shared: ctx.shared.clone(),
        }
    }
}

impl Parts {
    /// This life of this process.
    pub fn process(&self) -> ProcessId {
        ProcessId { node: self.shared.node, incarnation: self.shared.incarnation }
    }

    /// The partition of a region.
    pub fn partition_of(&self, fid: Fid, region: RegionIndex) -> PartitionId {
        partition_of(fid, region, self.shared.map().partition_count())
    }

    /// Asks the partition of a file's record.
    ///
    /// # Errors
    /// As [`Parts::ask`].
    pub async fn ask_file<M: prost::Message, R: prost::Message + Default>(
        &self,
        kind: Kind,
        fid: Fid,
        message: &M,
    ) -> Result<R, Failure> {
        self.ask(kind, self.partition_of(fid, RegionIndex(0)), message).await
    }

    /// Asks a partition until it answers. Only for what may be repeated.
    ///
    /// # Errors
    /// Its refusal, or [`Code::Busy`] when it has not answered for long.
    pub async fn ask<M: prost::Message, R: prost::Message + Default>(
        &self,
        kind: Kind,
        to: PartitionId,
        message: &M,
    ) -> Result<R, Failure> {
        let give_up = self.rt.now() + PATIENCE;
        let mut pause = BACKOFF_MIN;
        loop {
            let last = match self.ask_once(kind, to, message).await {
                Ok(body) => return decode(&body),
                Err(CallError::Refused(failure, _)) => match failure.kind() {
                    Code::Busy | Code::Fenced => failure,
                    _ => return Err(failure),
                },
                Err(error) => Failure::new(Code::Busy, error.to_string()),
            };
            tracing::debug!(partition = to.0, ?kind, failure = %last, "asked again");
            if self.rt.now() + pause > give_up {
                return Err(Failure::new(Code::Busy, format!("partition {to}: {last}")));
            }
            self.rt.sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    async fn ask_once<M: prost::Message>(
        &self,
        kind: Kind,
        to: PartitionId,
        message: &M,
    ) -> Result<Vec<u8>, CallError> {
        let request = Outgoing::new(kind, ServiceClass::Client, ATTEMPT, encode(message));
        Ok(self.shared.ask_primary(&self.rt, &*self.caller, to, request).await?.body)
    }

    /// Tells every node that serves partitions, once for all of its partitions.
    ///
    /// # Errors
    /// As [`tell_nodes`].
    pub async fn tell_nodes<M: prost::Message>(
        &self,
        kind: Kind,
        message: &M,
    ) -> Result<(), Failure> {
        tell_nodes(&self.rt, &*self.caller, &self.shared, kind, encode(message)).await
    }

    /// Asks the partitions of regions, many at once; done when all have answered.
    ///
    /// # Errors
    /// The first that fails.
    pub async fn ask_regions<M: prost::Message, R: prost::Message + Default>(
        &self,
        kind: Kind,
        fid: Fid,
        regions: impl Iterator<Item = RegionIndex>,
        message: impl Fn(RegionIndex) -> M,
        mut answer: impl FnMut(R),
    ) -> Result<(), Failure> {
        let questions = regions.map(|region| {
            let (to, message) = (self.partition_of(fid, region), message(region));
            async move { self.ask::<M, R>(kind, to, &message).await }
        });
        let mut answers = stream::iter(questions).buffer_unordered(REGIONS_AT_ONCE);
        while let Some(one) = answers.try_next().await? {
            answer(one);
        }
        Ok(())
    }

    /// As [`Parts::ask_regions`], where the answer says nothing.
    ///
    /// # Errors
    /// The first that fails.
    pub async fn tell_regions<M: prost::Message>(
        &self,
        kind: Kind,
        fid: Fid,
        regions: impl Iterator<Item = RegionIndex>,
        message: impl Fn(RegionIndex) -> M,
    ) -> Result<(), Failure> {
        self.ask_regions(kind, fid, regions, message, |_: Done| ()).await
    }
}

/// The id of a file: XXH3-128 over the backing file system's UUID, the handle's type and length
/// (little-endian, 32 bits each), the handle, and the birth time. Part of the format: every node
/// computes it.
pub fn fid_of(binding: &Binding) -> Fid {
    let mut bytes = Vec::with_capacity(160);
    bytes.extend_from_slice(&binding.bfs);
    bytes.extend_from_slice(&binding.handle_type.to_le_bytes());
    let len = u32::try_from(binding.handle.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&binding.handle);
    bytes.extend_from_slice(&binding.birth_ns.to_le_bytes());
    Fid(xxhash_rust::xxh3::xxh3_128(&bytes))
}

/// The hidden name of a file that was unlinked while open.
pub fn hidden_name(fid: Fid) -> String {
    format!("open.{fid}")
}

/// What a failed call on the backing file system answers to a client.
pub fn refusal(error: &BfsError) -> Failure {
    match error {
        BfsError::Errno(libc::ESTALE) => Failure::new(Code::StaleFile, "the file is gone"),
        BfsError::Errno(errno) => Failure::errno(*errno, ""),
        BfsError::Unavailable(why) => Failure::new(Code::BfsUnavailable, why.clone()),
    }
}
