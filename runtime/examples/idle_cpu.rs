//! Reports what idle reactors cost: `idle_cpu [REACTORS] [TIMER_MS]`. Each waits for two seconds,
//! with a periodic timer if one is given.

use std::time::Duration;

use bb_runtime::reactor::{ReactorOptions, start};

/// CPU time of the calling thread, user and system.
fn cpu_time() -> Duration {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `at` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut at) };
    Duration::new(
        u64::try_from(at.tv_sec).expect("time is positive"),
        u32::try_from(at.tv_nsec).expect("below a second"),
    )
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse().expect("a number"));
    let count = arguments.next().unwrap_or(1);
    let timer_ms = arguments.next();
    let reactors = start(
        &ReactorOptions::new(usize::try_from(count).expect("small")),
        move |_, rt, _uring| async move {
            let before = cpu_time();
            let end = rt.now() + Duration::from_secs(2);
            match timer_ms {
                None => rt.sleep_until(end).await,
                Some(ms) => {
                    while rt.now() < end {
                        rt.sleep(Duration::from_millis(ms)).await;
                    }
                }
            }
            cpu_time() - before
        },
    );
    for (index, used) in reactors.expect("io_uring").join().into_iter().enumerate() {
        let used = used.expect("no panic");
        println!(
            "reactor {index}: {:.3} ms of CPU in 2 s ({:.3} %)",
            used.as_secs_f64() * 1e3,
            used.as_secs_f64() / 2.0 * 100.0
        );
    }
}
