//! Bytes to the backing file system, from it, and out of the buffer.

use bb_client::{Error, File};
use bb_proto::meta::Residency;

use super::driver::{Handle, Worker};
use crate::model::Actor;

/// A client that has written nothing.
pub const STRANGER: Actor = Actor(0);

impl Worker {
    pub(super) async fn residency(&self, handle: &Handle) {
        let kind = match self.draw(8) {
            0..=2 => Residency::Sync,
            3..=4 => Residency::Prestage,
            5..=6 => Residency::Purge,
            _ => return self.statistics(handle).await,
        };
        let (bench, actor) = (&self.bench, self.process.actor);
        // It writes back what this client wrote, as fsync does.
        let before = bench.tick();
        bench.note(|| format!("c{} {kind:?} f{}", actor.0, handle.id));
        let ok = self.operate_on(&handle.file, kind, handle.id).await;
        bench.note(|| format!("c{} {kind:?} f{} ended: {ok}", actor.0, handle.id));
        let quiet = bench.model.borrow().is_quiet_since(handle.id, before);
        if !ok || !quiet || kind != Residency::Sync {
            return;
        }
        let slots = (0..bench.names.len()).map(|at| bench.names.get(at));
        let same = |slot: &super::Slot| slot.file == Some(handle.id) && !slot.is_taken();
        let Some(slot) = slots.into_iter().find(same) else { return };
        let Some(bytes) = bench.world.bfs.files().remove(slot.path.as_bytes()) else {
            return bench.violation(format!("{} is not on the backing file system", slot.path));
        };
        let verdict = {
            let model = bench.model.borrow();
            model.check_read(handle.id, STRANGER, before, before, 0, &bytes).and_then(|()| {
                model.check_size(handle.id, STRANGER, before, before, bytes.len() as u64)
            })
        };
        bench.judge("what a sync left on the backing file system", STRANGER, verdict);
    }

    /// True if it succeeded.
    pub(super) async fn operate_on(&self, file: &File, kind: Residency, id: u64) -> bool {
        let (bench, actor) = (&self.bench, self.process.actor);
        let what = match kind {
            Residency::Sync => "sync",
            Residency::Prestage => "prestage",
            _ => "purge",
        };
        let result: Result<(), Error> = async {
            let (offset, len) = match self.draw(4) {
                0 if kind != Residency::Sync => (self.draw(1 << 20), 1 + self.draw(1 << 20)),
                _ => (0, 0),
            };
            let operation = file.start(kind, offset, len, 0).await?;
            if self.draw(20) == 0 {
                operation.cancel().await?;
            }
            operation.wait(|_| {}).await.map(drop)
        }
        .await;
        match &result {
            Ok(()) => bench.count(what, "ok"),
            Err(error) if error.errno() == libc::ECANCELED => bench.count(what, "ECANCELED"),
            Err(error) => {
                // What was to be written back first may have failed with it.
                bench.model.borrow_mut().given_up(id, actor);
                self.failed(what, error, bench.names.is_gone(id));
            }
        }
        result.is_ok()
    }

    async fn statistics(&self, handle: &Handle) {
        let bench = &self.bench;
        match handle.file.fragment_statistics().await {
            Ok(_) => bench.count("frag-stat", "ok"),
            Err(error) => self.failed("frag-stat", &error, bench.names.is_gone(handle.id)),
        }
    }
}
