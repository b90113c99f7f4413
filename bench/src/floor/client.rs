//! The skeleton's client: copies what the application gave into blocks, seals them, sends them to
//! N+K servers; while one group is under way the next one is filled. And the way back.

use std::io::{BufRead, Read};
use std::net::TcpStream;
use std::time::Duration;

use bb_erasure::{Codec, Geometry, crc32c, default_codec, seal};

use super::wire::{ANSWER, GET, PUT, Request, tune};
use super::{Fallible, GROUP_BYTES};

/// As the client library has them.
const CHUNK_BYTES: usize = 16 << 10;
/// Blocks that are asked for ahead.
const AHEAD: u64 = 4;

/// Which client it is, and what it shall do.
#[derive(Clone, Debug)]
pub struct Task {
    /// N+K.
    pub geometry: Geometry,
    /// Its number.
    pub rank: u64,
    /// Bytes to write or read.
    pub bytes: u64,
    /// Where the servers are.
    pub servers: Vec<String>,
    /// Read what was written before.
    pub read: bool,
}

struct Client {
    task: Task,
    streams: Vec<TcpStream>,
    /// Blocks that each server has of us so far.
    slots: Vec<u64>,
    block_bytes: usize,
}

/// Says "ready", waits for a line, works, prints what bench/c/load prints.
///
/// # Errors
/// Of the network.
pub fn client(task: Task) -> Fallible<()> {
    let mut streams = Vec::new();
    for address in &task.servers {
        let stream = TcpStream::connect(address)?;
        tune(&stream)?;
        streams.push(stream);
    }
    let slots = vec![0; streams.len()];
    let block_bytes = GROUP_BYTES / task.geometry.data();
    let mut client = Client { task, streams, slots, block_bytes };
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new())?;
    let (cpu, start) = (usage()?.0, monotonic()?);
    let bytes = if client.task.read { client.read()? } else { client.write()? };
    let (end, (cpu_after, peak)) = (monotonic()?, usage()?);
    println!(
        "{{\"start\":{start:.9},\"end\":{end:.9},\"bytes\":{bytes},\"ops\":{},\"user\":{:.6},\
         \"system\":0,\"peak_kib\":{peak},\"histogram\":[]}}",
        bytes >> 20,
        cpu_after - cpu
    );
    Ok(())
}

impl Client {
    /// Server and place of the next block with that index of a group: the same for reader and writer.
    fn place(&mut self, group: u64, index: usize) -> Fallible<(usize, u64)> {
        let servers = self.streams.len();
        let server = (usize::try_from(group + self.task.rank)? + index) % servers;
        let each = self.task.bytes.div_ceil(GROUP_BYTES as u64);
        let slot = self.task.rank * each + self.slots[server];
        self.slots[server] += 1;
        Ok((server, slot))
    }

    fn groups(&self) -> u64 {
        self.task.bytes / GROUP_BYTES as u64
    }

    fn write(&mut self) -> Fallible<u64> {
        let (codec, total) = (default_codec(self.task.geometry), self.task.geometry.total());
        let mut blocks = vec![vec![0_u8; self.block_bytes]; total];
        let user = vec![7_u8; 1 << 20];
        let mut under_way: Vec<usize> = Vec::new();
        for group in 0..self.groups() {
            let crcs = self.fill(codec, &mut blocks, &user, group)?;
            // The group before this one.
            for server in std::mem::take(&mut under_way) {
                self.streams[server].read_exact(&mut [0; ANSWER])?;
            }
            for index in 0..total {
                let (server, slot) = self.place(group, index)?;
                let request = Request { what: PUT, slot, crc: crcs[index] };
                request.send(&mut self.streams[server], &blocks[index])?;
                under_way.push(server);
            }
        }
        for server in under_way {
            self.streams[server].read_exact(&mut [0; ANSWER])?;
        }
        Ok(self.groups() * GROUP_BYTES as u64)
    }

    /// The application's calls of 1 MiB, and the seal.
    fn fill(
        &self,
        codec: &dyn Codec,
        blocks: &mut [Vec<u8>],
        user: &[u8],
        group: u64,
    ) -> Fallible<Vec<u32>> {
        let (data, parity) = blocks.split_at_mut(self.task.geometry.data());
        for block in data.iter_mut() {
            block.copy_from_slice(&user[..self.block_bytes]);
            block[..8].copy_from_slice(&group.to_le_bytes());
        }
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        let crcs = seal(codec, self.task.geometry, &data, &mut parity, CHUNK_BYTES)?;
        Ok(crcs.blocks().to_vec())
    }

    fn read(&mut self) -> Fallible<u64> {
        let geometry = self.task.geometry;
        let mut asked: std::collections::VecDeque<usize> = std::collections::VecDeque::new();
        let (mut block, mut user) = (vec![0; self.block_bytes], vec![0; self.block_bytes]);
        for group in 0..self.groups() {
            for index in 0..geometry.total() {
                let (server, slot) = self.place(group, index)?;
                if index >= geometry.data() {
                    continue;
                }
                if asked.len() as u64 >= AHEAD {
                    self.take(&mut asked, &mut block, &mut user)?;
                }
                Request { what: GET, slot, crc: 0 }.send(&mut self.streams[server], &[])?;
                asked.push_back(server);
            }
        }
        while !asked.is_empty() {
            self.take(&mut asked, &mut block, &mut user)?;
        }
        Ok(self.groups() * GROUP_BYTES as u64)
    }

    fn take(
        &mut self,
        asked: &mut std::collections::VecDeque<usize>,
        block: &mut [u8],
        user: &mut [u8],
    ) -> Fallible<()> {
        let Some(server) = asked.pop_front() else { return Ok(()) };
        let mut answer = [0; ANSWER];
        self.streams[server].read_exact(&mut answer)?;
        self.streams[server].read_exact(block)?;
        if crc32c(block).to_le_bytes() != answer[..4] {
            return Err("a block was damaged on its way".into());
        }
        user.copy_from_slice(block);
        std::hint::black_box(&user);
        Ok(())
    }
}

/// CLOCK_MONOTONIC, which all processes of the machine share.
fn monotonic() -> Fallible<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a local that outlives the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    if failed != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let since = Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?);
    Ok(since.as_secs_f64())
}

/// CPU seconds, and the most memory in KiB.
fn usage() -> Fallible<(f64, i64)> {
    // SAFETY: all-zero is a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a local that outlives the call.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok((seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss))
}
