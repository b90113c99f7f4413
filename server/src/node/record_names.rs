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
        Some(Stream::Map) => "votes",
        Some(Stream::Node) => "node",
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
            RegionMutation::Open { .. } => "region open",
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::mutation as name_of;
    use crate::fuzz_tests::life;
    use crate::partition::Mutation;

    /// Rows of the page's tables of mutations: by table and kind, the name and the size.
    fn documented() -> BTreeMap<(u8, u8), (String, String)> {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/format-partitions.md");
        let page = std::fs::read_to_string(page).expect("the page");
        let (mut table, mut rows) = (None, BTreeMap::new());
        for line in page.lines() {
            if let Some(title) = line.strip_prefix("### Table ") {
                table = title.split(':').next().and_then(|number| number.parse().ok());
            } else if line.starts_with('#') {
                table = None;
            }
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            if let (Some(table), [_, kind, name, size, ..]) = (table, cells.as_slice())
                && let Ok(kind) = kind.parse()
                && let Some(name) = Some(*name).filter(|name| !name.contains("bytes"))
                && cells.len() == 6
            {
                rows.insert((table, kind), ((*name).to_owned(), (*size).to_owned()));
            }
        }
        rows
    }

    /// Where the kind stands in the body.
    fn kind_at(table: u8) -> usize {
        [0, 0, 16, 8][usize::from(table) - 1]
    }

    #[test]
    fn documented_kinds_and_sizes_are_those_of_the_source() {
        let documented = documented();
        let mut seen = BTreeSet::new();
        for mutation in life() {
            let (table, body) = (mutation.table() as u8, mutation.encode_body());
            let kind = body[kind_at(table)];
            let (name, size) =
                documented.get(&(table, kind)).unwrap_or_else(|| panic!("{mutation:?}"));
            assert_eq!(name, name_of(&mutation), "table {table}, kind {kind}");
            let sizes = size.split(" or ").map(str::parse).collect::<Result<Vec<usize>, _>>();
            if let Ok(sizes) = sizes {
                assert!(sizes.contains(&body.len()), "{name}: {} bytes", body.len());
            }
            seen.insert((table, kind));
        }
        assert_eq!(seen, documented.keys().copied().collect(), "all of them, and no other");
        // And the source knows no others.
        for table in 1..=4 {
            let next = 1 + documented.keys().filter(|(of, _)| *of == table).count();
            let mut body = vec![0; 200];
            body[kind_at(table)] = u8::try_from(next).expect("few kinds");
            let error = Mutation::decode_body(table, &body).expect_err("not a kind").to_string();
            assert!(error.contains("mutation") || error.contains("change"), "{table}: {error}");
        }
        assert!(Mutation::decode_body(5, &[0; 200]).is_err(), "a fifth table");
    }
}
