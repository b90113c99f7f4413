//! Whether a figure can be believed: the kernel's counters say how many bytes the servers wrote, the
//! cluster says in which blocks.

use super::cluster::Geometry;
use super::process::Counters;
use super::sample::Placed;
use super::stores::{Store, written};

/// What is known of a row that ended with everything durable.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// What the row claims to have written with.
    pub geometry: Geometry,
    /// Bytes that the user wrote, each once.
    pub user_bytes: u64,
    /// Bytes that the kernel counted for the servers, devices and logs together.
    pub written_bytes: u64,
    /// What the cluster says of itself.
    pub placed: Option<Placed>,
    /// Space that removed files may have given back meanwhile, as little as a row waits for.
    pub left_bytes: u64,
    /// Full groups: their blocks have the size that follows from N.
    pub full_groups: bool,
}

/// A share of blocks may be smaller: the last group of each process, and commits at a close.
const BLOCK_TOLERANCE: f64 = 0.9;
/// Difference of what a server and the kernel count, in percent of the kernel's count, ...
const STORE_TOLERANCE_PERCENT: u64 = 3;
/// ... or where that is less.
const STORE_SLACK_BYTES: u64 = 2 << 20;

/// All that is wrong with it.
pub fn complaints(claim: &Claim) -> Vec<String> {
    let mut all = Vec::new();
    let needed = claim.user_bytes as f64 * claim.geometry.expansion();
    if (claim.written_bytes as f64) < needed {
        all.push(format!(
            "{} of {needed:.0} bytes reached the devices: {} needs {:.2} times the user's {}",
            claim.written_bytes,
            claim.geometry,
            claim.geometry.expansion(),
            claim.user_bytes
        ));
    }
    let Some(placed) = claim.placed else { return all };
    if (placed.data, placed.parity) != (claim.geometry.data, claim.geometry.parity) {
        all.push(format!(
            "the cluster writes {}+{}, the row claims {}",
            placed.data, placed.parity, claim.geometry
        ));
    }
    if claim.full_groups {
        all.extend(blocks(claim, &placed, needed));
    }
    all
}

/// What servers say of their devices and logs must be what the kernel counted for their processes. It
/// counts a little more: lines of the server's own log, and what it writes to the backing file system;
/// and what was under way when one of the two was read is in one of them only.
pub fn disagreements(servers: &[(String, Counters)], stores: &[Store]) -> Vec<String> {
    let mut all = Vec::new();
    for (name, counters) in servers {
        let (kernel, own) = (counters.write_bytes, written(stores, name));
        let slack = STORE_SLACK_BYTES.max(kernel / 100 * STORE_TOLERANCE_PERCENT);
        if own.abs_diff(kernel) > slack {
            all.push(format!(
                "{name} says that {own} bytes were written to its devices and log, the kernel {kernel}"
            ));
        }
    }
    all
}

/// N+K blocks hold N blocks of data, so the space that was given to blocks says (N+K)/N; and a full
/// group has 2 MiB of data, so their size says N.
fn blocks(claim: &Claim, placed: &Placed, needed: f64) -> Option<String> {
    let (used, count) = (placed.used_bytes as f64, placed.blocks as f64);
    if used + (claim.left_bytes as f64) < needed {
        return Some(format!("blocks of {used} bytes hold what needs {needed:.0}"));
    }
    let mean = used / count;
    let expected = claim.geometry.block_bytes() as f64;
    // Another geometry has blocks of half or of twice the size, or another expansion.
    let another = mean < expected * BLOCK_TOLERANCE || mean > expected / BLOCK_TOLERANCE;
    another.then(|| {
        format!("blocks have {mean:.0} bytes, full groups of {} have {expected}", claim.geometry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { data: 2, parity: 1 };

    fn claim() -> Claim {
        let placed =
            Placed { data: 2, parity: 1, used_bytes: 150 << 20, blocks: 150, ..Placed::default() };
        Claim {
            geometry: GEOMETRY,
            user_bytes: 100 << 20,
            written_bytes: 151 << 20,
            placed: Some(placed),
            left_bytes: 0,
            full_groups: true,
        }
    }

    #[test]
    fn space_that_comes_back_meanwhile_is_not_taken_for_missing_blocks() {
        let placed = Placed { used_bytes: 147 << 20, blocks: 147, ..claim().placed.unwrap() };
        let with = |left_bytes| Claim { placed: Some(placed), left_bytes, ..claim() };
        assert_eq!(complaints(&with(3 << 20)).len(), 0);
        assert_eq!(complaints(&with(2 << 20)).len(), 1);
    }

    #[test]
    fn an_honest_row_passes() {
        assert_eq!(complaints(&claim()), Vec::<String>::new());
    }

    #[test]
    fn a_row_whose_bytes_did_not_reach_the_devices_fails() {
        assert_eq!(complaints(&Claim { written_bytes: 149 << 20, ..claim() }).len(), 1);
        assert_eq!(complaints(&Claim { written_bytes: 0, placed: None, ..claim() }).len(), 1);
    }

    #[test]
    fn what_a_server_says_of_its_devices_must_be_what_the_kernel_counted() {
        let own = |bytes: u64| {
            let half = |name: &str| Store {
                process: "bbd1".to_owned(),
                name: name.to_owned(),
                write_bytes: bytes / 2,
                ..Store::default()
            };
            let kernel = Counters { write_bytes: 1 << 30, ..Counters::default() };
            disagreements(&[("bbd1".to_owned(), kernel)], &[half("log"), half("device 1")]).len()
        };
        assert_eq!(own(1 << 30), 0);
        assert_eq!(own((1 << 30) / 100 * 98), 0);
        assert_eq!(own((1 << 30) / 100 * 96), 1);
        assert_eq!(own((1 << 30) / 100 * 104), 1);
        assert_eq!(own(0), 1);
    }

    #[test]
    fn a_row_with_another_geometry_fails() {
        let placed = claim().placed.unwrap();
        let with = |placed| complaints(&Claim { placed: Some(placed), ..claim() });
        // Mirrored 1+1 is what the map says.
        assert_eq!(with(Placed { data: 1, ..placed }).len(), 1);
        // Blocks of 512 KiB are those of 4+2.
        assert_eq!(with(Placed { blocks: 300, ..placed }).len(), 1);
        // No parity at all.
        assert_eq!(with(Placed { used_bytes: 100 << 20, blocks: 100, ..placed }).len(), 1);
        // Without a check of full groups, small blocks are no matter.
        let small = Placed { blocks: 3000, ..placed };
        let claim = Claim { placed: Some(small), full_groups: false, ..claim() };
        assert!(complaints(&claim).is_empty());
    }
}
