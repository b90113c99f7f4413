//! One run: a world from one seed, clients, chaos, and the verdict.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Executor, Rt};

use crate::chaos::run_chaos;
use crate::complaints;
use crate::epilogue::one_ordeal;
use crate::family::Family;
use crate::finale::check_all;
use crate::lost_state;
use crate::planted::Plant;
use crate::storm::run_storm;
use crate::watch::Watch;
use crate::workload::{Bench, Place, lay_out, run_place};
use crate::world::{Setup, World};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The seed: everything follows from it.
    pub seed: u64,
    /// What goes wrong.
    pub family: Family,
    /// Operations of clients.
    pub operations: u64,
    /// The deliberate error to make.
    pub plant: Option<Plant>,
    /// Print every operation as it happens.
    pub verbose: bool,
}

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Equal for equal seeds.
    pub trace: u64,
    /// Operations that clients have ended.
    pub operations: u64,
    /// How often each fault happened.
    pub faults: BTreeMap<String, u64>,
    /// Operations by kind and end.
    pub outcomes: BTreeMap<String, u64>,
    /// What must not happen, and did; empty for a good run.
    pub violations: Vec<String>,
    /// The last operations before the verdict.
    pub log: Vec<String>,
    /// Virtual seconds.
    pub seconds: u64,
}

/// No run takes longer in virtual time, unless something hangs.
const RUN_LIMIT: Duration = Duration::from_secs(4_000);
/// What servers say of a log that was damaged.
const DAMAGE: [&str; 2] =
    ["a log has lost what it had acknowledged", "the map names a replica that is not here"];
/// Lines of the operation log in an outcome.
const LOG_LINES: usize = 60;

/// Runs `order`.
pub fn run(order: &Order) -> Outcome {
    #[cfg(feature = "planted")]
    match order.plant {
        Some(plant) => plant.switch_on(),
        None => crate::planted::switch_off(),
    }
    complaints::clear();
    let shared: Rc<RefCell<Option<Rc<Bench>>>> = Rc::default();
    // Left alone after a panic: its destructors would meet what the panic has left half done.
    let executor = std::mem::ManuallyDrop::new(Executor::simulated(order.seed));
    let rt = executor.rt();
    let run = catch_unwind(AssertUnwindSafe(|| {
        executor.block_on(async {
            if rt.timeout(RUN_LIMIT, play(&rt, order, &shared)).await.is_err() {
                let bench = shared.borrow().clone();
                if let Some(bench) = bench {
                    bench.violation("the run hangs".to_owned());
                }
            }
        });
    }));
    let mut outcome = Outcome { trace: executor.trace_hash(), ..Outcome::default() };
    outcome.seconds = rt.now().as_nanos() / 1_000_000_000;
    if let Some(bench) = &*shared.borrow() {
        outcome.operations = bench.ended.get();
        let faults = bench.world.fault_counts();
        outcome.faults = faults.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let outcomes = bench.outcomes.borrow();
        outcome.outcomes = outcomes.iter().map(|((a, b), v)| (format!("{a} {b}"), *v)).collect();
        outcome.violations.clone_from(&bench.violations.borrow());
        outcome.log = bench.last_lines(LOG_LINES);
    }
    if run.is_err() {
        outcome.violations.insert(0, format!("panic: {}", complaints::last_panic()));
    } else {
        shared.borrow_mut().take();
        drop(std::mem::ManuallyDrop::into_inner(executor));
    }
    let damaged = outcome.faults.get("node: commit log damaged").is_some_and(|count| *count > 0);
    let explained = |line: &String| {
        order.family == Family::DeviceGone && line.contains("data device")
            || damaged && DAMAGE.iter().any(|text| line.contains(text))
    };
    let errors = complaints::errors().into_iter().filter(|line| !explained(line));
    outcome.violations.extend(errors.take(3));
    if !order.family.damages_blocks() {
        let damage = complaints::damaged_blocks().into_iter().take(3);
        outcome.violations.extend(damage.map(|line| format!("no fault explains:{line}")));
    }
    outcome
}

async fn play(rt: &Rt, order: &Order, shared: &RefCell<Option<Rc<Bench>>>) {
    let setup = Setup { plant: order.plant, ..Setup::draw(rt, order.family) };
    let world = World::new(rt, setup);
    let bench = Bench::new(&world, order.operations, order.verbose);
    *shared.borrow_mut() = Some(bench.clone());
    bench.note(|| format!("{:?}", world.setup));
    let late = usize::from(order.family == Family::NodesCalm && world.one_in(2));
    if let Err(why) = world.begin(late).await {
        return bench.violation(why);
    }
    let count = 2 + usize::try_from(world.draw(3)).unwrap_or(0);
    lay_out(&bench, count);
    let places: Vec<Rc<Place>> = (0..count).map(|_| Rc::default()).collect();
    let chaos = if order.family.has_nodes() {
        rt.spawn(run_storm(bench.clone(), places.clone()))
    } else {
        rt.spawn(run_chaos(bench.clone(), places.clone()))
    };
    let watch = Watch::default();
    for (number, place) in places.iter().enumerate() {
        drop(rt.spawn(run_place(bench.clone(), place.clone(), number)));
    }
    let mut patience = Duration::from_secs(1_000);
    let pause = Duration::from_millis(100);
    while places.iter().any(|place| !place.ended.get()) && patience > pause && !bench.has_failed() {
        rt.sleep(pause).await;
        watch.look(&bench);
        if bench.left.get() == 0 {
            patience -= pause;
        }
    }
    if bench.has_failed() {
        return;
    }
    if places.iter().any(|place| !place.ended.get()) {
        return bench.violation("clients do not come to an end".to_owned());
    }
    let _ = chaos.await;
    if !bench.has_failed() {
        check_all(&bench).await;
    }
    if !bench.has_failed() && !order.family.has_nodes() {
        one_ordeal(&bench).await;
    }
    if !bench.has_failed() && order.family == Family::NodesCalm && lost_state::fits(&world) {
        bench.note(|| "ordeal: a partition loses its state".to_owned());
        if let Err(why) = lost_state::lose_state(&world).await {
            bench.violation(format!("after a partition lost its state: {why}"));
        }
    }
}
