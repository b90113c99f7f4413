//! Which devices get the blocks of a parity group.

use bb_proto::{DeviceId, PgId};

use crate::geometry::Apart;
use crate::hash::mix;

/// How members are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// Rendezvous hash of the group's id over the nodes, then over the devices of the node: the same
    /// everywhere, and a node that goes moves only the blocks that it had.
    Deterministic,
    /// The less loaded of two random candidates, on different nodes while there are such, again and
    /// again.
    LeastLoaded,
}

/// What a choice has to keep to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// How members are chosen.
    pub placement: Placement,
    /// What keeps them apart: see [`crate::layout`].
    pub apart: Apart,
}

/// A device that can take a block, with what is known of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The device.
    pub device: DeviceId,
    /// The node that drives it.
    pub node: u32,
    /// Load, 0 idle to 1000 full (more where it is clearly slower than that), as reported or
    /// measured by who chooses; see there for what goes into it.
    pub load: u32,
}

/// Draws a number below its argument.
pub type Chance<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Chooses `count` different devices, each on another node ([`Apart::Nodes`]), or as few on a node
/// as possible ([`Apart::Devices`]). Fewer than `count` come back where there are not enough.
pub fn choose_members(
    rules: Rules,
    pg: PgId,
    candidates: &[Candidate],
    count: usize,
    chance: Chance<'_>,
) -> Vec<DeviceId> {
    choose_members_beside(rules, pg, candidates, &[], count, chance)
}

/// The same for a group that has blocks already, one on each of the nodes `taken` (a node twice has
/// two): they count as chosen. For a member that is replaced.
pub fn choose_members_beside(
    rules: Rules,
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
        if fewest > 0 && rules.apart == Apart::Nodes {
            break;
        }
        let open: Vec<usize> = (0..left.len()).filter(|at| taken(&left[*at]) == fewest).collect();
        let at = match rules.placement {
            Placement::Deterministic => heaviest(pg, &left, &open),
            Placement::LeastLoaded => less_loaded_of_two(&left, &open, chance),
        };
        chosen.push(left.swap_remove(at));
    }
    chosen.into_iter().map(|c| c.device).collect()
}

fn heaviest(pg: PgId, left: &[Candidate], open: &[usize]) -> usize {
    let group = digest(pg);
    let weight = |c: &Candidate| (member(group, FOR_NODE, c.node), c.node);
    let device = |c: &Candidate| (member(group, FOR_DEVICE, c.device.0), c.device);
    let best = open.iter().copied().max_by_key(|at| (weight(&left[*at]), device(&left[*at])));
    best.unwrap_or(open[0])
}

fn less_loaded_of_two(left: &[Candidate], open: &[usize], chance: Chance<'_>) -> usize {
    let mut draw = |bound: usize| usize::try_from(chance(bound as u64)).unwrap_or(0) % bound;
    let first = draw(open.len());
    if open.len() == 1 {
        return open[first];
    }
    // Two different ones: else a loaded device would win against itself. Of two nodes where there are
    // two: devices of a slow server are slow together, and each would win against its sister.
    let other_node = |at: &usize| left[open[*at]].node != left[open[first]].node;
    let others = || (0..open.len()).filter(other_node);
    let any = (first + 1) % open.len();
    let second = match others().count() {
        0 => (any + draw(open.len() - 1)) % open.len(),
        count => others().nth(draw(count)).unwrap_or(any),
    };
    let (a, b) = (open[first], open[second]);
    if left[b].load < left[a].load { b } else { a }
}

const FOR_NODE: u64 = 0x9E37_79B9_7F4A_7C15;
const FOR_DEVICE: u64 = 0xC2B2_AE3D_27D4_EB4F;

fn digest(pg: PgId) -> u64 {
    let id = u64::from(pg.sequence) << 32 | u64::from(pg.home.0);
    mix(mix(mix(pg.session.0) ^ pg.slot.0.rotate_left(17)) ^ id)
}

/// Weight of a node or device for a group.
fn member(group: u64, purpose: u64, number: u32) -> u64 {
    mix(group ^ mix(u64::from(number).wrapping_add(purpose)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_proto::{PartitionId, SessionId, Tick};

    fn pg(sequence: u32) -> PgId {
        PgId { slot: Tick(5), session: SessionId(6), sequence, home: PartitionId(1) }
    }

    const fn rules(placement: Placement, apart: Apart) -> Rules {
        Rules { placement, apart }
    }

    fn candidates(nodes: u32, per_node: u32) -> Vec<Candidate> {
        (0..nodes * per_node)
            .map(|i| Candidate { device: DeviceId(i), node: i % nodes, load: 0 })
            .collect()
    }

    #[test]
    fn no_node_gets_two_blocks_where_nodes_keep_blocks_apart() {
        let all = candidates(4, 3);
        for sequence in 0..200 {
            for placement in [Placement::Deterministic, Placement::LeastLoaded] {
                let mut state = u64::from(sequence);
                let mut chance = |bound: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) % bound
                };
                let rules = rules(placement, Apart::Nodes);
                let got = choose_members(rules, pg(sequence), &all, 5, &mut chance);
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
            let rules = rules(Placement::Deterministic, Apart::Devices);
            let got = choose_members(rules, pg(sequence), &all, 3, &mut never);
            let again = choose_members(rules, pg(sequence), &all, 3, &mut never);
            assert_eq!(got, again);
            assert_eq!(got.len(), 3);
            got.iter().for_each(|d| hits[d.0 as usize] += 1);
        }
        assert!(hits.iter().all(|h| (2_700..3_300).contains(h)), "{hits:?}");
    }

    #[test]
    fn a_loaded_node_gets_no_block_while_others_suffice() {
        // Two devices on each of four nodes; both of the last are slow.
        let mut all = candidates(4, 2);
        all.iter_mut().filter(|c| c.node == 3).for_each(|c| c.load = 900);
        let mut state = 7_u64;
        let mut chance = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        let rules = rules(Placement::LeastLoaded, Apart::Nodes);
        for sequence in 0..1_000 {
            let got = choose_members(rules, pg(sequence), &all, 3, &mut chance);
            let mut nodes: Vec<u32> = got.iter().map(|d| d.0 % 4).collect();
            nodes.sort_unstable();
            assert_eq!(nodes, [0, 1, 2]);
        }
        let all_of_them = choose_members(rules, pg(0), &all, 4, &mut chance);
        assert_eq!(all_of_them.len(), 4, "a slow one is better than none");
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
        let rules = rules(Placement::LeastLoaded, Apart::Devices);
        for _ in 0..20 {
            let first = choose_members(rules, pg(1), &all, 1, &mut chance);
            assert_ne!(first, [DeviceId(0)]);
        }
        assert_eq!(choose_members(rules, pg(1), &all, 9, &mut chance).len(), 4);
    }
}
