//! The rows: what is done, by how many, and what must have been done before.

/// Size of a record of the shared file, as IOR-hard has it.
pub const RECORD: u64 = 47_008;
/// Size of a small file, as mdtest-hard has it.
pub const SMALL: u64 = 3_901;
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// How many processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ranks {
    /// One.
    One,
    /// As many as clients are asked for.
    All,
    /// Twice as many.
    Double,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Bytes per second.
    Bytes,
    /// Operations per second.
    Operations,
}

/// Who can do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Every system.
    All,
    /// What keeps files of its own: not the direct limits, which are files that are there already.
    Files,
    /// Burstbay.
    Burstbay,
    /// Burstbay with parity.
    Parity,
    /// The clusters that show what a slow server does.
    Slow,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, for `--only` and in all that is printed.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Phase of bench/c/load.
    pub phase: &'static str,
    /// Row that makes the files.
    pub needs: Option<&'static str>,
    /// Bytes of a call.
    pub len: u64,
    /// Processes.
    pub ranks: Ranks,
    /// Under way in all, spread over the processes.
    pub depth: u64,
    /// Reads what the rank so many further has written.
    pub shift: u64,
    /// What is counted.
    pub unit: Unit,
    /// Who can do it.
    pub who: Who,
    /// Each byte of it must have reached the devices (N+K)/N times when it ends.
    pub durable: bool,
    /// One server is dead meanwhile.
    pub degraded: bool,
    /// Placement by the names of parity groups, whatever servers say of their load.
    pub deterministic: bool,
}

const BASE: Row = Row {
    name: "",
    about: "",
    phase: "",
    needs: None,
    len: MIB,
    ranks: Ranks::All,
    depth: 0,
    shift: 0,
    unit: Unit::Bytes,
    who: Who::All,
    durable: false,
    degraded: false,
    deterministic: false,
};

