//! A group in one thread, on virtual time: disks, a bad network, machines that compare notes.

mod disk;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_consensus::{
    Consensus, Machine, Net, Position, Recovered, Role, Settings, SnapshotRefused, VoterNumber,
};
use bb_runtime::{Executor, Rt};

pub use disk::{Disk, DiskStore};

/// What all machines together have seen: the one order of commands.
#[derive(Default)]
pub struct Truth {
    pub history: Vec<u64>,
    seen: BTreeSet<u64>,
    pub acknowledged: usize,
    leaders: BTreeMap<u64, VoterNumber>,
    pub broken: Option<String>,
}

impl Truth {
    fn applied(&mut self, position: usize, id: u64) {
        match self.history.get(position) {
            Some(known) if *known == id => {}
            Some(known) => self.complain(format!("at {position}: {known} and {id}")),
            None if position > self.history.len() => {
                self.complain(format!("a gap before {position}"));
            }
            None => {
                self.history.push(id);
                if !self.seen.insert(id) {
                    self.complain(format!("{id} is applied twice"));
                }
            }
        }
    }

    /// The first one is kept: planted errors are looked for by it.
    pub fn complain(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }
}

/// A list of commands; each outcome is its position.
pub struct ListMachine {
    truth: Rc<RefCell<Truth>>,
    list: Rc<RefCell<Vec<u64>>>,
    last_index: u64,
    padding: usize,
}

impl Machine for ListMachine {
    fn apply(&mut self, Position { index, .. }: Position, data: &[u8]) -> Vec<u8> {
        if index <= self.last_index {
            self.truth.borrow_mut().complain(format!("{index} after {}", self.last_index));
        }
        self.last_index = index;
        // A test that tells lies may change its length too.
        let id = data.first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
        let position = self.list.borrow().len();
        self.list.borrow_mut().push(id);
        self.truth.borrow_mut().applied(position, id);
        position.to_le_bytes().to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        let list = self.list.borrow();
        let mut bytes = self.last_index.to_le_bytes().to_vec();
        bytes.extend(list.iter().flat_map(|id| id.to_le_bytes()));
        bytes.resize(bytes.len() + self.padding, 0xA5);
        bytes
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotRefused> {
        if snapshot.len() < 8 + self.padding {
            return Err(SnapshotRefused { reason: "cut off".to_owned() });
        }
        let words: Vec<u64> = snapshot[..snapshot.len() - self.padding]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        self.last_index = words[0];
        *self.list.borrow_mut() = words[1..].to_vec();
        let mut truth = self.truth.borrow_mut();
        for (position, id) in words[1..].iter().enumerate() {
            truth.applied(position, *id);
        }
        Ok(())
    }
}

pub struct Voter {
    pub consensus: Consensus,
    pub list: Rc<RefCell<Vec<u64>>>,
    rt: Rt,
}

pub struct World {
    pub rt: Rt,
    pub settings: Settings,
    pub truth: Rc<RefCell<Truth>>,
    pub disks: RefCell<BTreeMap<VoterNumber, Rc<Disk>>>,
    pub voters: RefCell<BTreeMap<VoterNumber, Voter>>,
    pub loss_percent: Cell<u64>,
    pub twice_percent: Cell<u64>,
    pub delay_us: Cell<u64>,
    pub blocked: RefCell<BTreeSet<(VoterNumber, VoterNumber)>>,
    /// Removed for good, as far as anybody knows: switched off until the voters change again.
    pub retired: RefCell<BTreeSet<VoterNumber>>,
    /// What was sent, where a test wants to see it: sender, receiver, bytes.
    pub tapped: RefCell<Option<Tap>>,
    pub messages: Cell<u64>,
    pub largest: Cell<usize>,
    pub padding: usize,
    next_id: Cell<u64>,
}

/// Messages as they were sent.
pub type Tap = Vec<(VoterNumber, VoterNumber, Vec<u8>)>;

struct Wire {
    world: Weak<World>,
    from: VoterNumber,
}

impl Net for Wire {
    fn send(&self, to: VoterNumber, messages: Vec<Vec<u8>>) {
        let Some(world) = self.world.upgrade() else { return };
        for message in messages {
            world.messages.set(world.messages.get() + 1);
            world.largest.set(world.largest.get().max(message.len()));
            assert!(message.len() <= world.settings.message_bytes_max);
            if let Some(tapped) = &mut *world.tapped.borrow_mut() {
                tapped.push((self.from, to, message.clone()));
            }
            let times = 1 + u64::from(world.rt.random_below(100) < world.twice_percent.get());
            for _ in 0..times {
                world.clone().carry(self.from, to, message.clone());
            }
        }
    }
}

impl World {
    pub fn new(rt: &Rt, settings: Settings, padding: usize) -> Rc<Self> {
        Rc::new(Self {
            rt: rt.clone(),
            settings,
            truth: Rc::default(),
            disks: RefCell::default(),
            voters: RefCell::default(),
            loss_percent: Cell::new(0),
            twice_percent: Cell::new(0),
            delay_us: Cell::new(500),
            blocked: RefCell::default(),
            retired: RefCell::default(),
            tapped: RefCell::default(),
            messages: Cell::new(0),
            largest: Cell::new(0),
            padding,
            next_id: Cell::new(1),
        })
    }

