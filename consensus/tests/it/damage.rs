//! Bytes that are not what a voter wrote: from a device, and from the network.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use crate::world::{World, seeds, simulate, tight};
use bb_consensus::{
    Consensus, DecodeError, Durable, Machine, Net, Position, RecoverError, Recovered, Role,
    Settings, SnapshotRefused, StartError, StepError, StopReason, Store, StoreFailed, VoterNumber,
};
use bb_runtime::Rt;
use proptest::prelude::*;

const HEADER_BYTES: usize = 24;

/// Puts the right checksum on wrong bytes.
fn sign(bytes: &mut [u8]) {
    let body_len = u32::try_from(bytes.len() - HEADER_BYTES).unwrap();
    bytes[12..16].copy_from_slice(&body_len.to_le_bytes());
    bytes[8..12].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// What a voter's disk holds after some work: a checkpoint, then records.
fn written() -> Vec<(bool, Vec<u8>)> {
    simulate(3, |rt| async move {
        let world = World::new(&rt, tight(), 0);
        world.create(3).await;
        for _ in 0..70 {
            world.propose_somewhere().await;
        }
        let disk = world.disks.borrow()[&VoterNumber(1)].clone();
        disk.contents()
    })
    .0
}

fn replay(items: &[(bool, Vec<u8>)]) -> Result<Recovered, RecoverError> {
    let mut recovered = Recovered::new();
    for (is_checkpoint, bytes) in items {
        if *is_checkpoint {
            recovered.snapshot(bytes)?;
        } else {
            recovered.record(bytes)?;
        }
    }
    Ok(recovered)
}

#[test]
fn any_flipped_bit_and_any_cut_is_an_error() {
    let items = written();
    assert!(items.len() > 10 && items[0].0);
    let recovered = replay(&items).unwrap();
    assert_eq!(recovered.voter(), Some(VoterNumber(1)));
    assert!(recovered.commit() > 40 && recovered.last_index() >= recovered.commit());
    for (at, (_, bytes)) in items.iter().enumerate() {
        for bit in 0..bytes.len() * 8 {
            let mut damaged = vec![items[at].clone()];
            damaged[0].1[bit / 8] ^= 1 << (bit % 8);
            assert!(replay(&damaged).is_err(), "item {at}, bit {bit}");
        }
        for len in 0..bytes.len() {
            let cut = (items[at].0, bytes[..len].to_vec());
            assert!(replay(&[cut]).is_err(), "item {at} cut at {len}");
        }
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    for mut item in written() {
        item.1[4..6].copy_from_slice(&2u16.to_le_bytes());
        sign(&mut item.1);
        let error = replay(&[item]).unwrap_err();
        assert_eq!(error, RecoverError::Decode(DecodeError::Newer { found: 2 }));
    }
}

#[test]
fn a_record_that_is_missing_from_the_middle_is_damage() {
    let items = written();
    let (mut noticed, mut harmless) = (0, 0);
    for gone in 1..items.len() - 1 {
        let mut rest = items.clone();
        rest.remove(gone);
        match replay(&rest) {
            Err(RecoverError::Damaged { .. }) => noticed += 1,
            Err(error) => panic!("{error}"),
            // It held only what a later one says too.
            Ok(recovered) => {
                harmless += 1;
                assert_eq!(recovered.last_index(), replay(&items).unwrap().last_index());
            }
        }
    }
    assert!(noticed > harmless, "{noticed} {harmless}");
}

#[test]
fn a_record_of_another_voter_is_refused() {
    let mut items = written();
    let last = items.last_mut().unwrap();
    last.1[16..24].copy_from_slice(&7u64.to_le_bytes());
    sign(&mut last.1);
    let error = replay(&items).unwrap_err();
    let (expected, found) = (VoterNumber(1), VoterNumber(7));
    assert_eq!(error, RecoverError::OtherVoter { expected, found });
}

proptest! {
    #[test]
    fn garbage_with_a_good_checksum_is_never_a_panic(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        thread_local! {
            static ITEMS: Vec<(bool, Vec<u8>)> = written();
        }
        let mut item = ITEMS.with(|items| items[pick.index(items.len())].clone());
        for (at, value) in changes {
            let at = HEADER_BYTES + at.index(item.1.len() - HEADER_BYTES);
            item.1[at] = value;
        }
        if cut {
            item.1.truncate(HEADER_BYTES + len.index(item.1.len() - HEADER_BYTES));
        }
        sign(&mut item.1);
        // Whatever it says: read or refused.
        let _ = replay(&[item]);
    }
}

#[test]
fn messages_that_are_not_messages_are_errors() {
    simulate(1, |rt| async move {
        let world = World::new(&rt, tight(), 0);
        *world.tapped.borrow_mut() = Some(Vec::new());
        world.create(3).await;
        world.propose_somewhere().await;
        let (from, to, bytes) = world.tapped.borrow().as_ref().unwrap()[0].clone();
        let voter = world.get(to).unwrap();
        assert!(matches!(voter.step(from, &[]), Err(StepError::Decode(_))));
        assert!(matches!(voter.step(from, &bytes[1..]), Err(StepError::Decode(_))));
        let third = VoterNumber(6 - from.0 - to.0);
        let false_name = voter.step(third, &bytes).unwrap_err();
        assert_eq!(false_name, StepError::FalseName { from: third, claimed: from });
        let elsewhere = world.get(third).unwrap().step(from, &bytes).unwrap_err();
        assert_eq!(elsewhere, StepError::NotForMe { to, me: third });
        let mut newer = bytes.clone();
        newer[4] = 9;
        sign(&mut newer);
        let newer = voter.step(from, &newer).unwrap_err();
        assert_eq!(newer, StepError::Decode(DecodeError::Newer { found: 9 }));
        // Types that only a voter's own code may use: all numbers that stand for none.
        for kind in (0..=u16::MAX).filter(|kind| !(1..=10).contains(kind)) {
            let mut local = bytes.clone();
            local[HEADER_BYTES + 56..HEADER_BYTES + 58].copy_from_slice(&kind.to_le_bytes());
            sign(&mut local);
            assert!(voter.step(from, &local).is_err(), "kind {kind}");
        }
    });
}

/// Messages of a real run with fields changed and a good checksum, in any order: a voter refuses
/// them, believes them, or stops, and never panics. (What it believes may well be wrong: peers are
/// authenticated.)
#[test]
fn a_peer_that_sends_lies_makes_nobody_panic() {
    for seed in seeds(60) {
        let (told, _) = simulate(seed, |rt| async move {
            let world = World::new(&rt, tight(), 0);
            *world.tapped.borrow_mut() = Some(Vec::new());
            world.create(3).await;
            world.start(VoterNumber(4));
            let mut told = 0;
            for round in 0..12 {
                for _ in 0..10 {
                    if let Some(leader) = world.leader() {
                        world.propose(&leader).await;
                    }
                }
                if round == 6
                    && let Some(leader) = world.leader()
                {
                    let wanted = BTreeSet::from([1, 2, 4].map(VoterNumber));
                    let change = leader.change_voters(wanted);
                    let _ = rt.timeout(Duration::from_secs(2), change).await;
                }
                told += lies(&rt, &world);
                rt.sleep(Duration::from_millis(rt.random_below(3000))).await;
                for number in (1..=4).map(VoterNumber) {
                    if world.get(number).is_some_and(|voter| voter.stopped().is_some()) {
                        world.crash(number);
                        world.disks.borrow_mut().remove(&number);
                        world.start(number);
                    }
                }
            }
            told
        });
        assert!(told > 100, "seed {seed}: only {told} were taken");
    }
}

fn lies(rt: &Rt, world: &Rc<World>) -> usize {
    let tapped = world.tapped.borrow();
    let tapped = tapped.as_ref().unwrap();
    let mut told = 0;
    for _ in 0..if tapped.is_empty() { 0 } else { 60 } {
        let pick = usize::try_from(rt.random_below(tapped.len() as u64)).unwrap();
        let (from, to, mut bytes) = tapped[pick].clone();
        let Some(voter) = world.get(to) else { continue };
        for _ in 0..=rt.random_below(2) {
            // A number among the fixed fields, or a byte anywhere.
            let small = [rt.random_below(4), rt.random_below(200), rt.random_u64() >> 2];
            let value = small[usize::try_from(rt.random_below(3)).unwrap()];
            let words = (bytes.len() - HEADER_BYTES) / 8;
            if rt.random_below(3) > 0 && words > 8 {
                let at = HEADER_BYTES + 8 * usize::try_from(1 + rt.random_below(6)).unwrap();
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            } else {
                let len = (bytes.len() - HEADER_BYTES) as u64;
                let at = HEADER_BYTES + usize::try_from(rt.random_below(len)).unwrap();
                bytes[at] = value.to_le_bytes()[0];
            }
        }
        // Now and then from the present: the term of the receiver.
        if rt.random_below(2) == 0 && bytes.len() >= HEADER_BYTES + 64 {
            bytes[HEADER_BYTES + 8..HEADER_BYTES + 16].copy_from_slice(&voter.term().to_le_bytes());
        }
        sign(&mut bytes);
        told += usize::from(voter.step(from, &bytes).is_ok());
    }
    told
}

struct Nowhere;

impl Net for Nowhere {
    fn send(&self, _to: VoterNumber, _messages: Vec<Vec<u8>>) {}
}

/// Works until it is told not to.
#[derive(Default)]
struct Failing {
    broken: std::cell::Cell<bool>,
}

impl Failing {
    fn outcome(&self) -> Durable {
        let broken = self.broken.get();
        let error = StoreFailed { reason: "the device is gone".to_owned() };
        Box::pin(std::future::ready(if broken { Err(error) } else { Ok(()) }))
    }
}

impl Store for Failing {
    fn append(&self, _records: Vec<Vec<u8>>) -> Durable {
        self.outcome()
    }

    fn checkpoint(&self, _snapshot: Vec<u8>) -> Durable {
        self.outcome()
    }
}

/// Refuses every snapshot but the empty one.
struct Picky;

impl Machine for Picky {
    fn apply(&mut self, _: Position, data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        b"from the future".to_vec()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotRefused> {
        let refused = SnapshotRefused { reason: "newer".to_owned() };
        if snapshot.is_empty() { Ok(()) } else { Err(refused) }
    }
}

struct Echo;

impl Machine for Echo {
    fn apply(&mut self, _: Position, data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _snapshot: &[u8]) -> Result<(), SnapshotRefused> {
        Ok(())
    }
}

#[test]
fn a_store_that_fails_stops_the_voter_and_nothing_is_acknowledged() {
    simulate(1, |rt| async move {
        let (number, store) = (VoterNumber(1), Rc::new(Failing::default()));
        let recovered =
            Consensus::create(number, &BTreeSet::from([number]), &Echo, &*store).await.unwrap();
        let voter = Consensus::start(
            &rt,
            number,
            store.clone(),
            Rc::new(Nowhere),
            Box::new(Echo),
            recovered,
            Settings::default(),
        )
        .unwrap();
        rt.sleep(Duration::from_millis(10)).await;
        assert_eq!(voter.role(), Role::Leader);
        assert_eq!(voter.propose(b"one".to_vec()).await.unwrap(), b"one");
        store.broken.set(true);
        voter.propose(b"two".to_vec()).await.unwrap_err();
        assert!(matches!(voter.stopped(), Some(StopReason::Store(_))));
        assert_eq!(voter.role(), Role::Follower);
        voter.read_barrier().await.unwrap_err();
        voter.propose(b"three".to_vec()).await.unwrap_err();
        assert!(matches!(voter.step(VoterNumber(2), &[]), Err(StepError::Stopped(_))));
    });
}

#[test]
fn what_can_not_be_started_says_why() {
    simulate(1, |rt| async move {
        let (number, store) = (VoterNumber(1), Rc::new(Failing::default()));
        let alone = BTreeSet::from([number]);
        let start = |number, recovered, settings| {
            let machine: Box<dyn Machine> = Box::new(Picky);
            let (store, net) = (store.clone(), Rc::new(Nowhere));
            Consensus::start(&rt, number, store, net, machine, recovered, settings).err().unwrap()
        };
        let created = Consensus::create(number, &alone, &Picky, &*store).await.unwrap();
        let error = start(number, created, Settings::default());
        assert!(matches!(error, StartError::Machine(_)), "{error}");
        let created = Consensus::create(number, &alone, &Picky, &*store).await.unwrap();
        let error = start(VoterNumber(2), created, Settings::default());
        assert!(matches!(error, StartError::Recover(RecoverError::OtherVoter { .. })), "{error}");
        let error = start(VoterNumber(0), Recovered::new(), Settings::default());
        assert_eq!(error, StartError::Number);
        let silly = Settings { message_bytes_max: 1000, ..Settings::default() };
        let error = start(number, Recovered::new(), silly);
        assert!(matches!(error, StartError::Settings(_)), "{error}");
        assert!(Consensus::create(VoterNumber(2), &alone, &Picky, &*store).await.is_err());
        store.broken.set(true);
        assert!(Consensus::create(number, &alone, &Picky, &*store).await.is_err());
    });
}
