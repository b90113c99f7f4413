//! What the log must not keep for ever: each page's stream is cut short by a snapshot of the page,
//! one page at a time, while others are served.

use bb_commitlog::{Append, LogError};

use super::BlockStore;
use super::record::{DEVICE_PAGE, encode_confirmed, encode_page};
use super::table::State;

impl BlockStore {
    /// Every page that may have a stream in the log: the device's own, then the parts of it.
    pub fn pages(&self) -> impl Iterator<Item = u32> + use<> {
        std::iter::once(DEVICE_PAGE).chain(0..self.state.borrow().table.page_count())
    }

    /// What the records of a page's stream amount to now; `None` where that is nothing, so that
    /// the stream can be retired. It must be handed to the log before anything else runs.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn snapshot(&self, page: u32) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        if page == DEVICE_PAGE {
            return Some(encode_confirmed(state.confirmed_through));
        }
        let holds = |state: State| matches!(state, State::Pending | State::Live);
        state
            .table
            .page(page)
            .any(|entry| holds(entry.state))
            .then(|| encode_page(state.table.page(page)))
    }

    /// Gives the log a snapshot of a page (or retires its stream), so that it need not keep what
    /// lies before. Await `durable` for the result; the page is served meanwhile.
    ///
    /// # Errors
    /// The log's.
    pub fn checkpoint(&self, page: u32) -> Result<Append, LogError> {
        let stream = self.stream(page).id();
        match self.snapshot(page) {
            Some(snapshot) => self.env.log.checkpoint(stream, snapshot),
            None => self.env.log.retire(stream),
        }
    }
}
