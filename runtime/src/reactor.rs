//! One thread per core, each with an executor and a ring of its own.

use std::future::Future;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::executor::Rt;
use crate::uring::{Uring, UringError, UringOptions, executor};

/// How reactors are started.
#[derive(Clone, Debug)]
pub struct ReactorOptions {
    /// How many.
    pub count: usize,
    /// Binds each to a core of its own, where there are enough; else the system places them.
    pub pin: bool,
    /// So many cores come before theirs: those of reactors that run elsewhere in the process.
    pub cores_before: usize,
    /// Threads are called this, and a number.
    pub name: String,
    /// Their rings.
    pub uring: UringOptions,
}

impl ReactorOptions {
    /// `count` reactors of a server.
    pub fn new(count: usize) -> Self {
        let uring = UringOptions::for_reactor();
        let name = "reactor".to_owned();
        Self { count: count.max(1), pin: true, cores_before: 0, name, uring }
    }
}

/// Reactors that run.
#[must_use = "dropping it detaches the reactors"]
pub struct Reactors<T> {
    threads: Vec<JoinHandle<Option<T>>>,
}

/// Starts reactors. Each runs the future that `make` gives it (called on the reactor's thread with
/// its index) and ends with it. Returns when all have a ring.
///
/// # Errors
/// When a thread or a ring cannot be had. No future has been run then.
pub fn start<T, M, F>(options: &ReactorOptions, make: M) -> Result<Reactors<T>, UringError>
where
    T: Send + 'static,
    M: Fn(usize, Rt, Uring) -> F + Send + Sync + 'static,
    F: Future<Output = T>,
{
    let before = options.cores_before;
    let cores = if options.pin { cores(before + options.count)? } else { Vec::new() };
    let make = Arc::new(make);
    let (ready_sender, ready) = mpsc::channel();
    let mut threads = Vec::new();
    let mut starts = Vec::new();
    for index in 0..options.count {
        let (make, ready, uring_options) =
            (make.clone(), ready_sender.clone(), options.uring.clone());
        let core = cores.get(before + index).copied();
        let (start, started) = mpsc::channel::<()>();
        starts.push(start);
        let thread = std::thread::Builder::new()
            .name(format!("{}-{}", options.name, before + index))
            .spawn(move || {
                if let Some(core) = core {
                    pin_to(core);
                }
                let (executor, uring) = match executor(&uring_options) {
                    Ok(made) => made,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return None;
                    }
                };
                let _ = ready.send(Ok(()));
                // Closed without a word: another reactor could not be had.
                started.recv().ok()?;
                let future = make(index, executor.rt(), uring);
                Some(executor.block_on(future))
            })?;
        threads.push(thread);
    }
    drop(ready_sender);
    for _ in 0..options.count {
        let told = ready.recv();
        told.map_err(|_| io::Error::other("a reactor panicked while it started"))??;
    }
    for start in &starts {
        let _ = start.send(());
    }
    Ok(Reactors { threads })
}

impl<T> Reactors<T> {
    /// Waits for all of them. One that panicked yields what it panicked with.
    pub fn join(self) -> Vec<std::thread::Result<T>> {
        let results = self.threads.into_iter().map(JoinHandle::join);
        results
            .map(|result| result.map(|value| value.expect("a started reactor runs its future")))
            .collect()
    }
}

/// The cores that this process may use, if there are at least `count`.
fn cores(count: usize) -> io::Result<Vec<usize>> {
    // SAFETY: all zeros is a valid (empty) set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writing and as long as is said.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let cores: Vec<usize> = (0..libc::CPU_SETSIZE)
        .filter_map(|core| usize::try_from(core).ok())
        // SAFETY: `core` lies within the set.
        .filter(|core| unsafe { libc::CPU_ISSET(*core, &set) })
        .collect();
    if cores.len() < count {
        tracing::info!(
            cores = cores.len(),
            reactors = count,
            "fewer cores than reactors: not pinned"
        );
        return Ok(Vec::new());
    }
    Ok(cores)
}

fn pin_to(core: usize) {
    // SAFETY: all zeros is a valid (empty) set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` came out of such a set; `set` is readable and as long as is said.
    let result = unsafe {
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result != 0 {
        tracing::warn!(core, error = %io::Error::last_os_error(), "cannot pin a reactor");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::mailbox;

    #[test]
    fn reactors_talk_to_each_other_from_their_sleep() {
        let (to_first, at_first) = mailbox::bounded::<u64>(4);
        let (to_second, at_second) = mailbox::unbounded::<u64>();
        let ends = Mutex::new(vec![(to_second, at_first), (to_first, at_second)]);
        let reactors = start(&ReactorOptions::new(2), move |index, _rt, _uring| {
            let (sender, mut receiver) = ends.lock().expect("no panic").remove(0);
            async move {
                let mut last = 0;
                if index == 0 {
                    sender.send(1).await.expect("the other one receives");
                }
                while let Some(number) = receiver.recv().await {
                    last = number;
                    if number == 1000 || sender.send(number + 1).await.is_err() {
                        break;
                    }
                }
                last
            }
        });
        let results = reactors.expect("rings").join();
        let mut last: Vec<u64> = results.into_iter().map(|last| last.expect("no panic")).collect();
        last.sort_unstable();
        assert_eq!(last, [999, 1000]);
    }

    #[test]
    fn each_reactor_has_a_core_where_there_are_enough() {
        let count = cores(1).expect("affinity").len();
        let pinned =
            start(&ReactorOptions::new(count), |_, _, _| async { cores(1).map(|c| c.len()) });
        for cores in pinned.expect("rings").join() {
            assert_eq!(cores.expect("no panic").expect("affinity"), 1);
        }
        let more =
            start(&ReactorOptions::new(count + 1), |_, _, _| async { cores(1).map(|c| c.len()) });
        for cores in more.expect("rings").join() {
            assert_eq!(cores.expect("no panic").expect("affinity"), count);
        }
    }

    #[test]
    fn cores_before_are_left_to_others() {
        let count = cores(1).expect("affinity").len();
        let last = ReactorOptions { cores_before: count - 1, ..ReactorOptions::new(1) };
        let one_too_many = ReactorOptions { cores_before: count, ..ReactorOptions::new(1) };
        for (options, expected) in [(last, 1), (one_too_many, count)] {
            let reactors = start(&options, |_, _, _| async { cores(1).map(|c| c.len()) });
            for cores in reactors.expect("rings").join() {
                assert_eq!(cores.expect("no panic").expect("affinity"), expected);
            }
        }
    }

    #[test]
    fn a_panic_in_one_reactor_is_told_to_who_joins() {
        let reactors = start(&ReactorOptions::new(2), |index, rt, _| async move {
            rt.yield_now().await;
            assert_ne!(index, 1, "on purpose");
            index
        });
        let results = reactors.expect("rings").join();
        assert_eq!(*results[0].as_ref().expect("no panic"), 0);
        assert!(results[1].is_err());
    }
}
