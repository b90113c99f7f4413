//! Keeping the log short: the stream that begins first writes a snapshot, again and again, while
//! everything is served.

use std::rc::Rc;
use std::time::Duration;

use bb_commitlog::{LogError, LogErrorKind, StreamId};
use bb_proto::Code;

use super::Node;
use crate::context::Stream;

/// How often the checkpointer looks. A log of the smallest size fills by half in no less.
const LOOK: Duration = Duration::from_millis(100);
/// Share of the ring, in thousandths, above which snapshots are written. Replay reads no more than
/// this and what comes while the snapshots are written.
const START_PERMILLE: u64 = 400;

impl Node {
    /// Keeps the log below its mark for as long as the node runs.
    pub(super) async fn run_checkpoints(self: Rc<Self>) {
        loop {
            self.ctx.rt.sleep(LOOK).await;
            if self.stopping.get() {
                return;
            }
            while self.log_is_long() {
                let Some((stream, _)) = self.ctx.log.oldest() else { break };
                match self.checkpoint(stream).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == LogErrorKind::Caller => {
                        // Somebody else's snapshot of this stream is under way.
                        self.ctx.rt.sleep(LOOK).await;
                    }
                    Err(error) => {
                        tracing::error!(%error, %stream, "cannot write a checkpoint");
                        self.ctx.rt.sleep(LOOK * 10).await;
                    }
                }
            }
        }
    }

    fn log_is_long(&self) -> bool {
        let usage = self.ctx.log.usage();
        usage.used_bytes > usage.ring_bytes / 1000 * START_PERMILLE
    }

    async fn checkpoint(&self, id: StreamId) -> Result<(), LogError> {
        let append = match Stream::from_id(id) {
            Some(Stream::Map) => match self.council.checkpoint_votes() {
                Some(written) => return written.await,
                // What a voter that is no more has left.
                None => self.ctx.log.retire(id)?,
            },
            Some(Stream::Node) => self.ctx.log.checkpoint(id, self.council.local().snapshot())?,
            Some(Stream::Blocks { device, page }) => match self.stores.get(&device) {
                Some(store) => store.checkpoint(page)?,
                None => return Err(LogError::UnknownStream { stream: id }),
            },
            Some(Stream::Partition(partition)) => {
                let done = self.partitions.checkpoint(partition).await;
                return done.map_err(|failure| match failure.kind() {
                    Code::Invalid => LogError::CheckpointUnderWay { stream: id },
                    _ => LogError::Failed(failure.to_string()),
                });
            }
            None => return Err(LogError::UnknownStream { stream: id }),
        };
        append.durable.await
    }
}
