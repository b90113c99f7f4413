//! What a node knows of itself, in a stream of its log: its number, its incarnation, and a map
//! from which it finds the others after a restart.

use std::cell::RefCell;
use std::rc::Rc;

use bb_cluster::{ClusterMap, MapError};
use bb_commitlog::{Class, Log, LogError};
use bb_proto::{Incarnation, NodeId, Tick};
use bb_runtime::Rt;
use prost::Message;

use crate::context::Stream;

/// Version of the records of this stream.
const FORMAT_VERSION: u32 = 1;

/// One record, and also the snapshot of the stream: fields that are set replace what was.
#[derive(Clone, PartialEq, Eq, Message)]
struct LocalRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "vec", optional, tag = "2")]
    map: Option<Vec<u8>>,
    #[prost(uint64, optional, tag = "3")]
    tick: Option<u64>,
    #[prost(uint64, optional, tag = "4")]
    incarnation: Option<u64>,
    #[prost(uint32, optional, tag = "5")]
    node: Option<u32>,
}

/// What the stream says after replay.
#[derive(Clone, Debug, Default)]
pub struct LocalState {
    map: Vec<u8>,
    tick: u64,
    incarnation: u64,
    node: u32,
}

impl LocalState {
    /// State of a node that was just formatted.
    pub fn new(node: NodeId, map: &ClusterMap) -> Self {
        Self { map: map.encode_map(), tick: 1, incarnation: 0, node: node.0 }
    }

    /// Takes in a record or a snapshot.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn replay(&mut self, bytes: &[u8]) -> Result<(), String> {
        let record = LocalRecord::decode(bytes).map_err(|error| format!("node record: {error}"))?;
        if record.version > FORMAT_VERSION {
            return Err(format!("node record of newer version {}", record.version));
        }
        if let Some(map) = record.map {
            self.map = map;
        }
        self.tick = self.tick.max(record.tick.unwrap_or(0));
        self.incarnation = self.incarnation.max(record.incarnation.unwrap_or(0));
        self.node = record.node.unwrap_or(self.node);
        Ok(())
    }

    /// The bytes of a snapshot.
    pub fn snapshot(&self) -> Vec<u8> {
        LocalRecord {
            version: FORMAT_VERSION,
            map: Some(self.map.clone()),
            tick: Some(self.tick),
            incarnation: Some(self.incarnation),
            node: Some(self.node),
        }
        .encode_to_vec()
    }

    /// The last map that was noted.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn map(&self) -> Result<ClusterMap, MapError> {
        ClusterMap::decode_map(&self.map)
    }

    /// A tick that was reached.
    pub const fn tick(&self) -> Tick {
        Tick(self.tick)
    }

    /// Incarnation of the last process; 0 before the first.
    pub const fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation)
    }

    /// This node's number.
    pub const fn node(&self) -> NodeId {
        NodeId(self.node)
    }
}

/// Keeps the stream while the node runs.
pub struct Local {
    rt: Rt,
    log: Rc<Log>,
    state: RefCell<LocalState>,
}

impl Local {
    /// Goes on from what replay said.
    pub fn new(rt: Rt, log: Rc<Log>, state: LocalState) -> Rc<Self> {
        Rc::new(Self { rt, log, state: RefCell::new(state) })
    }

    /// Logs that an incarnation begins. Nothing may be said to anybody before it is durable.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn begin(&self, incarnation: Incarnation) -> Result<(), LogError> {
        self.append(LocalRecord {
            version: FORMAT_VERSION,
            incarnation: Some(incarnation.0),
            ..LocalRecord::default()
        })
        .await?;
        self.state.borrow_mut().incarnation = incarnation.0;
        Ok(())
    }

    /// A newer map: remembered in the log where it says something new about who is where. (Voters
    /// find everything in their own stream; this costs little there.)
    pub(super) fn note_map(self: &Rc<Self>, map: &ClusterMap) {
        let known = self.state.borrow().map();
        let same = known.is_ok_and(|known| {
            let places = |map: &ClusterMap| -> Vec<_> {
                map.nodes.iter().map(|n| (n.id, n.address.clone(), n.voter)).collect()
            };
            known.devices == map.devices && places(&known) == places(map)
        });
        if same {
            return;
        }
        let bytes = map.encode_map();
        self.state.borrow_mut().map.clone_from(&bytes);
        let this = self.clone();
        self.rt.spawn(async move {
            let record =
                LocalRecord { version: FORMAT_VERSION, map: Some(bytes), ..LocalRecord::default() };
            if let Err(error) = this.append(record).await {
                tracing::warn!(%error, "the map was not noted in the log");
            }
        });
    }

    /// Bytes of a snapshot, for the checkpointer.
    pub fn snapshot(&self) -> Vec<u8> {
        self.state.borrow().snapshot()
    }

    async fn append(&self, record: LocalRecord) -> Result<(), LogError> {
        let bytes = record.encode_to_vec();
        let mut room = self.log.admit(Class::Control, bytes.len()).await?;
        self.log.append(Stream::Node.id(), &mut room, &bytes)?.durable.await
    }
}