    fn carry(self: Rc<Self>, from: VoterNumber, to: VoterNumber, message: Vec<u8>) {
        if self.rt.random_below(100) < self.loss_percent.get() {
            return;
        }
        let delay = Duration::from_micros(20 + self.rt.random_below(self.delay_us.get()));
        let rt = self.rt.clone();
        rt.spawn(async move {
            self.rt.sleep(delay).await;
            if self.blocked.borrow().contains(&(from, to)) {
                return;
            }
            let Some(target) = self.get(to) else { return };
            let taken = target.step(from, &message);
            if target.stopped().is_none() {
                taken.unwrap();
            }
        });
    }

    pub fn get(&self, number: VoterNumber) -> Option<Consensus> {
        self.voters.borrow().get(&number).map(|voter| voter.consensus.clone())
    }

    pub fn up(&self) -> Vec<VoterNumber> {
        self.voters.borrow().keys().copied().collect()
    }

    /// Starts a voter from its disk; a new disk is an empty one.
    pub fn start(self: &Rc<Self>, number: VoterNumber) {
        let disk =
            self.disks.borrow_mut().entry(number).or_insert_with(|| Disk::new(&self.rt)).clone();
        let recovered = disk.replay().unwrap();
        self.start_from(number, disk, recovered);
    }

    fn start_from(self: &Rc<Self>, number: VoterNumber, disk: Rc<Disk>, recovered: Recovered) {
        let rt = self.rt.new_domain();
        let (machine, list) = self.machine();
        let net = Rc::new(Wire { world: Rc::downgrade(self), from: number });
        let store = Rc::new(DiskStore(disk));
        let settings = self.settings.clone();
        let consensus =
            Consensus::start(&rt, number, store, net, Box::new(machine), recovered, settings)
                .unwrap();
        rt.spawn(watch(consensus.clone(), self.truth.clone()));
        self.voters.borrow_mut().insert(number, Voter { consensus, list, rt });
    }

    fn machine(&self) -> (ListMachine, Rc<RefCell<Vec<u64>>>) {
        let list = Rc::new(RefCell::new(Vec::new()));
        let truth = self.truth.clone();
        (ListMachine { truth, list: list.clone(), last_index: 0, padding: self.padding }, list)
    }

    /// A new group of the voters 1..=count.
    pub async fn create(self: &Rc<Self>, count: u64) {
        let voters: BTreeSet<_> = (1..=count).map(VoterNumber).collect();
        for &number in &voters {
            let disk = Disk::new(&self.rt);
            self.disks.borrow_mut().insert(number, disk.clone());
            let store = DiskStore(disk.clone());
            let (machine, _) = self.machine();
            let recovered = Consensus::create(number, &voters, &machine, &store).await.unwrap();
            self.start_from(number, disk, recovered);
        }
    }

    pub fn crash(&self, number: VoterNumber) {
        if let Some(voter) = self.voters.borrow_mut().remove(&number) {
            self.rt.kill(voter.rt.domain());
            self.disks.borrow()[&number].crash();
        }
    }

    /// The leader of the highest term, among those that are up.
    pub fn leader(&self) -> Option<Consensus> {
        let voters = self.voters.borrow();
        let leaders = voters.values().map(|voter| &voter.consensus);
        leaders.filter(|c| c.role() == Role::Leader).max_by_key(|c| c.term()).cloned()
    }

