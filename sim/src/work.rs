//! Many seeds on all cores: the program starts itself again for each handful of them, so that no
//! run shares anything with another, and one that hangs or dies is told from the others.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::family::Family;
use crate::report::{decode, encode};
use crate::run::{Order, Outcome, run};

/// A run that takes longer in real time hangs.
const RUN_SECONDS_MAX: u32 = 120;

/// One piece of work for a process: seeds from `first` on.
#[derive(Clone, Debug)]
pub struct Batch {
    /// First seed.
    pub first: u64,
    /// Number of seeds.
    pub count: u64,
    /// The family, or that of each seed.
    pub family: Option<Family>,
    /// Operations of each run.
    pub operations: u64,
    /// Name of the deliberate error.
    pub plant: Option<String>,
    /// End at the first seed that fails.
    pub stop_at_failure: bool,
}

/// What came of a seed.
pub struct Ended {
    /// The seed.
    pub seed: u64,
    /// Its family.
    pub family: Family,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Batch {
    fn order(&self, seed: u64) -> Result<Order, String> {
        #[cfg(feature = "planted")]
        let plant = self.plant.as_deref().map(crate::planted::Plant::find).transpose()?;
        #[cfg(not(feature = "planted"))]
        let plant = match &self.plant {
            Some(_) => return Err("planted errors are not compiled in".to_owned()),
            None => None,
        };
        let family = self.family.unwrap_or_else(|| Family::of_seed(seed));
        Ok(Order { seed, family, operations: self.operations, plant, verbose: false })
    }

    fn arguments(&self) -> Vec<String> {
        let mut words = vec![
            "--worker".to_owned(),
            "--seed".to_owned(),
            self.first.to_string(),
            "--seeds".to_owned(),
            self.count.to_string(),
            "--operations".to_owned(),
            self.operations.to_string(),
        ];
        if let Some(family) = self.family {
            words.extend(["--family".to_owned(), family.to_string()]);
        }
        if let Some(plant) = &self.plant {
            words.extend(["--plant".to_owned(), plant.clone()]);
        }
        if self.stop_at_failure {
            words.push("--stop".to_owned());
        }
        words
    }

    /// Does the work in this process, and says so on its output.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn work(&self) -> Result<(), String> {
        for seed in self.first..self.first + self.count {
            let order = self.order(seed)?;
            println!("BEGIN\t{seed}\t{}", order.family);
            // SAFETY: alarm(2) has no preconditions; the default action of SIGALRM ends us.
            unsafe { libc::alarm(RUN_SECONDS_MAX) };
            let outcome = run(&order);
            println!("{}", encode(seed, order.family, &outcome));
            if self.stop_at_failure && !outcome.violations.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// What is said of a run whose process ended without a word.
const ENDED: &str = "its process ended";

/// False if the process of a failed run ended before the verdict.
pub fn is_verdict(outcome: &Outcome) -> bool {
    outcome.violations.iter().any(|violation| !violation.starts_with(ENDED))
}

struct Worker {
    child: Child,
    lines: BufReader<ChildStdout>,
    begun: Option<(u64, Family)>,
}

fn start(batch: &Batch) -> Result<Worker, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(own)
        .args(batch.arguments())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a worker: {error}"))?;
    let output = child.stdout.take().ok_or("a worker without output")?;
    Ok(Worker { child, lines: BufReader::new(output), begun: None })
}

impl Worker {
    /// The next run that ended; `None` at the end of the batch.
    fn next(&mut self) -> Result<Option<Ended>, String> {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).map_err(|error| error.to_string())?;
            if read == 0 {
                return self.ended();
            }
            let line = line.trim_end_matches('\n');
            if let Some(rest) = line.strip_prefix("BEGIN\t")
                && let Some((seed, family)) = rest.split_once('\t')
            {
                self.begun = seed.parse().ok().zip(family.parse().ok());
            } else if let Some((seed, family, outcome)) = decode(line) {
                self.begun = None;
                return Ok(Some(Ended { seed, family, outcome }));
            } else {
                println!("{line}");
            }
        }
    }

    fn ended(&mut self) -> Result<Option<Ended>, String> {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        match self.begun.take() {
            Some((seed, family)) => {
                let text = format!("{ENDED} ({status}): it hangs, or aborted");
                let outcome = Outcome { violations: vec![text], ..Outcome::default() };
                Ok(Some(Ended { seed, family, outcome }))
            }
            None if status.success() => Ok(None),
            None => Err(format!("a worker failed: {status}")),
        }
    }
}

/// Does all batches on `cores` processes at a time; `each` sees every run and says whether to go on.
///
/// # Errors
/// When processes cannot be started.
pub fn do_all(
    batches: Vec<Batch>,
    cores: usize,
    mut each: impl FnMut(Ended) -> bool,
) -> Result<(), String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let queue = std::sync::Arc::new(std::sync::Mutex::new(VecDeque::from(batches)));
    std::thread::scope(|scope| {
        for _ in 0..cores {
            let (sender, queue) = (sender.clone(), queue.clone());
            scope.spawn(move || {
                loop {
                    let batch = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                    let Some(batch) = batch else { return };
                    let result = drive(&batch, &sender);
                    if let Err(why) = result {
                        let _ = sender.send(Err(why));
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut result = Ok(());
        for ended in receiver {
            match ended {
                Ok(ended) => {
                    if !each(ended)
                        && let Ok(mut queue) = queue.lock()
                    {
                        queue.clear();
                    }
                }
                Err(why) => result = Err(why),
            }
        }
        result
    })
}

fn drive(
    batch: &Batch,
    sender: &std::sync::mpsc::Sender<Result<Ended, String>>,
) -> Result<(), String> {
    let mut batch = batch.clone();
    loop {
        let mut worker = start(&batch)?;
        let mut last = None;
        while let Some(ended) = worker.next()? {
            last = Some(ended.seed);
            let failed = !ended.outcome.violations.is_empty();
            if sender.send(Ok(ended)).is_err() || failed && batch.stop_at_failure {
                return worker.child.wait().map(drop).map_err(|error| error.to_string());
            }
            if worker.child.try_wait().is_ok_and(|status| status.is_some_and(|s| !s.success())) {
                break;
            }
        }
        // What a dead process left undone.
        let end = batch.first + batch.count;
        match last {
            Some(seed)
                if seed + 1 < end
                    && worker.child.try_wait().is_ok_and(|s| s.is_some_and(|s| !s.success())) =>
            {
                batch.count = end - seed - 1;
                batch.first = seed + 1;
            }
            _ => return Ok(()),
        }
    }
}
