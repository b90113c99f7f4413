//! Deliberate errors, one at a time, that the simulator must find. Not in any build that serves.

#[cfg(not(debug_assertions))]
compile_error!(
    "the feature `planted` breaks the server on purpose: only for builds with debug assertions"
);

use std::cell::Cell;

use bb_runtime::{BufMut, BufPool};

use crate::link::{LinkError, LinkRecv};

thread_local! {
    static REUSE_TIMED_OUT_BUFFER: Cell<bool> = const { Cell::new(false) };
}

/// Breaks rule 6 on this thread: the sink of a request that timed out goes back to its pool at
/// once, and a late answer is still written to where it was, as a network card would do.
pub fn reuse_timed_out_buffer(on: bool) {
    REUSE_TIMED_OUT_BUFFER.set(on);
}

/// Where a sink was before it was recycled.
pub(crate) struct RecycledSink {
    start: *mut u8,
    len: usize,
}

/// Gives the sink of an abandoned request back while its transfer can still write to it.
pub(crate) fn recycle(sink: &mut Option<BufMut>, recycled: &mut Option<RecycledSink>) {
    if REUSE_TIMED_OUT_BUFFER.get()
        && let Some(mut taken) = sink.take()
    {
        *recycled = Some(RecycledSink { start: taken.as_mut_ptr(), len: taken.len() });
    }
}

impl RecycledSink {
    /// Writes a late payload to memory that may belong to somebody else by now. Only memory of
    /// `pool` is written to: other memory may be gone.
    pub(crate) async fn fill(
        self,
        recv: &mut dyn LinkRecv,
        len: usize,
        pool: &BufPool,
    ) -> Result<(), LinkError> {
        if len == 0 {
            return Ok(());
        }
        let late = recv.payload(pool.alloc(len).await).await?;
        let (base, bytes) = pool.region();
        let offset = self.start.addr().wrapping_sub(base.addr());
        if len <= self.len && offset < bytes {
            // SAFETY: the range lies in the pool's region, which is mapped as long as `pool`
            // lives. That somebody else may own it now is the error that is planted here.
            unsafe { std::ptr::copy(late.as_ptr(), self.start, len) };
        }
        Ok(())
    }
}
