//! Something that happens once.

use std::cell::Cell;

use bb_runtime::sync::Notify;

#[derive(Clone, Default)]
pub(crate) struct Flag {
    raised: std::rc::Rc<Cell<bool>>,
    notify: Notify,
}

impl Flag {
    pub(crate) fn raise(&self) {
        if !self.raised.replace(true) {
            self.notify.notify_all();
        }
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.get()
    }

    pub(crate) async fn raised(&self) {
        while !self.raised.get() {
            self.notify.notified().await;
        }
    }

    /// Runs `future` until it is done or the flag is raised; the latter drops it where it stands.
    pub(crate) async fn or<F: Future>(&self, future: F) -> Option<F::Output> {
        let raised = std::pin::pin!(self.raised());
        let future = std::pin::pin!(future);
        match futures_util::future::select(raised, future).await {
            futures_util::future::Either::Left(_) => None,
            futures_util::future::Either::Right((output, _)) => Some(output),
        }
    }
}
