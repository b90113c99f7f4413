//! The block store of one device: who has which block, where, and how it gets there and back.
//!
//! ```text
//! put   check, take space, write data and log record side by side, flush, acknowledge   put.rs
//! get   find by name, pin, read whole chunks                                            get.rs
//! free  log, wait, give the space back once nobody reads it                             free.rs
//! ```
//!
//! A block is named by parity group and index, never by address (rule 4). The device holds nothing
//! but a superblock and payload; what is where is in the commit log ([`record`]) and in memory
//! ([`table`], [`space`]). [`recovery`] brings that back; [`orphans`] gets rid of what nobody
//! committed; [`unmap`] tells the device what it may forget.
//!
//! Everything runs on the reactor that owns the device: no locks, and nothing here is borrowed
//! across an await.

mod bits;
mod checkpoint;
mod error;
mod flush;
mod free;
#[cfg(test)]
mod fuzz_tests;
mod get;
mod orphans;
mod put;
mod record;
mod recovery;
mod serve;
mod space;
mod status;
mod superblock;
mod table;
mod unmap;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_commitlog::{Class, Log, LogError, LogErrorKind, Lsn, Reservation};
use bb_nvme::{DeviceError, DeviceRef};
use bb_proto::{Code, Failure, Incarnation, ServiceClass, Tick};
use bb_runtime::sync::Notify;
use bb_runtime::{BufPool, Rt};
use bb_transport::Caller;

use crate::context::{Context, Shared, Stream};

pub use error::{OpenError, ReplayFault};
pub use record::{DEVICE_PAGE, kind_name};
pub use recovery::{Recovery, RecoveryProgress, RecoveryReport};
pub use space::CHUNK_BYTES;
pub use superblock::{
    Expected, Identity, Superblock, Uuid, VERSION, format_device, peek_superblock, read_superblock,
};
pub use table::BlockKey;

use flush::Flusher;
use space::Space;
use table::{EntryId, Table};

/// What a block store needs of the server.
#[derive(Clone)]
pub struct Env {
    /// Time, chance, tasks.
    pub rt: Rt,
    /// Buffers.
    pub pool: BufPool,
    /// The commit log.
    pub log: Rc<Log>,
    /// Asks home partitions.
    pub caller: Rc<dyn Caller>,
    /// Map and tick.
    pub shared: Rc<Shared>,
}

impl From<&Context> for Env {
    fn from(context: &Context) -> Self {
        Self {
            rt: context.rt.clone(),
            pool: context.pool.clone(),
            log: context.log.clone(),
            caller: context.caller.clone(),
            shared: context.shared.clone(),
        }
    }
}

/// What can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Share of the device that only [`ServiceClass::Reclaim`] and above may take, in thousandths:
    /// without it a full device could not be repacked (rule 15).
    pub reserve_permille: u32,
    /// How long a request may wait for room in the log or for a buffer before it is refused as
    /// busy.
    pub wait_max: Duration,
    /// Time between two looks for blocks that nobody committed.
    pub orphan_interval: Duration,
    /// Time between two looks for chunks to unmap.
    pub unmap_interval: Duration,
    /// Freed space is unmapped although the device is busy once it is this share, in thousandths.
    pub unmap_permille: u32,
    /// Reads under way while recovery checks blocks.
    pub recovery_reads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            reserve_permille: 20,
            wait_max: Duration::from_secs(5),
            orphan_interval: Duration::from_secs(10),
            unmap_interval: Duration::from_secs(2),
            unmap_permille: 900,
            recovery_reads: 16,
        }
    }
}

/// The blocks of one device.
pub struct BlockStore {
    env: Env,
    config: Config,
    dev: DeviceRef,
    superblock: Superblock,
    state: RefCell<State>,
    flusher: Rc<Flusher>,
    /// A put or a free has ended, or the device has failed.
    settled: Notify,
    failed: RefCell<Option<String>>,
    on_failure: RefCell<Option<FailureCallback>>,
    load: status::Load,
    unmap_wanted: Cell<bool>,
}

type FailureCallback = Box<dyn Fn(&str)>;

struct State {
    table: Table,
    space: Space,
    /// Blocks that home has not confirmed, by mint slot.
    unconfirmed: BTreeSet<(Tick, EntryId)>,
    /// Every block with a slot up to this one was confirmed, or is marked as late.
    confirmed_through: Tick,
    /// Log positions of puts whose data is not durable yet (rule 12).
    data_under_way: BTreeSet<Lsn>,
    data_under_way_max: Lsn,
    /// Where blocks were that are gone.
    #[cfg(feature = "planted")]
    ghosts: std::collections::BTreeMap<BlockKey, space::Address>,
}

