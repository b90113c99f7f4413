//! Names of log records, for people. The matches are exhaustive, so that a new kind gets one.

use bb_commitlog::StreamId;

use crate::blockstore;
use crate::context::Stream;
use crate::files::FileChange;
use crate::namespace::SessionChange;
use crate::partition::Mutation;
use crate::partition::pg_mutation::PgMutation;
use crate::partition::record::Record;
use crate::partition::region_mutation::RegionMutation;

/// What the payload of a record of `stream` is.
pub(super) fn name(stream: StreamId, payload: &[u8]) -> &'static str {
    match Stream::from_id(stream) {
        Some(Stream::Map) => "map",
        Some(Stream::Blocks { .. }) => blockstore::kind_name(payload).unwrap_or(UNKNOWN),
        Some(Stream::Partition(_)) => {
            Record::decode(payload).map_or(UNKNOWN, |record| mutation(&record.mutation))
        }
        None => UNKNOWN,
    }
}

/// What cannot be read: a replay will say why.
const UNKNOWN: &str = "unreadable";

const fn mutation(mutation: &Mutation) -> &'static str {
    match mutation {
        Mutation::Pg(pg) => match pg {
            PgMutation::Commit(_) => "pg commit",
            PgMutation::Cancel { .. } => "pg cancel",
            PgMutation::Horizon { .. } => "pg horizon",
            PgMutation::Release { .. } => "pg release",
            PgMutation::ReleaseAcked { .. } => "pg release acked",
            PgMutation::Freed { .. } => "pg freed",
        },
        Mutation::Region(region) => match region {
            RegionMutation::Truncate { .. } => "region truncate",
            RegionMutation::TruncateDone { .. } => "region truncate done",
            RegionMutation::SyncBegin { .. } => "region sync begin",
            RegionMutation::SyncEnd { .. } => "region sync end",
            RegionMutation::ProcessGone { .. } => "region process gone",
            RegionMutation::StageBegin { .. } => "region stage begin",
            RegionMutation::StageEnd { .. } => "region stage end",
            RegionMutation::Purge { .. } => "region purge",
            RegionMutation::Drop { .. } => "region drop",
        },
        Mutation::File(file) => file_change(&file.change),
        Mutation::Session(session) => match session.change {
            SessionChange::Open(_) => "session open",
            SessionChange::Begin { .. } => "session begin",
            SessionChange::End { .. } => "session end",
            SessionChange::Resume { .. } => "session resume",
            SessionChange::GoneTold { .. } => "session gone told",
            SessionChange::Close => "session close",
        },
    }
}

const fn file_change(change: &FileChange) -> &'static str {
    match change {
        FileChange::Meet { .. } => "file meet",
        FileChange::Register { .. } => "file register",
        FileChange::Raise { .. } => "file raise",
        FileChange::Append { .. } => "file append",
        FileChange::TruncateBegin { .. } => "file truncate begin",
        FileChange::TruncateResume { .. } => "file truncate resume",
        FileChange::TruncateDone { .. } => "file truncate done",
        FileChange::SetGuard { .. } => "file set guard",
        FileChange::Rebase { .. } => "file rebase",
        FileChange::SyncBegin { .. } => "file sync begin",
        FileChange::SyncEnd { .. } => "file sync end",
        FileChange::SetConflict { .. } => "file set conflict",
        FileChange::SetPinned { .. } => "file set pinned",
        FileChange::SetHidden { .. } => "file set hidden",
        FileChange::DropBegin => "file drop begin",
        FileChange::DropEnd => "file drop end",
        FileChange::Forget => "file forget",
    }
}
