//! Loopback TCP between two threads, with the socket options of Burstbay.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::floor::{Fallible, tune};
use crate::suite::clock::now;

const MIB: usize = 1 << 20;
const ROUND_TRIPS: usize = 2_000;

/// Answers `answer` bytes for each `request` bytes, until the other end is gone. On that core.
fn answer(core: usize, request: usize, answer: usize) -> Fallible<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().spawn(move || {
        pin(core);
        let Ok((mut stream, _)) = listener.accept() else { return };
        if tune(&stream).is_err() {
            return;
        }
        let mut buffer = vec![0; request];
        while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer[..answer]).is_ok()
        {
        }
    })?;
    let stream = TcpStream::connect(address)?;
    tune(&stream)?;
    Ok(stream)
}

/// The calling thread runs on that core, where the machine has it.
fn pin(core: usize) {
    // SAFETY: all-zero is an empty set; the set is a local that outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

/// GB/s of requests of 1 MiB with small answers, two under way.
pub fn stream(bytes: usize) -> Fallible<f64> {
    let mut stream = answer(1, MIB, 64)?;
    let requests = bytes / MIB;
    let block = vec![7; MIB];
    let mut small = [0; 64];
    let start = now();
    for sent in 0..requests {
        if sent >= 2 {
            stream.read_exact(&mut small)?;
        }
        stream.write_all(&block)?;
    }
    for _ in 0..2 {
        stream.read_exact(&mut small)?;
    }
    Ok((requests * MIB) as f64 / start.elapsed().as_secs_f64() / 1e9)
}

/// Microseconds, median, between core 0 and core 1; both sleep in between.
pub fn round_trip_us() -> Fallible<f64> {
    let asking = std::thread::Builder::new().spawn(|| -> Result<f64, String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        pin(0);
        let mut stream = answer(1, 64, 64).map_err(|error| failed(&error))?;
        let mut all = Vec::with_capacity(ROUND_TRIPS);
        let mut message = [0; 64];
        for _ in 0..ROUND_TRIPS {
            let start = now();
            stream.write_all(&message).map_err(|error| failed(&error))?;
            stream.read_exact(&mut message).map_err(|error| failed(&error))?;
            all.push(start.elapsed().as_secs_f64() * 1e6);
        }
        all.sort_by(f64::total_cmp);
        Ok(all[ROUND_TRIPS / 2])
    })?;
    Ok(asking.join().map_err(|_| "a thread panicked")??)
}
