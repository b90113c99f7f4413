//! Commands are executed here: conditions first, then the effect, all of it or none.
//!
//! Nothing but state and command may decide: every voter must come to the same bytes.

pub(crate) mod nodes;
mod replicas;
mod settings;
mod voters;

use bb_proto::Tick;

use crate::check;
use crate::command::{COMMAND_VERSION, Change, Command, Executed};
use crate::map::ClusterMap;
use crate::state::{ClusterState, completed, lease_ms};

/// What a command did to the map.
enum Effect {
    /// The epoch rises.
    Changed,
    /// It has had its effect before, or it does not touch the map.
    Nothing,
}

/// The effect, or why the command is void.
type Outcome = Result<Effect, String>;

impl ClusterState {
    /// Executes a command from an entry of the Raft log of that term. A void one changes nothing
    /// and says why.
    ///
    /// # Panics
    /// If the command is newer than this program: [`Command::decode_command`] refuses those.
    pub fn execute(&mut self, term: u64, command: &Command) -> Executed {
        assert!(command.version <= COMMAND_VERSION, "a voter stops at a newer command");
        let mut executed = Executed::default();
        let lease_before = self.longest_lease_ms();
        let outcome = match &command.change {
            None => Err("command without a change".into()),
            // A deposed leader's command would come true after its successor has granted leases.
            Some(_) if command.term != 0 && command.term != term => {
                Err(format!("proposed in term {}, this is term {term}", command.term))
            }
            Some(Change::Down(_)) if command.term == 0 => Err("proposed by no leader".into()),
            Some(Change::Create(map)) => self.create(map),
            Some(_) if self.map.epoch == 0 => Err("there is no cluster yet".into()),
            Some(change) => self.change(change, &mut executed),
        };
        match outcome {
            Ok(Effect::Changed) => {
                self.map.epoch += 1;
                if matches!(command.change, Some(Change::Settings(_)))
                    && lease_ms(&self.map) < lease_before
                {
                    self.former_lease_ms = lease_before;
                    self.former_tick = self.tick;
                }
            }
            Ok(Effect::Nothing) => {}
            Err(why) => executed.void = why,
        }
        executed
    }

    fn change(&mut self, change: &Change, executed: &mut Executed) -> Outcome {
        let tick = self.tick;
        let map = &mut self.map;
        match change {
            Change::Create(_) => Err("there is a cluster already".into()),
            Change::Tick(tick) => self.advance(Tick(tick.tick)),
            Change::Join(join) => nodes::join(map, join, executed),
            Change::Started(started) => nodes::started(map, started),
            Change::Down(name) => nodes::down(map, tick, *name),
            Change::Damaged(name) => nodes::damaged(map, tick, *name),
            Change::Leave(leave) => nodes::leave(map, *leave, executed),
            Change::DeviceFailed(name) => nodes::device_failed(map, *name),
            Change::Reconfigure(wanted) => replicas::reconfigure(map, wanted, executed),
            Change::Voters(wanted) => voters::voters(map, wanted),
            Change::Settings(wanted) => settings::settings(map, *wanted),
        }
    }

    fn advance(&mut self, tick: Tick) -> Outcome {
        if tick < self.tick {
            return Err(format!("the tick is {} already", self.tick.0));
        }
        self.tick = tick;
        Ok(Effect::Nothing)
    }

    fn create(&mut self, map: &ClusterMap) -> Outcome {
        if self.map.epoch > 0 {
            let same = self.map.cluster == map.cluster;
            return if same {
                Ok(Effect::Nothing)
            } else {
                Err("there is a cluster already".into())
            };
        }
        // Checked as it will be: with the epoch that follows from the change.
        let first = completed(ClusterMap { epoch: 1, ..map.clone() });
        map.check_version().and_then(|()| check::check(&first)).map_err(|e| e.to_string())?;
        self.map = ClusterMap { epoch: 0, ..first };
        Ok(Effect::Changed)
    }
}