    pub async fn wait_leader(&self) -> Consensus {
        loop {
            if let Some(leader) = self.leader() {
                return leader;
            }
            self.rt.sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn new_id(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    /// Proposes a new command once; true where it was acknowledged.
    pub async fn propose(&self, at: &Consensus) -> bool {
        let id = self.new_id();
        let outcome =
            self.rt.timeout(Duration::from_secs(5), at.propose(id.to_le_bytes().to_vec()));
        let Ok(Ok(position)) = outcome.await else { return false };
        let position = usize::from_le_bytes(position.try_into().unwrap());
        let mut truth = self.truth.borrow_mut();
        if truth.history.get(position) != Some(&id) {
            truth.complain(format!("{id} was acknowledged at {position}, and is not there"));
        }
        truth.acknowledged = truth.acknowledged.max(position + 1);
        true
    }

    /// Proposes until one is acknowledged.
    pub async fn propose_somewhere(&self) {
        loop {
            let leader = self.wait_leader().await;
            if self.propose(&leader).await {
                return;
            }
            self.rt.sleep(Duration::from_millis(50)).await;
        }
    }

    /// A read with a barrier: must see all that was acknowledged before it began.
    pub async fn read(&self, at: VoterNumber) -> bool {
        let Some((consensus, list)) =
            self.voters.borrow().get(&at).map(|v| (v.consensus.clone(), v.list.clone()))
        else {
            return false;
        };
        let before = self.truth.borrow().acknowledged;
        let barrier = self.rt.timeout(Duration::from_secs(5), consensus.read_barrier());
        let Ok(Ok(())) = barrier.await else { return false };
        let seen = list.borrow().len();
        if seen < before {
            let what = format!("stale read at {at}: {seen} of {before}");
            self.truth.borrow_mut().complain(what);
        }
        true
    }

    /// Until all voters, whoever they are by then, have applied the same, which is all of it.
    pub async fn converge(&self) {
        loop {
            let numbers = self.wait_leader().await.status().voters;
            let all = self.truth.borrow().history.len();
            let equal = {
                let voters = self.voters.borrow();
                numbers.iter().all(|n| voters.get(n).is_some_and(|v| v.list.borrow().len() == all))
            };
            if equal || self.truth.borrow().broken.is_some() {
                return;
            }
            self.rt.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Cuts two voters off from each other, or joins them again.
    pub fn cut(&self, a: VoterNumber, b: VoterNumber, cut: bool) {
        for way in [(a, b), (b, a)] {
            if cut {
                self.blocked.borrow_mut().insert(way);
            } else {
                self.blocked.borrow_mut().remove(&way);
            }
        }
    }

    pub fn heal(&self) {
        self.loss_percent.set(0);
        self.twice_percent.set(0);
        self.delay_us.set(500);
        self.blocked.borrow_mut().clear();
        for disk in self.disks.borrow().values() {
            disk.slow_us.set(200);
        }
    }

    pub fn check(&self) {
        let truth = self.truth.borrow();
        assert!(truth.broken.is_none(), "{}", truth.broken.as_deref().unwrap_or_default());
        for (number, voter) in &*self.voters.borrow() {
            assert_eq!(voter.consensus.stopped(), None, "{number}");
        }
    }
}

/// No term has two leaders.
async fn watch(consensus: Consensus, truth: Rc<RefCell<Truth>>) {
    loop {
        let changed = consensus.changed().notified();
        if consensus.role() == Role::Leader {
            let (term, number) = (consensus.term(), consensus.number());
            let first = *truth.borrow_mut().leaders.entry(term).or_insert(number);
            if first != number {
                truth.borrow_mut().complain(format!("{first} and {number} lead term {term}"));
            }
        }
        changed.await;
    }
}

/// Small limits, so that checkpoints, snapshots and pieces happen all the time.
pub fn tight() -> Settings {
    Settings {
        message_bytes_max: 2048,
        append_bytes_max: 400,
        proposal_bytes_max: 1000,
        checkpoint_entries: 40,
        keep_entries: 10,
        ..Settings::default()
    }
}

/// Runs a simulated group; what it returns, and the hash over all that happened.
pub fn simulate<T, F: Future<Output = T>>(seed: u64, run: impl FnOnce(Rt) -> F) -> (T, u64) {
    let executor = Executor::simulated(seed);
    let out = executor.block_on(run(executor.rt()));
    (out, executor.trace_hash())
}

pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let number =
        |name, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let first = number("BB_FIRST_SEED", 0);
    first..first + number("BB_SEEDS", default)
}
