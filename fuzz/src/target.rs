//! A decoder, its corpus, and the runs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::count::peak_bytes;
use crate::mutate::mutate;

/// Mutations of an ordinary test run.
const MUTATIONS: u64 = 4000;

/// Puts checksums right in bytes that were mutated, as far as they still have any.
type Repair<'a> = &'a dyn Fn(&mut Vec<u8>);

/// A decoder and what it is fed with.
pub struct Target<'a> {
    /// Name, and folder of its corpus.
    pub name: &'a str,
    /// `CARGO_MANIFEST_DIR` of the crate that it is in.
    pub crate_dir: &'a str,
    /// What the corpus is made of: file names and contents. Written only on demand, so that bytes
    /// of earlier versions stay. Names that begin with `good` must be accepted, with `bad` refused.
    pub seeds: Vec<(&'a str, Vec<u8>)>,
    /// Without it nothing behind a checksum would ever be reached.
    pub repair: Option<Repair<'a>>,
    /// Memory that an input may cost, in bytes, and as many times its own length more.
    pub memory_bytes_max: (usize, usize),
    /// True if it accepts the bytes. Must not panic.
    pub run: &'a dyn Fn(&[u8]) -> bool,
}

/// Shows the input if the decoder panics.
struct Blame<'a> {
    name: &'a str,
    what: String,
    bytes: &'a [u8],
}

impl Drop for Blame<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("{}, {}: {} bytes: {hex}", self.name, self.what, self.bytes.len());
        }
    }
}

impl Target<'_> {
    fn corpus_dir(&self) -> PathBuf {
        [self.crate_dir, "fuzz", "corpus", self.name].iter().collect()
    }

    fn one(&self, what: String, bytes: &[u8]) -> bool {
        let blame = Blame { name: self.name, what, bytes };
        let (accepted, peak) = peak_bytes(|| (self.run)(bytes));
        let (base, times) = self.memory_bytes_max;
        let limit = base + times * bytes.len();
        assert!(
            peak <= limit,
            "{} bytes of input took {peak} of memory, limit {limit}",
            bytes.len()
        );
        drop(blame);
        accepted
    }

    /// Runs the corpus, then mutations of it: a fixed number from fixed seeds, or for as many
    /// seconds as `BB_FUZZ_SECONDS` says from the seed `BB_FUZZ_SEED`.
    ///
    /// # Panics
    /// If the decoder does, if it takes too much memory, or if the corpus is not what it was.
    pub fn check(&self) {
        if std::env::var_os("BB_FUZZ_WRITE_CORPUS").is_some() {
            self.write_corpus();
        }
        let corpus = self.read_corpus();
        for (name, bytes) in &corpus {
            let accepted = self.one(format!("corpus file {name}"), bytes);
            assert!(!name.starts_with("good") || accepted, "{name} was accepted once");
            assert!(!name.starts_with("bad") || !accepted, "{name} was never accepted");
        }
        for (name, bytes) in &self.seeds {
            let accepted = self.one(format!("seed {name}"), bytes);
            assert!(!name.starts_with("good") || accepted, "{name}: what is written is read");
        }
        let inputs: Vec<Vec<u8>> = corpus.into_iter().map(|(_, bytes)| bytes).collect();
        let (runs, accepted) = self.mutations(&inputs);
        println!("{}: {} files, {runs} mutations, {accepted} accepted", self.name, inputs.len());
        // Otherwise all of it ended at a checksum.
        assert!(self.repair.is_none() || accepted > 0, "no mutation got past the checksums");
    }

    fn mutations(&self, inputs: &[Vec<u8>]) -> (u64, u64) {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seconds = number("BB_FUZZ_SECONDS").map(Duration::from_secs);
        let first = number("BB_FUZZ_SEED").unwrap_or(1);
        let start = now();
        let (mut runs, mut accepted) = (0, 0);
        while seconds.map_or(runs < MUTATIONS, |seconds| start.elapsed() < seconds) {
            let seed = first.wrapping_add(runs);
            let mut random = Rng::with_seed(seed);
            let mut bytes = inputs[random.usize(..inputs.len())].clone();
            mutate(&mut random, &mut bytes, inputs);
            if let Some(repair) = self.repair.filter(|_| random.u8(..8) > 0) {
                repair(&mut bytes);
            }
            accepted += u64::from(self.one(format!("BB_FUZZ_SEED={seed}"), &bytes));
            runs += 1;
        }
        (runs, accepted)
    }

    fn read_corpus(&self) -> Vec<(String, Vec<u8>)> {
        let dir = self.corpus_dir();
        let entries = std::fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("{}: {error} (./x fuzz --write-corpus)", dir.display()));
        let mut corpus: Vec<_> = entries
            .map(|entry| {
                let path = entry.expect("readable").path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (name, std::fs::read(&path).expect("readable"))
            })
            .collect();
        corpus.sort();
        assert!(!corpus.is_empty(), "{} is empty", dir.display());
        corpus
    }

    fn write_corpus(&self) {
        let dir = self.corpus_dir();
        std::fs::create_dir_all(&dir).expect("a folder for the corpus");
        for (name, bytes) in &self.seeds {
            std::fs::write(dir.join(name), bytes).expect("a file of the corpus");
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a tool for people: --minutes are real ones")]
fn now() -> Instant {
    Instant::now()
}

/// Writes the checksum that `sum` makes of `bytes` with zeros in its place; nothing if they are
/// too short to have one.
pub fn crc_slot(bytes: &mut [u8], at: usize, sum: impl Fn(&[u8]) -> u32) {
    if let Some(slot) = bytes.get_mut(at..at + 4) {
        slot.fill(0);
        let crc = sum(bytes).to_le_bytes();
        bytes[at..at + 4].copy_from_slice(&crc);
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    fn target<'a>(run: &'a dyn Fn(&[u8]) -> bool, dir: &'a str) -> Target<'a> {
        let seeds = vec![("good-three", vec![3, 1, 2, 3])];
        let memory_bytes_max = (1000, 16);
        Target { name: "self", crate_dir: dir, seeds, repair: None, memory_bytes_max, run }
    }

    /// Length byte, then so many bytes.
    fn decode(bytes: &[u8], careful: bool) -> bool {
        let Some((len, rest)) = bytes.split_first() else { return false };
        let len = usize::from(*len);
        if careful { rest.len() == len } else { rest[..len].len() == rest.len() }
    }

    #[test]
    fn a_careless_decoder_is_found_and_a_careful_one_passes() {
        let dir = env!("CARGO_MANIFEST_DIR");
        target(&|bytes| decode(bytes, true), dir).check();
        let careless = std::panic::catch_unwind(|| {
            target(&|bytes| decode(bytes, false), env!("CARGO_MANIFEST_DIR")).check();
        });
        assert!(careless.is_err(), "the slice is out of range");
    }

    #[test]
    fn a_decoder_that_believes_a_length_is_found() {
        let greedy = |bytes: &[u8]| {
            let len = bytes.first().copied().unwrap_or_default();
            std::hint::black_box(vec![0_u8; usize::from(len) << 10]);
            true
        };
        let caught = std::panic::catch_unwind(|| {
            target(&greedy, env!("CARGO_MANIFEST_DIR")).check();
        });
        assert!(caught.is_err(), "255 KiB for a few bytes");
    }
}
