//! Tells the device which chunks hold nothing any more: when it is idle, when a large share of it
//! is waiting, or when the operator asks.
//!
//! Whole chunks only: they are taken out of use until the device has answered, so that an unmap
//! never meets a write.

use std::rc::Weak;

use bb_runtime::Rt;

use super::BlockStore;

/// Chunks per request. Small enough that a client that needs the last space waits briefly.
const RUN_CHUNKS_MAX: u32 = 64;

pub(super) async fn run(store: Weak<BlockStore>, rt: Rt) {
    let mut seen = 0;
    while let Some(interval) = store.upgrade().map(|store| store.config.unmap_interval) {
        rt.sleep(interval).await;
        let Some(store) = store.upgrade() else { return };
        if store.problem().is_some() {
            return;
        }
        let operations = store.load.operations();
        let idle = operations == seen;
        seen = operations;
        store.unmap_while(idle).await;
    }
}

impl BlockStore {
    /// Has all freed chunks unmapped at the next look, busy or not.
    pub fn request_unmap(&self) {
        self.unmap_wanted.set(true);
    }

    async fn unmap_while(&self, idle: bool) {
        let before = self.load.operations();
        loop {
            // Somebody has come: idle no longer.
            let still_idle = idle && self.load.operations() == before;
            if !still_idle && !self.unmap_wanted.get() && !self.much_waits() {
                return;
            }
            if !self.unmap_some().await {
                self.unmap_wanted.set(false);
                return;
            }
        }
    }

    fn much_waits(&self) -> bool {
        let state = self.state.borrow();
        let share = u64::from(self.config.unmap_permille);
        let limit = state.space.capacity_bytes() / 1000 * share;
        state.space.unmap_bytes() > 0 && state.space.unmap_bytes() >= limit
    }

    /// Unmaps one run of chunks; false if there was none, or the device does not do it.
    pub(super) async fn unmap_some(&self) -> bool {
        let Some(run) = self.state.borrow_mut().space.begin_unmap(RUN_CHUNKS_MAX) else {
            return false;
        };
        let (offset, len) = run.range();
        let result = self.dev.unmap(self.superblock.data_offset() + offset, len).await;
        self.state.borrow_mut().space.end_unmap(run);
        if let Err(error) = &result {
            // It is a hint: the space is as good as before.
            tracing::debug!(device = %self.dev.info().name, %error, "unmap refused");
        }
        result.is_ok()
    }
}
