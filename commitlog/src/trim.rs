//! Moving the tail: the superblock says so durably before any of the space is used again.

use std::rc::Rc;

use crate::ids::Lsn;
use crate::log::Inner;
use crate::superblock::Superblock;

/// The tail is moved once it can advance by this share of the ring, or earlier if somebody waits
/// for room: each move costs two superblock writes.
const WORTHWHILE_SHARE: u64 = 32;

impl Inner {
    /// Starts to move the tail if that is worth a superblock.
    pub(crate) fn trim_if_worthwhile(self: &Rc<Self>) {
        let waiting = self.space.borrow().waiting();
        self.trim(waiting);
    }

    /// Starts to move the tail; for a small gain only if somebody lacks room.
    pub(crate) fn trim(self: &Rc<Self>, waiting: bool) {
        let superblock = {
            let mut state = self.state.borrow_mut();
            if state.superblock_busy || state.failed.is_some() {
                return;
            }
            let durable = Lsn(state.durable_through);
            let target = state.streams.trim_target(durable).0;
            let gain = target.saturating_sub(state.superblock.trim);
            if gain == 0 || (!waiting && gain < self.ring_bytes / WORTHWHILE_SHARE) {
                return;
            }
            state.superblock_busy = true;
            Superblock {
                generation: state.superblock.generation + 1,
                trim: target,
                durable_through: durable.0,
                table: state.streams.table(durable),
                ..state.superblock.clone()
            }
        };
        let inner = self.clone();
        self.rt.spawn(async move { inner.move_tail(superblock).await });
    }

    async fn move_tail(self: Rc<Self>, superblock: Superblock) {
        if let Err(error) = superblock.write(&*self.dev, &self.pool).await {
            self.fail(&format!("writing superblock {}: {error}", superblock.generation));
            return;
        }
        self.space.borrow_mut().set_trim(superblock.trim);
        {
            let mut state = self.state.borrow_mut();
            state.superblock = superblock;
            state.superblock_busy = false;
            state.stats.superblocks += 1;
        }
        self.grant();
        self.trim_if_worthwhile();
    }
}
