//! A block goes away: home says so, or nobody ever committed it.
//!
//! The space is used again only once the record is durable (else a restart would bring the old
//! block back over the new one) and nobody reads it any more (rule 4).

use std::collections::BTreeMap;
use std::rc::Rc;

use bb_commitlog::Class;
use bb_proto::Failure;
use futures_util::future::try_join_all;

use super::record::{NAMES_PER_RECORD, encode_free, free_bytes};
#[cfg(feature = "planted")]
use super::table::EntryId;
use super::table::{BlockKey, State};
use super::{BlockStore, State as StoreState};
use crate::planted::{self, Planted};

impl BlockStore {
    /// Frees blocks. When this returns well, they do not come back after a restart. Blocks that
    /// are not here are freed already.
    ///
    /// # Errors
    /// Busy (nothing, or a part, was freed: repeat it), DeviceFailed.
    pub async fn handle_free(self: &Rc<Self>, keys: Vec<BlockKey>) -> Result<(), Failure> {
        let store = self.clone();
        let task = self.env.rt.spawn(async move {
            for part in keys.chunks(NAMES_PER_RECORD) {
                store.free(part).await?;
            }
            Ok(())
        });
        task.await
            .unwrap_or_else(|_| Err(Failure::new(bb_proto::Code::Busy, "the server is stopping")))
    }

    async fn free(&self, keys: &[BlockKey]) -> Result<(), Failure> {
        self.wait_for_puts(keys).await?;
        #[cfg(feature = "planted")]
        self.free_by_address(keys);
        let mut groups = by_page(&self.state.borrow(), keys);
        if groups.is_empty() {
            return Ok(());
        }
        let sizes = groups.values().map(|keys| free_bytes(keys.len())).collect();
        let mut room = self.admit(Class::Reclaim, sizes).await?;
        let mut records = Vec::new();
        {
            let state = &mut *self.state.borrow_mut();
            for (page, keys) in &mut groups {
                // Some may have gone while we waited.
                keys.retain(|key| is_freeable(state, *page, *key));
                let stream = self.stream(*page).id();
                let append = self.env.log.append(stream, &mut room, &encode_free(keys));
                records.push(append.map_err(|error| self.log_refused(&error))?.durable);
                for key in keys {
                    mark_freeing(state, *key);
                }
            }
        }
        if planted::is(Planted::GiveBlockTwice) {
            self.release_all(groups.values().flatten());
        }
        try_join_all(records).await.map_err(|error| self.fail_log(&error))?;
        self.release_all(groups.values().flatten());
        Ok(())
    }

    /// The deliberate error [`Planted::FreeByAddress`].
    #[cfg(feature = "planted")]
    fn free_by_address(&self, keys: &[BlockKey]) {
        let state = &mut *self.state.borrow_mut();
        for key in keys.iter().filter(|_| planted::is(Planted::FreeByAddress)) {
            let Some(address) = state.ghosts.remove(key) else { continue };
            let page = state.table.page_of(address.chunk);
            let there = |id: &&EntryId| {
                let entry = state.table.get(**id);
                entry.address() == address && entry.state == State::Live
            };
            if state.table.page_ids(page).iter().any(|id| there(&id)) {
                state.space.release(address);
            }
        }
    }

    /// A put of a block that home has given up is a late repetition; it ends first.
    async fn wait_for_puts(&self, keys: &[BlockKey]) -> Result<(), Failure> {
        for key in keys {
            loop {
                self.check_alive()?;
                let settled = self.settled.notified();
                let pending = {
                    let state = self.state.borrow();
                    let found = state.table.find(*key);
                    found.is_some_and(|id| state.table.get(id).state == State::Pending)
                };
                if !pending {
                    break;
                }
                settled.await;
            }
        }
        Ok(())
    }

    fn release_all<'a>(&self, keys: impl Iterator<Item = &'a BlockKey>) {
        let state = &mut *self.state.borrow_mut();
        for key in keys {
            release(state, *key);
        }
        self.settled.notify_all();
    }
}

/// The blocks that are here, by the page whose stream tells of them.
fn by_page(state: &StoreState, keys: &[BlockKey]) -> BTreeMap<u32, Vec<BlockKey>> {
    let mut groups: BTreeMap<u32, Vec<BlockKey>> = BTreeMap::new();
    for key in keys {
        if let Some(id) = state.table.find(*key) {
            let page = state.table.page_of(state.table.get(id).chunk);
            if is_freeable(state, page, *key) {
                groups.entry(page).or_default().push(*key);
            }
        }
    }
    groups
}

/// Blocks that are being freed already are freed once more: the answer must wait for a record too,
/// and two do no harm.
fn is_freeable(state: &StoreState, page: u32, key: BlockKey) -> bool {
    let Some(id) = state.table.find(key) else { return false };
    let entry = state.table.get(id);
    state.table.page_of(entry.chunk) == page && matches!(entry.state, State::Live | State::Freeing)
}

fn mark_freeing(state: &mut StoreState, key: BlockKey) {
    if let Some(id) = state.table.find(key) {
        state.table.get_mut(id).state = State::Freeing;
    }
}

/// The record is durable. Somebody else may have come first.
fn release(state: &mut StoreState, key: BlockKey) {
    let Some(id) = state.table.find(key) else { return };
    let entry = state.table.get_mut(id);
    if entry.state != State::Freeing {
        return;
    }
    let (slot, address, read) = (entry.pg.slot, entry.address(), entry.pins > 0);
    entry.state = State::Zombie;
    state.unconfirmed.remove(&(slot, id));
    state.table.unlink(id);
    #[cfg(feature = "planted")]
    state.ghosts.insert(key, address);
    if !read {
        state.table.remove(id);
    }
    if !read || planted::is(Planted::FreeUnderReader) {
        state.space.release(address);
    }
}
