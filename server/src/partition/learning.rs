//! Who is asking a file's record what its regions have to learn. When many ranks come to a new
//! region of their file at once, one of them asks and the others wait for what it brings: else the
//! partition of the record would hear the same question from each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bb_proto::{Fid, PartitionId};
use bb_runtime::sync::Notify;

type Key = (PartitionId, Fid);

/// The files that somebody is asking about.
#[derive(Default)]
pub(super) struct Learning(RefCell<BTreeMap<Key, Rc<Notify>>>);

/// Somebody asks, until this is dropped.
pub(super) struct Asking<'a> {
    learning: &'a Learning,
    key: Key,
    ended: Rc<Notify>,
}

impl Learning {
    /// Waits until whoever asks about the file has done so. False, at once, if nobody does.
    pub(super) async fn wait(&self, key: Key) -> bool {
        let asked = self.0.borrow().get(&key).cloned();
        let Some(asked) = asked else { return false };
        asked.notified().await;
        true
    }

    /// The caller asks. (Whoever has waited often enough does so beside another.)
    pub(super) fn begin(&self, key: Key) -> Asking<'_> {
        let ended = Rc::new(Notify::new());
        self.0.borrow_mut().insert(key, ended.clone());
        Asking { learning: self, key, ended }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asked = self.learning.0.borrow_mut();
        if asked.get(&self.key).is_some_and(|ended| Rc::ptr_eq(ended, &self.ended)) {
            asked.remove(&self.key);
        }
        drop(asked);
        self.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Duration;

    use bb_runtime::Executor;

    #[test]
    fn who_waits_goes_on_when_whoever_asks_has_ended_and_nobody_waits_for_another_file() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let learning = Rc::new(Learning::default());
            let (this, other) = ((PartitionId(1), Fid(1)), (PartitionId(1), Fid(2)));
            assert!(!learning.wait(this).await, "nobody asks");
            let asking = learning.begin(this);
            let ended = Rc::new(Cell::new(0));
            for _ in 0..3 {
                let (learning, ended) = (learning.clone(), ended.clone());
                drop(rt.spawn(async move {
                    assert!(learning.wait(this).await);
                    ended.set(ended.get() + 1);
                }));
            }
            rt.sleep(Duration::from_secs(1)).await;
            assert!(!learning.wait(other).await);
            assert_eq!(ended.get(), 0);
            let beside = learning.begin(this);
            drop(asking);
            rt.sleep(Duration::from_secs(1)).await;
            assert_eq!(ended.get(), 3);
            assert!(learning.0.borrow().contains_key(&this), "another asks now");
            drop(beside);
            assert!(learning.0.borrow().is_empty());
        });
    }
}
