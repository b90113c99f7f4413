//! Speed of the erasure codecs and of CRC32C on one core, in GB/s of data.
//!
//! Both codecs run in turn in one process: figures of two runs on a shared machine don't compare.
//! Warm = one parity group of 64 KiB blocks, again and again; cold = groups of 2 MiB of data spread
//! over 512 MiB, so that each comes from DRAM. Median of the rounds.

use std::hint::black_box;
use std::time::Duration;

use bb_erasure::{Codec, CodecId, Geometry, codec, crc32c, seal};

const ROUNDS: usize = 7;
const COLD_BYTES: usize = 512 << 20;
const CHUNK_BYTES: usize = 16 << 10;

/// The wall clock: this program measures the machine, it never runs in simulation.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn elapsed(work: impl FnOnce()) -> Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

/// Median GB/s of `work`, which handles `bytes` bytes of data a call.
fn rate(bytes: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut seconds: Vec<f64> = (0..ROUNDS).map(|_| elapsed(&mut work).as_secs_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    let gigabytes = bytes as f64 / 1e9;
    gigabytes / seconds[ROUNDS / 2]
}

struct Group {
    blocks: Vec<Vec<u8>>,
}

impl Group {
    fn new(geometry: Geometry, block_bytes: usize) -> Self {
        let pattern = |i: usize| (0..=250_u8).cycle().skip(i).take(block_bytes).collect();
        Self { blocks: (0..geometry.total()).map(pattern).collect() }
    }

    fn split(&mut self, geometry: Geometry) -> (Vec<&[u8]>, Vec<&mut [u8]>) {
        let (data, parity) = self.blocks.split_at_mut(geometry.data());
        let data = data.iter().map(Vec::as_slice).collect();
        (data, parity.iter_mut().map(Vec::as_mut_slice).collect())
    }
}

fn measure(codec: &dyn Codec, geometry: Geometry, groups: &mut [Group], repeat: usize) -> [f64; 3] {
    let block_bytes = groups[0].blocks[0].len();
    let count = groups.len();
    let bytes = count * repeat * geometry.data() * block_bytes;
    let encode = rate(bytes, || {
        for i in 0..repeat * count {
            let (data, mut parity) = groups[i % count].split(geometry);
            codec.encode(geometry, &data, &mut parity).expect("a valid call");
        }
    });
    let sealed = rate(bytes, || {
        for i in 0..repeat * count {
            let (data, mut parity) = groups[i % count].split(geometry);
            let crcs = seal(codec, geometry, &data, &mut parity, CHUNK_BYTES);
            black_box(crcs.expect("a valid call"));
        }
    });
    // The first K data blocks are lost.
    let wanted: Vec<_> = (0..geometry.parity()).collect();
    let mut out = vec![vec![0; block_bytes]; wanted.len()];
    let decode = rate(bytes, || {
        for i in 0..repeat * count {
            let blocks = groups[i % count].blocks.iter().enumerate();
            let present: Vec<_> =
                blocks.map(|(i, block)| (i >= wanted.len()).then_some(&block[..])).collect();
            let mut out: Vec<_> = out.iter_mut().map(Vec::as_mut_slice).collect();
            codec.reconstruct(geometry, &present, &wanted, &mut out).expect("a valid call");
        }
    });
    [encode, sealed, decode]
}

fn main() {
    let geometries: [Geometry; 3] =
        ["2+1", "4+1", "8+2"].map(|text| text.parse().expect("a valid geometry"));
    println!("GB/s of data on one core, median of {ROUNDS}");
    println!(
        "{:<6} {:<20} {:<16} {:>8} {:>8} {:>8}",
        "", "codec", "blocks", "encode", "seal", "decode"
    );
    for geometry in geometries {
        let block_bytes = (2 << 20) / geometry.data();
        let mut warm = [Group::new(geometry, 64 << 10)];
        let mut cold: Vec<_> =
            (0..COLD_BYTES / (2 << 20)).map(|_| Group::new(geometry, block_bytes)).collect();
        for id in [CodecId::ISAL, CodecId::REED_SOLOMON_SIMD] {
            let Ok(codec) = codec(id) else {
                println!("{:<6} codec {} is not in this build", geometry.to_string(), id.0);
                continue;
            };
            let row = |blocks: String, [encode, sealed, decode]: [f64; 3]| {
                println!(
                    "{:<6} {:<20} {blocks:<16} {encode:>8.1} {sealed:>8.1} {decode:>8.1}",
                    geometry.to_string(),
                    codec.name(),
                );
            };
            row("64 KiB warm".to_owned(), measure(codec, geometry, &mut warm, 200));
            let cold_name = format!("{} KiB cold", block_bytes >> 10);
            row(cold_name, measure(codec, geometry, &mut cold, 1));
        }
    }
    let warm = vec![7_u8; 64 << 10];
    let cold = vec![7_u8; COLD_BYTES];
    let warm_rate = rate(warm.len() * 4096, || {
        (0..4096).for_each(|_| {
            black_box(crc32c(black_box(&warm)));
        });
    });
    let cold_rate = rate(cold.len(), || {
        black_box(crc32c(black_box(&cold)));
    });
    println!("CRC32C: {warm_rate:.1} warm (64 KiB), {cold_rate:.1} cold");
}
