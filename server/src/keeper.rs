//! The map stream: the cluster map, the tick and the incarnation of this node, kept in the commit
//! log.
//!
//! The tick must never go back, and logging each step would be a log write a second for nothing:
//! a ceiling is logged ahead, and a restart goes on from the ceiling.

use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, MapError};
use bb_commitlog::{Class, LogError};
use bb_proto::{Incarnation, Tick};
use prost::Message;

use crate::context::{Context, Stream};

/// How far ahead the tick's ceiling is logged. A restart jumps by so much at the most, which ages
/// the parity groups that clients hold by as many ticks: far less than W of rule 1.
const TICKS_AHEAD: u64 = 10;
/// Length of a tick.
const TICK: Duration = Duration::from_secs(1);
/// Version of the records of this stream.
const FORMAT_VERSION: u32 = 1;

/// One record, and also the snapshot of the stream: fields that are set replace what was.
#[derive(Clone, PartialEq, Eq, Message)]
struct KeeperRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "vec", optional, tag = "2")]
    map: Option<Vec<u8>>,
    #[prost(uint64, optional, tag = "3")]
    tick_ceiling: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    incarnation: Option<u64>,
}

/// What the stream says after replay.
#[derive(Debug, Default)]
pub struct KeeperState {
    map: Vec<u8>,
    tick_ceiling: u64,
    incarnation: u64,
}

impl KeeperState {
    /// State of a new node: what `bbd format` logs.
    pub fn new(map: &ClusterMap) -> Self {
        Self { map: map.encode_map(), tick_ceiling: 1, incarnation: 0 }
    }

    /// Takes in a record or a snapshot.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn replay(&mut self, bytes: &[u8]) -> Result<(), String> {
        let record = KeeperRecord::decode(bytes).map_err(|error| format!("map record: {error}"))?;
        if record.version > FORMAT_VERSION {
            return Err(format!("map record of newer version {}", record.version));
        }
        if let Some(map) = record.map {
            self.map = map;
        }
        if let Some(tick) = record.tick_ceiling {
            self.tick_ceiling = self.tick_ceiling.max(tick);
        }
        if let Some(incarnation) = record.incarnation {
            self.incarnation = self.incarnation.max(incarnation);
        }
        Ok(())
    }

    /// The bytes of a snapshot.
    pub fn snapshot(&self) -> Vec<u8> {
        KeeperRecord {
            version: FORMAT_VERSION,
            map: Some(self.map.clone()),
            tick_ceiling: Some(self.tick_ceiling),
            incarnation: Some(self.incarnation),
        }
        .encode_to_vec()
    }

    /// The map.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn map(&self) -> Result<ClusterMap, MapError> {
        ClusterMap::decode_map(&self.map)
    }

    /// The tick to go on from.
    pub const fn tick(&self) -> Tick {
        Tick(self.tick_ceiling)
    }

    /// Incarnation of the last process; 0 before the first.
    pub const fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation)
    }
}

/// Keeps the stream while the node runs.
pub struct Keeper {
    ctx: Context,
    state: std::cell::RefCell<KeeperState>,
}

impl Keeper {
    /// Goes on from what replay said; `state` is that of the process before.
    pub fn new(ctx: Context, state: KeeperState) -> Rc<Self> {
        Rc::new(Self { ctx, state: std::cell::RefCell::new(state) })
    }

    /// Logs that this incarnation begins. Nothing may be served before it is durable.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn begin(&self) -> Result<(), LogError> {
        let incarnation = self.ctx.shared.incarnation.0;
        let ceiling = self.ctx.shared.tick().0 + TICKS_AHEAD;
        self.append(KeeperRecord {
            version: FORMAT_VERSION,
            map: None,
            tick_ceiling: Some(ceiling),
            incarnation: Some(incarnation),
        })
        .await?;
        let mut state = self.state.borrow_mut();
        state.incarnation = incarnation;
        state.tick_ceiling = ceiling;
        Ok(())
    }

    /// Logs a changed map, then puts it into force.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn set_map(&self, map: ClusterMap) -> Result<(), LogError> {
        let bytes = map.encode_map();
        self.append(KeeperRecord {
            version: FORMAT_VERSION,
            map: Some(bytes.clone()),
            tick_ceiling: None,
            incarnation: None,
        })
        .await?;
        self.state.borrow_mut().map = bytes;
        self.ctx.shared.set_map(map);
        Ok(())
    }

    /// Moves the tick on for as long as the node runs.
    ///
    /// # Errors
    /// When the log fails; the tick then stands still.
    pub async fn run_tick(self: Rc<Self>) -> Result<(), LogError> {
        loop {
            self.ctx.rt.sleep(TICK).await;
            let next = self.ctx.shared.tick().0 + 1;
            let ceiling = self.state.borrow().tick_ceiling;
            if next >= ceiling {
                let raised = next + TICKS_AHEAD;
                self.append(KeeperRecord {
                    version: FORMAT_VERSION,
                    map: None,
                    tick_ceiling: Some(raised),
                    incarnation: None,
                })
                .await?;
                self.state.borrow_mut().tick_ceiling = raised;
            }
            self.ctx.shared.set_tick(Tick(next));
        }
    }

    /// Bytes of a snapshot, for the checkpointer.
    pub fn snapshot(&self) -> Vec<u8> {
        self.state.borrow().snapshot()
    }

    async fn append(&self, record: KeeperRecord) -> Result<(), LogError> {
        let bytes = record.encode_to_vec();
        let mut room = self.ctx.log.admit(Class::Control, bytes.len()).await?;
        self.ctx.log.append(Stream::Map.id(), &mut room, &bytes)?.durable.await
    }
}
