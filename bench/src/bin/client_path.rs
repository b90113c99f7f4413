//! What the client itself costs: packing, checksums, parity, bookkeeping, against servers that
//! answer at once and keep nothing.
//!
//! `client_path [GiB] [geometry] [write size in bytes]`, for example `client_path 4 8+2 47008`.

use std::process::ExitCode;
use std::rc::Rc;

use bb_bench::yes::Yes;
use bb_client::{Client, ClientOptions};
use bb_erasure::Geometry;
use bb_runtime::{BufPool, Executor};
use bb_transport::Address;

/// Processor time of this process, user and system, in seconds.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    std::time::Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
    .as_secs_f64()
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let gib: u64 = args.next().map_or(Ok(4), |a| a.parse())?;
    let geometry: Geometry = args.next().map_or_else(|| "8+2".parse(), |a| a.parse())?;
    let write_bytes: usize = args.next().map_or(Ok(1 << 20), |a| a.parse())?;
    let executor = Executor::simulated(1);
    let pool = BufPool::new(256 << 20, false)?;
    let caller = Rc::new(Yes::new());
    let options = ClientOptions { geometry: Some(geometry), ..ClientOptions::default() };
    let seeds = vec![Address::from("yes")];
    let rt = executor.rt();
    executor.block_on(async {
        let client = Client::connect(rt, pool, caller, seeds, options).await?;
        let file = client.open(b"/f", libc::O_RDWR | libc::O_CREAT, 0o644).await?;
        let data: Vec<u8> = (0..write_bytes).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect();
        // Once around the pool, so that no page is touched for the first time while it counts.
        let (warm, total) = (256 << 20, gib << 30);
        let mut at = 0;
        while at < warm {
            at += file.pwrite(&data, at).await? as u64;
        }
        file.fsync().await?;
        let (begin, from) = (cpu_seconds(), at);
        while at < from + total {
            at += file.pwrite(&data, at).await? as u64;
        }
        file.fsync().await?;
        let (seconds, bytes) = (cpu_seconds() - begin, at - from);
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let gb = bytes as f64 / 1e9;
        println!(
            "{geometry}, writes of {write_bytes} bytes: {:.3} CPU s per GB, {:.2} GB/s per core",
            seconds / gb,
            gb / seconds
        );
        file.close().await?;
        Ok::<(), Box<dyn std::error::Error>>(())
    })
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client_path: {error}");
            ExitCode::FAILURE
        }
    }
}
