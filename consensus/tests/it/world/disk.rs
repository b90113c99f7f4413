//! A store that makes things durable late, and loses at a crash what was not.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bb_consensus::{Durable, RecoverError, Recovered, Store};
use bb_runtime::{Instant, Rt};

#[derive(Clone)]
enum Item {
    Record(Vec<u8>),
    Checkpoint(Vec<u8>),
}

pub struct Disk {
    rt: Rt,
    items: RefCell<Vec<(u64, Item, bool)>>,
    next: Cell<u64>,
    life: Cell<u64>,
    records_durable_at: Cell<Instant>,
    pub slow_us: Cell<u64>,
    pub appends: Cell<u64>,
}

impl Disk {
    /// `rt` outlives the voter.
    pub fn new(rt: &Rt) -> Rc<Self> {
        Rc::new(Self {
            rt: rt.clone(),
            items: RefCell::default(),
            next: Cell::new(0),
            life: Cell::new(0),
            records_durable_at: Cell::new(Instant::ZERO),
            slow_us: Cell::new(200),
            appends: Cell::new(0),
        })
    }

    fn push(&self, item: Item) -> u64 {
        let number = self.next.replace(self.next.get() + 1);
        self.items.borrow_mut().push((number, item, false));
        number
    }

    fn made_durable(&self, numbers: std::ops::Range<u64>) {
        let mut items = self.items.borrow_mut();
        for (number, _, durable) in items.iter_mut() {
            *durable |= numbers.contains(number);
        }
        let last =
            items.iter().rposition(|(_, item, done)| *done && matches!(item, Item::Checkpoint(_)));
        if let Some(last) = last {
            items.drain(..last);
        }
    }

    /// The process is gone: of what was not durable, a prefix of the records may have survived, or
    /// the checkpoint.
    pub fn crash(&self) {
        self.life.set(self.life.get() + 1);
        self.records_durable_at.set(Instant::ZERO);
        let mut lost = false;
        self.items.borrow_mut().retain_mut(|(_, item, durable)| {
            if *durable {
                // Records become durable in order.
                assert!(!lost || matches!(item, Item::Checkpoint(_)));
                return true;
            }
            let survives = self.rt.random_below(2) == 0;
            match item {
                Item::Record(_) => {
                    lost |= !survives;
                    *durable = !lost;
                }
                Item::Checkpoint(_) => *durable = survives && !lost,
            }
            *durable
        });
    }

    pub fn replay(&self) -> Result<Recovered, RecoverError> {
        let items = self.items.borrow();
        let mut recovered = Recovered::new();
        let last = items.iter().rposition(|(_, item, _)| matches!(item, Item::Checkpoint(_)));
        for (_, item, _) in &items[last.unwrap_or(0)..] {
            match item {
                Item::Record(bytes) => recovered.record(bytes)?,
                Item::Checkpoint(bytes) => recovered.snapshot(bytes)?,
            }
        }
        Ok(recovered)
    }

    /// All that is on it, in order: checkpoints flagged.
    pub fn contents(&self) -> Vec<(bool, Vec<u8>)> {
        let one = |(_, item, _): &(u64, Item, bool)| match item {
            Item::Record(bytes) => (false, bytes.clone()),
            Item::Checkpoint(bytes) => (true, bytes.clone()),
        };
        self.items.borrow().iter().map(one).collect()
    }

    fn later(self: &Rc<Self>, numbers: std::ops::Range<u64>, at: Instant) -> Durable {
        let (tell, told) = futures_channel::oneshot::channel();
        let (disk, life) = (self.clone(), self.life.get());
        self.rt.spawn(async move {
            disk.rt.sleep_until(at).await;
            if disk.life.get() == life {
                disk.made_durable(numbers);
                let _ = tell.send(());
            }
        });
        Box::pin(async move {
            if told.await.is_err() {
                // Of an earlier life: nobody is there to be told.
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }

    fn delay(&self, factor: u64) -> Duration {
        Duration::from_micros(20 + self.rt.random_below(self.slow_us.get()) * factor)
    }
}

/// What a voter holds: the trait is ours to implement, the `Rc` is not.
pub struct DiskStore(pub Rc<Disk>);

impl Store for DiskStore {
    fn append(&self, records: Vec<Vec<u8>>) -> Durable {
        let disk = &self.0;
        assert!(!records.is_empty());
        disk.appends.set(disk.appends.get() + 1);
        let first = disk.next.get();
        for record in records {
            disk.push(Item::Record(record));
        }
        let at = (disk.rt.now() + disk.delay(1)).max(disk.records_durable_at.get());
        disk.records_durable_at.set(at);
        disk.later(first..disk.next.get(), at)
    }

    fn checkpoint(&self, snapshot: Vec<u8>) -> Durable {
        let disk = &self.0;
        let number = disk.push(Item::Checkpoint(snapshot));
        disk.later(number..number + 1, disk.rt.now() + disk.delay(20))
    }
}