impl BlockStore {
    fn new(
        env: Env,
        config: Config,
        dev: DeviceRef,
        superblock: Superblock,
        state: State,
    ) -> Rc<Self> {
        let flusher = Flusher::new(env.rt.clone(), dev.clone());
        Rc::new(Self {
            env,
            config,
            dev,
            superblock,
            state: RefCell::new(state),
            flusher,
            settled: Notify::new(),
            failed: RefCell::new(None),
            on_failure: RefCell::new(None),
            load: status::Load::default(),
            unmap_wanted: Cell::new(false),
        })
    }

    /// Who the device is.
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Starts what goes on in the background, until the store is dropped.
    pub fn start(self: &Rc<Self>) {
        self.env.rt.spawn(orphans::run(Rc::downgrade(self), self.env.rt.clone()));
        self.env.rt.spawn(unmap::run(Rc::downgrade(self), self.env.rt.clone()));
    }

    /// Has `callback` called once, with the reason, when the device fails.
    pub fn on_failure(&self, callback: impl Fn(&str) + 'static) {
        *self.on_failure.borrow_mut() = Some(Box::new(callback));
    }

    /// Why the device has failed, if it has.
    pub fn problem(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// A request that was meant for another incarnation of the device is for nobody here.
    fn check_fence(&self, fence: u64) -> Result<(), Failure> {
        if Incarnation(fence) == self.superblock.incarnation {
            return Ok(());
        }
        let ours = self.superblock.incarnation;
        Err(Failure::new(Code::Fenced, format!("the device has incarnation {ours}")))
    }

    fn check_alive(&self) -> Result<(), Failure> {
        match &*self.failed.borrow() {
            Some(why) => Err(Failure::new(Code::DeviceFailed, why.clone())),
            None => Ok(()),
        }
    }

    /// Nothing that was promised about this device can be kept from here on: no request is served
    /// any more. The node goes on with its other devices.
    fn fail(&self, why: &str) -> Failure {
        let first = self.failed.borrow().is_none();
        if first {
            *self.failed.borrow_mut() = Some(why.to_owned());
            tracing::error!(
                device = %self.dev.info().name, id = %self.superblock.device, why,
                "data device failed: replace it; its blocks are reconstructed from others"
            );
            if let Some(callback) = &*self.on_failure.borrow() {
                callback(why);
            }
            self.settled.notify_all();
        }
        Failure::new(Code::DeviceFailed, why)
    }

    fn fail_device(&self, doing: &str, error: &DeviceError) -> Failure {
        self.fail(&format!("{doing}: {error}"))
    }

    fn fail_log(&self, error: &LogError) -> Failure {
        self.fail(&format!("commit log: {error}"))
    }

    /// The log did not take a record: it has failed, or just cannot now.
    fn log_refused(&self, error: &LogError) -> Failure {
        match error.kind() {
            LogErrorKind::NoSpace | LogErrorKind::Caller => {
                Failure::new(Code::Busy, error.to_string())
            }
            _ => self.fail_log(error),
        }
    }

    fn offset_of(&self, address: space::Address, block_log2: u8) -> u64 {
        self.superblock.data_offset() + address.offset(block_log2)
    }

    fn stream(&self, page: u32) -> Stream {
        Stream::Blocks { device: self.superblock.device, page }
    }

    /// Room in the log for records of these sizes, or busy (rule 14).
    async fn admit(&self, class: Class, sizes: Vec<usize>) -> Result<Reservation, Failure> {
        let admitted = self.env.log.admit_all(class, sizes);
        match self.env.rt.timeout(self.config.wait_max, admitted).await {
            Ok(Ok(reservation)) => Ok(reservation),
            Ok(Err(error)) => Err(self.log_refused(&error)),
            Err(_) => Err(Failure::new(Code::Busy, "the commit log is full")),
        }
    }
}

/// The tag under which the log keeps up to where a device's data is durable.
fn external_tag(superblock: &Superblock) -> u64 {
    Stream::Blocks { device: superblock.device, page: DEVICE_PAGE }.id().0
}

const fn log_class(class: ServiceClass) -> Class {
    match class {
        ServiceClass::Control => Class::Control,
        ServiceClass::Replication => Class::Replication,
        ServiceClass::Reclaim => Class::Reclaim,
        ServiceClass::Client => Class::Client,
        ServiceClass::Background => Class::Rebuild,
    }
}
