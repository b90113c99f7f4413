//! The reactor: local tasks, timers, polled sources, messages between reactors and aligned
//! buffers, on real time around one `io_uring` or on virtual time under one seed.
//!
//! Everything that makes decisions is written against [`Rt`] and never asks the operating system
//! for time, chance or threads, so that the same code runs unchanged in the simulator.

mod buf;
mod driver;
mod executor;
pub mod mailbox;
pub mod reactor;
pub mod sync;
mod thread_pool;
mod time;
pub mod uring;
mod virtual_time;

pub use buf::{Buf, BufMut, BufPool, PoolStats, SLAB_BYTES_MAX, SLAB_BYTES_MIN};
pub use driver::{Driver, PollSource, Rest, Sleeper, Unpark};
pub use executor::{Aborted, DomainId, Elapsed, Executor, JoinHandle, Order, Rt, Step, Timeout};
pub use thread_pool::{PoolError, ThreadPool, ThreadPoolStats};
pub use time::{Instant, WallTime};
pub use virtual_time::VirtualTime;
