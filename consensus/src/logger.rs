//! What the Raft library logs, forwarded to `tracing`. Elections and lost quorums are its
//! warnings; here they are a day's work, so that only its errors are ours.

use slog::{Drain, Level, Logger, Never, OwnedKVList, Record, o};

struct Forward;

impl Drain for Forward {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => {
                tracing::error!(target: "bb_consensus::raft", "{}", record.msg());
            }
            Level::Warning | Level::Info => {
                tracing::debug!(target: "bb_consensus::raft", "{}", record.msg());
            }
            Level::Debug | Level::Trace => {}
        }
        Ok(())
    }

    fn is_enabled(&self, level: Level) -> bool {
        level.is_at_least(Level::Info)
    }
}

pub(crate) fn logger() -> Logger {
    Logger::root(Forward, o!())
}
