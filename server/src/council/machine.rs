//! The map as the Raft group's log drives it.

use std::cell::RefCell;
use std::rc::Rc;

use bb_cluster::{ClusterState, Command, Executed};
use bb_consensus::{Machine, Position, SnapshotRefused};
use bb_runtime::sync::Notify;
use prost::Message;

/// What a voter's log has made of the map. Shared with whoever reads it.
#[derive(Default)]
pub struct Replicated {
    state: RefCell<ClusterState>,
    /// Wakes with every command.
    pub changed: Notify,
}

impl Replicated {
    /// A state to begin with.
    pub fn new(state: ClusterState) -> Rc<Self> {
        Rc::new(Self { state: RefCell::new(state), changed: Notify::new() })
    }

    /// The state. Never held across an await.
    pub fn state(&self) -> std::cell::Ref<'_, ClusterState> {
        self.state.borrow()
    }
}

/// The machine of the Raft group.
pub(super) struct MapMachine(pub(super) Rc<Replicated>);

impl Machine for MapMachine {
    fn apply(&mut self, position: Position, data: &[u8]) -> Vec<u8> {
        let executed = match Command::decode_command(data) {
            Ok(command) => self.0.state.borrow_mut().execute(position.term, &command),
            // All voters refuse it alike; `bbd` refuses to run beside newer ones at the handshake.
            Err(error) => Executed { void: error.to_string(), ..Executed::default() },
        };
        self.0.changed.notify_all();
        executed.encode_to_vec()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.state.borrow().encode_snapshot()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotRefused> {
        let state = ClusterState::decode_snapshot(snapshot)
            .map_err(|error| SnapshotRefused { reason: error.to_string() })?;
        *self.0.state.borrow_mut() = state;
        self.0.changed.notify_all();
        Ok(())
    }
}
