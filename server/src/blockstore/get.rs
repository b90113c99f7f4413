//! A block goes out, in whole chunks, with the checksums that it was put with: the reader checks,
//! so that nothing between device and reader can change a byte unseen.

use bb_nvme::DeviceError;
use bb_proto::{Code, Failure, GetBlock, GetBlockReply, Rights};
use bb_runtime::BufMut;
use bb_transport::Response;
use futures_util::future::join_all;

use super::table::{BlockKey, Entry, EntryId, State};
use super::{BlockStore, State as StoreState};
use crate::planted::{self, Planted};

/// What to read.
struct Wanted {
    id: EntryId,
    /// On the device, one for each run of chunks.
    offsets: Vec<u64>,
    chunk_crcs: Vec<u32>,
}

/// Keeps a block's space from being used again while it is read.
struct Pin<'a> {
    store: &'a BlockStore,
    id: EntryId,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.store.unpin(self.id);
    }
}

impl BlockStore {
    /// Reads chunks of a block.
    ///
    /// # Errors
    /// Stale where there is no such block (any more), Denied, Invalid, Busy, DeviceFailed.
    pub async fn handle_get(&self, get: &GetBlock) -> Result<Response, Failure> {
        self.check_alive()?;
        let permitted = get.capability.rights.allows(Rights::READ);
        if !permitted && !planted::is(Planted::IgnoreCapability) {
            return Err(Failure::new(Code::Denied, "the file was not opened for reading"));
        }
        self.wanted(get)?;
        let _counted = self.load.read();
        let no_buffer = || Failure::new(Code::Busy, "no buffer");
        let mut sizes = get.runs().map(|run| run.len() << get.chunk_log2);
        let first = self.env.pool.alloc(sizes.next().unwrap_or(0));
        let first = self.env.rt.timeout(self.config.wait_max, first).await;
        let mut bufs = vec![first.map_err(|_| no_buffer())?];
        for size in sizes {
            // Whoever holds buffers waits for no other (rule 14).
            bufs.push(self.env.pool.try_alloc(size).ok_or_else(no_buffer)?);
        }
        // Looked up again after the wait, and pinned in the same step.
        let wanted = self.wanted(get)?;
        let pin = self.pin(wanted.id)?;
        let reads = wanted.offsets.iter().zip(bufs).map(|(at, buf)| self.dev.read(*at, buf));
        let read = join_all(reads).await.into_iter().collect::<Result<Vec<BufMut>, _>>();
        drop(pin);
        match read {
            Ok(bufs) => Ok(Response {
                body: GetBlockReply { chunk_crcs: wanted.chunk_crcs }.encode(),
                payload: bufs.into_iter().map(BufMut::freeze).collect(),
            }),
            Err(error @ DeviceError::Failed(_)) => Err(self.fail_device("reading a block", &error)),
            // The medium may be bad just here: the reader reconstructs this block.
            Err(error) => Err(Failure::new(Code::DeviceFailed, error.to_string())),
        }
    }

    fn wanted(&self, get: &GetBlock) -> Result<Wanted, Failure> {
        let state = &*self.state.borrow();
        let key = BlockKey { pg: get.pg, index: get.index };
        let id = find_live(state, key)
            .ok_or_else(|| Failure::new(Code::Stale, format!("no block {key} here")))?;
        let entry = state.table.get(id);
        if entry.chunk_log2 != get.chunk_log2 {
            let detail =
                format!("chunks of 2^{} bytes, not 2^{}", entry.chunk_log2, get.chunk_log2);
            return Err(Failure::new(Code::Invalid, detail));
        }
        let start = self.offset_of(entry.address(), entry.block_log2);
        let (mut offsets, mut chunk_crcs) = (Vec::new(), Vec::new());
        for run in get.runs() {
            let Some(crcs) = entry.crcs.as_slice().get(run.clone()).filter(|c| !c.is_empty())
            else {
                return Err(Failure::new(Code::Invalid, "chunks outside of the block"));
            };
            chunk_crcs.extend_from_slice(crcs);
            offsets.push(start + ((run.start as u64) << get.chunk_log2));
        }
        Ok(Wanted { id, offsets, chunk_crcs })
    }

    fn pin(&self, id: EntryId) -> Result<Pin<'_>, Failure> {
        let state = &mut *self.state.borrow_mut();
        let entry = state.table.get_mut(id);
        entry.pins = entry
            .pins
            .checked_add(1)
            .ok_or_else(|| Failure::new(Code::Busy, "too many readers of one block"))?;
        Ok(Pin { store: self, id })
    }

    fn unpin(&self, id: EntryId) {
        let state = &mut *self.state.borrow_mut();
        let entry = state.table.get_mut(id);
        entry.pins -= 1;
        if entry.pins > 0 || entry.state != State::Zombie {
            return;
        }
        let address = entry.address();
        if !planted::is(Planted::FreeUnderReader) {
            state.space.release(address);
        }
        state.table.remove(id);
        self.settled.notify_all();
    }
}

fn is_live(entry: &Entry) -> bool {
    entry.state == State::Live
}

fn find_live(state: &StoreState, key: BlockKey) -> Option<EntryId> {
    let found = state.table.find(key).filter(|id| is_live(state.table.get(*id)));
    #[cfg(feature = "planted")]
    if found.is_none() && planted::is(Planted::WrongPgServed) {
        // As if names were addresses: whatever lies where that block was.
        let address = state.ghosts.get(&key)?;
        let page = state.table.page_of(address.chunk);
        let mut ids = state.table.page_ids(page).iter().copied();
        return ids.find(|id| {
            let entry = state.table.get(*id);
            entry.address() == *address && is_live(entry)
        });
    }
    found
}
