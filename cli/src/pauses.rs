//! How long the buffer made a command wait.

use std::cell::Cell;
use std::time::Duration;

use bb_runtime::{Instant, Rt};

/// Notes each call on the buffer: opens, writes, fsyncs, closes. A write counts as completed when
/// the client has taken its bytes, so a pause of the cluster shows when the client's memory for
/// bytes that are not acknowledged is full, and at each fsync and close.
pub struct Pauses {
    rt: Rt,
    under_way: Cell<u32>,
    /// The last completion, or the start of the first call after a time without any.
    since: Cell<Instant>,
    longest_call: Cell<Duration>,
    longest_gap: Cell<Duration>,
}

impl Pauses {
    /// None yet.
    pub fn new(rt: &Rt) -> Self {
        Self {
            rt: rt.clone(),
            under_way: Cell::new(0),
            since: Cell::new(rt.now()),
            longest_call: Cell::default(),
            longest_gap: Cell::default(),
        }
    }

    /// Carries out a call.
    pub async fn timed<T>(&self, call: impl Future<Output = T>) -> T {
        let start = self.rt.now();
        if self.under_way.replace(self.under_way.get() + 1) == 0 {
            self.since.set(start);
        }
        let result = call.await;
        let now = self.rt.now();
        self.under_way.set(self.under_way.get() - 1);
        let gap = now.since(self.since.replace(now));
        self.longest_gap.set(self.longest_gap.get().max(gap));
        self.longest_call.set(self.longest_call.get().max(now.since(start)));
        result
    }

    /// The longest time that one call took: what a single writer saw.
    pub fn longest_call(&self) -> Duration {
        self.longest_call.get()
    }

    /// The longest time in which calls were under way and none was completed: what the command as a
    /// whole saw.
    pub fn longest_gap(&self) -> Duration {
        self.longest_gap.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join;

    #[test]
    fn a_gap_is_time_in_which_calls_wait_and_none_ends() {
        let executor = bb_runtime::Executor::simulated(1);
        let rt = executor.rt();
        executor.block_on(async {
            let pauses = Pauses::new(&rt);
            let call = |ms| pauses.timed(rt.sleep(Duration::from_millis(ms)));
            join(call(300), call(500)).await;
            assert_eq!(pauses.longest_call(), Duration::from_millis(500));
            assert_eq!(pauses.longest_gap(), Duration::from_millis(300));
            // Nothing is asked for: that is no pause.
            rt.sleep(Duration::from_secs(9)).await;
            call(10).await;
            assert_eq!(pauses.longest_gap(), Duration::from_millis(300));
        });
    }
}