/// All rows, in the order of a round. A server that begins to serve partitions takes each file for open
/// for a minute, so that what is removed meanwhile keeps its space: the row that kills one comes late,
/// and the rows of a round begin with small ones.
pub const ROWS: &[Row] = &[
    Row {
        name: "small-create",
        about: "create, write 3,901 bytes, close; 16 under way",
        phase: "small-create",
        len: SMALL,
        depth: 16,
        unit: Unit::Operations,
        who: Who::Files,
        durable: true,
        ..BASE
    },
    Row {
        name: "small-stat",
        about: "stat; 16 under way",
        phase: "small-stat",
        needs: Some("small-create"),
        len: SMALL,
        depth: 16,
        unit: Unit::Operations,
        who: Who::Files,
        ..BASE
    },
    Row {
        name: "small-read",
        about: "open, read, close; 16 under way",
        phase: "small-read",
        needs: Some("small-create"),
        len: SMALL,
        depth: 16,
        unit: Unit::Operations,
        who: Who::Files,
        ..BASE
    },
    Row {
        name: "small-unlink",
        about: "unlink; 16 under way",
        phase: "small-unlink",
        needs: Some("small-create"),
        len: SMALL,
        depth: 16,
        unit: Unit::Operations,
        who: Who::Files,
        ..BASE
    },
    Row {
        name: "fsync-1",
        about: "4 KiB write and fsync, one job",
        phase: "fsync",
        len: PAGE,
        ranks: Ranks::One,
        depth: 1,
        unit: Unit::Operations,
        durable: true,
        ..BASE
    },
    Row {
        name: "fsync-64",
        about: "4 KiB write and fsync, 64 jobs",
        phase: "fsync",
        len: PAGE,
        depth: 64,
        unit: Unit::Operations,
        durable: true,
        ..BASE
    },
    Row {
        name: "shared-write",
        about: "47,008-byte records of one file, interleaved, fsync",
        phase: "shared-write",
        len: RECORD,
        who: Who::Files,
        durable: true,
        ..BASE
    },
    Row {
        name: "shared-read",
        about: "the same records by new processes",
        phase: "shared-read",
        needs: Some("shared-write"),
        len: RECORD,
        who: Who::Files,
        ..BASE
    },
    Row {
        name: "shared-read-shifted",
        about: "each process what the next one wrote",
        phase: "shared-read",
        needs: Some("shared-write"),
        len: RECORD,
        shift: 1,
        who: Who::Files,
        ..BASE
    },
    Row {
        name: "shared-read-double",
        about: "by twice as many processes",
        phase: "shared-read",
        needs: Some("shared-write"),
        len: RECORD,
        ranks: Ranks::Double,
        who: Who::Files,
        ..BASE
    },
    Row {
        name: "seq-write",
        about: "1 MiB calls, a file per process, fsync",
        phase: "stream-write",
        durable: true,
        ..BASE
    },
    Row {
        name: "seq-read",
        about: "1 MiB calls, by new processes",
        phase: "stream-read",
        needs: Some("seq-write"),
        shift: 1,
        ..BASE
    },
    Row {
        name: "rand-read-1",
        about: "4 KiB at random, one at a time",
        phase: "random-read",
        needs: Some("seq-write"),
        len: PAGE,
        ranks: Ranks::One,
        depth: 1,
        unit: Unit::Operations,
        ..BASE
    },
    Row {
        name: "rand-read-64",
        about: "4 KiB at random, 64 under way",
        phase: "random-read",
        needs: Some("seq-write"),
        len: PAGE,
        depth: 64,
        unit: Unit::Operations,
        ..BASE
    },
    Row {
        name: "sync",
        about: "to the backing file system",
        phase: "sync",
        needs: Some("seq-write"),
        who: Who::Burstbay,
        ..BASE
    },
    Row {
        name: "prestage",
        about: "from the backing file system",
        phase: "prestage",
        needs: Some("sync"),
        who: Who::Burstbay,
        ..BASE
    },
    Row {
        name: "seq-read-degraded",
        about: "the same with one server dead",
        phase: "stream-read",
        needs: Some("seq-write"),
        shift: 1,
        who: Who::Parity,
        degraded: true,
        ..BASE
    },
    Row {
        name: "rand-write-1",
        about: "4 KiB at random, one at a time, one fsync",
        phase: "random-write",
        needs: Some("seq-write"),
        len: PAGE,
        ranks: Ranks::One,
        depth: 1,
        unit: Unit::Operations,
        durable: true,
        ..BASE
    },
    Row {
        name: "rand-write-64",
        about: "4 KiB at random, 64 under way, one fsync",
        phase: "random-write",
        needs: Some("seq-write"),
        len: PAGE,
        depth: 64,
        unit: Unit::Operations,
        durable: true,
        ..BASE
    },
    Row {
        name: "seq-write-fixed",
        about: "the same, deterministic placement",
        phase: "stream-write",
        who: Who::Slow,
        durable: true,
        deterministic: true,
        ..BASE
    },
];

/// The row of that name.
pub fn find(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

/// The rows that are wanted, and those that they need, in the order of a round.
///
/// # Errors
/// There is no such row.
pub fn chosen(only: &[String]) -> Result<Vec<&'static Row>, String> {
    if only.is_empty() {
        return Ok(ROWS.iter().collect());
    }
    let mut names: Vec<&str> = only.iter().map(String::as_str).collect();
    let mut at = 0;
    while at < names.len() {
        let name = names[at];
        if names[..at].contains(&name) {
            at += 1;
            continue;
        }
        let row = find(name).ok_or_else(|| {
            let all: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            format!("there is no row '{name}': {}", all.join(", "))
        })?;
        names.extend(row.needs);
        // The next round makes the same files.
        names.extend((row.phase == "small-create").then_some("small-unlink"));
        at += 1;
    }
    Ok(ROWS.iter().filter(|row| names.contains(&row.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_with_what_it_needs_and_after_it() {
        let names: Vec<&str> =
            chosen(&["prestage".to_owned()]).unwrap().iter().map(|row| row.name).collect();
        assert_eq!(names, ["seq-write", "sync", "prestage"]);
        let names: Vec<&str> =
            chosen(&["small-stat".to_owned()]).unwrap().iter().map(|row| row.name).collect();
        assert_eq!(names, ["small-create", "small-stat", "small-unlink"]);
        assert!(chosen(&["nothing".to_owned()]).is_err());
        for (i, row) in ROWS.iter().enumerate() {
            let before = |name| ROWS[..i].iter().any(|earlier| earlier.name == name);
            assert!(row.needs.is_none_or(before), "{}", row.name);
            assert!(!ROWS[..i].iter().any(|earlier| earlier.name == row.name), "{}", row.name);
        }
    }
}
