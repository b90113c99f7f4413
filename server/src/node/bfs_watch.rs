//! What the operator is told of the backing file system: asked when somebody wants to know.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Instant, Rt};

use crate::bfs::BfsFuture;

/// How long a look may take before it counts as a problem, too.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last look at the backing file system. One at a time: a look at one that hangs takes a thread.
#[derive(Default)]
pub(super) struct BfsWatch {
    /// Since when a look is under way.
    since: Cell<Option<Instant>>,
    /// What the last one found.
    found: RefCell<String>,
}

impl BfsWatch {
    /// What is wrong with the backing file system, in words; empty if it is there, is ours, and
    /// answers within a second. `check` is asked unless an earlier look has no answer yet.
    pub(super) async fn problem(
        self: &Rc<Self>,
        rt: &Rt,
        check: impl FnOnce() -> BfsFuture<()>,
    ) -> String {
        if self.since.get().is_none() {
            self.since.set(Some(rt.now()));
            let (watch, look) = (self.clone(), check());
            let look = rt.spawn(async move {
                let found = look.await.map_or_else(|error| error.to_string(), |()| String::new());
                watch.found.replace(found);
                watch.since.set(None);
            });
            // Goes on after this: it may be answered late, and is the only one until then.
            let _ = rt.timeout(PATIENCE, look).await;
        }
        self.since.get().map_or_else(
            || self.found.borrow().clone(),
            |since| {
                let seconds = rt.now().since(since).as_secs();
                if seconds < PATIENCE.as_secs() {
                    return self.found.borrow().clone();
                }
                format!("no answer for {seconds} s")
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use bb_runtime::Executor;
    use bb_runtime::sync::Notify;

    use super::*;
    use crate::bfs::BfsError;

    #[test]
    fn one_look_at_a_time_and_one_that_hangs_is_a_problem() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let watch = Rc::new(BfsWatch::default());
            let gone = || -> BfsFuture<()> {
                Box::pin(async { Err(BfsError::Unavailable("not mounted".to_owned())) })
            };
            let well = || -> BfsFuture<()> { Box::pin(async { Ok(()) }) };
            assert_eq!(watch.problem(&rt, well).await, "");
            let said = watch.problem(&rt, gone).await;
            assert!(said.contains("not mounted"), "{said}");
            assert_eq!(watch.problem(&rt, well).await, "", "it is back");

            let answered = Rc::new(Notify::default());
            let waits = answered.clone();
            let hangs = move || -> BfsFuture<()> {
                Box::pin(async move {
                    waits.notified().await;
                    Ok(())
                })
            };
            assert_eq!(watch.problem(&rt, hangs).await, "no answer for 1 s");
            rt.sleep(Duration::from_secs(4)).await;
            let none = || -> BfsFuture<()> { panic!("one look is under way") };
            assert_eq!(watch.problem(&rt, none).await, "no answer for 5 s");
            answered.notify_all();
            rt.sleep(Duration::from_millis(1)).await;
            assert_eq!(watch.problem(&rt, well).await, "");
        });
    }
}
