//! How many requests may be sent only because others are late: a stalled device must not double the
//! load.

use std::cell::Cell;

/// Requests that earn one more: 5 %.
const REQUESTS_PER_EXTRA: u64 = 20;
/// Extra requests that may be saved up: a burst after a quiet time.
const SAVED_MAX: u64 = 32;
/// What there is at the start: the first reads of a program shall not wait for a stalled device.
const SAVED_AT_START: u64 = 16;

/// A token bucket that is filled by requests, not by time: an idle client saves nothing.
pub(crate) struct Budget {
    /// In parts of an extra request.
    saved: Cell<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { saved: Cell::new(SAVED_AT_START * REQUESTS_PER_EXTRA) }
    }
}

impl Budget {
    /// A request was sent that had to be.
    pub(crate) fn earn(&self) {
        self.saved.set((self.saved.get() + 1).min(SAVED_MAX * REQUESTS_PER_EXTRA));
    }

    /// Takes so many extra requests, all or none.
    pub(crate) fn spend(&self, extra: usize) -> bool {
        let cost = extra as u64 * REQUESTS_PER_EXTRA;
        let enough = self.saved.get() >= cost;
        if enough {
            self.saved.set(self.saved.get() - cost);
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_in_twenty_may_be_extra() {
        let budget = Budget::default();
        let mut extra = 0;
        for _ in 0..10_000 {
            budget.earn();
            extra += u64::from(budget.spend(1));
        }
        assert_eq!(extra, SAVED_AT_START + 10_000 / REQUESTS_PER_EXTRA);
        assert!(!budget.spend(2));
        (0..100_000).for_each(|_| budget.earn());
        assert!(budget.spend(32) && !budget.spend(1), "a burst has an end");
    }
}
