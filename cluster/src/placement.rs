//! Which devices get the blocks of a parity group.

use bb_proto::{DeviceId, PgId};

/// How members are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Rendezvous hash of the group's id over the candidates: the same everywhere.
    Deterministic,
    /// The least loaded of two random candidates, again and again.
    LeastLoaded,
}

/// A device that can take a block, with what is known of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The device.
    pub device: DeviceId,
    /// The node that drives it: while there are nodes enough, one block per node.
    pub node: u32,
    /// Load, 0 idle to 1000 full, as the server reported; see there for what goes into it.
    pub load: u32,
}

/// Draws a number below its argument.
pub type Chance<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Chooses `count` different devices, on different nodes while there are nodes enough. Fewer than
/// `count` come back where there are not enough candidates.
pub fn choose_members(
    placement: Placement,
    pg: PgId,
    candidates: &[Candidate],
    count: usize,
    chance: Chance<'_>,
) -> Vec<DeviceId> {
    choose_members_beside(placement, pg, candidates, &[], count, chance)
}

/// The same for a group that has blocks already, one on each of the nodes `taken` (a node twice has
/// two): they count as chosen. For a member that is replaced.
pub fn choose_members_beside(
    placement: Placement,
    pg: PgId,
    candidates: &[Candidate],
    taken: &[u32],
    count: usize,
    chance: Chance<'_>,
) -> Vec<DeviceId> {
    let before = |node: u32| taken.iter().filter(|other| **other == node).count();
    let mut left: Vec<Candidate> = candidates.to_vec();
    let mut chosen: Vec<Candidate> = Vec::with_capacity(count);
    while chosen.len() < count && !left.is_empty() {
        // How often each candidate's node is taken already; only the least taken nodes compete.
        let taken = |c: &Candidate| {
            before(c.node) + chosen.iter().filter(|other| other.node == c.node).count()
        };
        let fewest = left.iter().map(&taken).min().unwrap_or(0);
        let open: Vec<usize> = (0..left.len()).filter(|at| taken(&left[*at]) == fewest).collect();
        let at = match placement {
            Placement::Deterministic => open
                .iter()
                .copied()
                .max_by_key(|at| (score(pg, left[*at].device), left[*at].device))
                .unwrap_or(open[0]),
            Placement::LeastLoaded => {
                let mut draw =
                    || open[usize::try_from(chance(open.len() as u64)).unwrap_or(0) % open.len()];
                let (a, b) = (draw(), draw());
                if left[b].load < left[a].load { b } else { a }
            }
        };
        chosen.push(left.swap_remove(at));
    }
    chosen.into_iter().map(|c| c.device).collect()
}

/// Weight of a device for a group: a 64-bit mix (the finaliser of SplitMix64) over both names.
fn score(pg: PgId, device: DeviceId) -> u64 {
    let mut value = pg.session.0
        ^ pg.slot.0.rotate_left(17)
        ^ (u64::from(pg.sequence) << 32 | u64::from(pg.home.0)).rotate_left(41)
        ^ u64::from(device.0).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_proto::{PartitionId, SessionId, Tick};

    fn pg(sequence: u32) -> PgId {
        PgId { slot: Tick(5), session: SessionId(6), sequence, home: PartitionId(1) }
    }

    fn candidates(nodes: u32, per_node: u32) -> Vec<Candidate> {
        (0..nodes * per_node)
            .map(|i| Candidate { device: DeviceId(i), node: i % nodes, load: 0 })
            .collect()
    }

    #[test]
    fn no_node_gets_two_blocks_while_there_are_nodes_enough() {
        let all = candidates(4, 3);
        for sequence in 0..200 {
            for placement in [Placement::Deterministic, Placement::LeastLoaded] {
                let mut state = u64::from(sequence);
                let mut chance = |bound: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) % bound
                };
                let got = choose_members(placement, pg(sequence), &all, 4, &mut chance);
                let mut nodes: Vec<u32> = got.iter().map(|d| d.0 % 4).collect();
                nodes.sort_unstable();
                assert_eq!(nodes, [0, 1, 2, 3]);
            }
        }
    }

    #[test]
    fn deterministic_placement_spreads_and_repeats() {
        let all = candidates(1, 8);
        let mut hits = [0_u32; 8];
        for sequence in 0..8_000 {
            let mut never = |_| 0;
            let got = choose_members(Placement::Deterministic, pg(sequence), &all, 3, &mut never);
            let again = choose_members(Placement::Deterministic, pg(sequence), &all, 3, &mut never);
            assert_eq!(got, again);
            assert_eq!(got.len(), 3);
            got.iter().for_each(|d| hits[d.0 as usize] += 1);
        }
        assert!(hits.iter().all(|h| (2_700..3_300).contains(h)), "{hits:?}");
    }

    #[test]
    fn a_loaded_device_is_avoided_and_too_few_candidates_are_no_panic() {
        let mut all = candidates(1, 4);
        all[0].load = 900;
        let mut turn = 0;
        let mut chance = |bound| {
            turn += 1;
            turn % bound
        };
        let first = choose_members(Placement::LeastLoaded, pg(1), &all, 1, &mut chance);
        assert_ne!(first, [DeviceId(0)]);
        assert_eq!(choose_members(Placement::LeastLoaded, pg(1), &all, 9, &mut chance).len(), 4);
    }
}
