//! What the partition of (file, region 0) knows of a file.

use bb_proto::meta::{BegunRun, Guard};
use bb_proto::{ClientSequence, DecodeError, OpId, Reader, RegionIndex, SessionId};
use bb_proto::{TruncateEpoch, Writer};

use crate::partition::region_mutation::ProcessId;
use crate::partition::table::{
    Encoded, RegionTerms, put_bytes, put_list, put_u8, put_u32, put_u64, take_bool, take_bytes,
    take_list, take_u8, take_u32, take_u64,
};

/// Regions of a run.
pub const RUN_REGIONS: u32 = 1024;

/// Truncates that are remembered. A retry is answered from them; regions that have bytes are never
/// more than one behind, since a truncate is done only when each has applied it.
const TRUNCATES_MAX: usize = 16;

/// Identity on the backing file system, without its UUID: that is the cluster's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandleKey {
    /// Type of the handle.
    pub handle_type: i32,
    /// The handle.
    pub handle: Box<[u8]>,
    /// Birth time in ns since 1970, 0 where the handle holds a generation.
    pub birth_ns: i64,
}

/// A truncate that was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Truncate {
    /// Its epoch.
    pub epoch: TruncateEpoch,
    /// The size it gave the file.
    pub size: u64,
    /// Who asked, so that a retry is known.
    pub session: SessionId,
    /// His number for it.
    pub sequence: ClientSequence,
}

/// A sync session: several primaries write the file meanwhile (the guard is not compared).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SyncSession {
    /// The operation.
    pub op: OpId,
    /// The process that began it.
    pub process: ProcessId,
}

/// A run of regions of which the first `regions` are registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Number: region / 1,024.
    pub run: u32,
    /// How many, from its start.
    pub regions: u32,
}

/// What can happen to a file only now and then. Boxed: most records have none of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rare {
    /// Recent truncates, oldest first.
    pub truncates: Vec<Truncate>,
    /// The process of the newest truncate while it is not done on the backing file system.
    pub truncating: Option<ProcessId>,
    /// Sync session.
    pub sync: Option<SyncSession>,
    /// Exempt from the automatic engine.
    pub pinned: bool,
    /// Changed on the backing file system while there was dirty data here.
    pub conflict: bool,
    /// Its last name was removed while it was open.
    pub hidden: bool,
    /// Its data is being dropped: the record goes when every region has.
    pub dropping: bool,
}

/// A file record.
///
/// 112 bytes, 16 for the id and about 30 in the map; with a handle of 8 bytes and one run 170 in
/// all, and 56 more (40 per remembered truncate) while anything of [`Rare`] is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileRecord {
    /// Identity.
    pub key: HandleKey,
    /// Size in bytes, with dirty data.
    pub size: u64,
    /// Modification time of the application's last write; 0: the backing file system's holds.
    pub mtime_ns: i64,
    /// Truncate epoch.
    pub epoch: TruncateEpoch,
    /// What the backing file system had when we last looked.
    pub guard: Guard,
    /// log2 of the region size in bytes.
    pub region_log2: u8,
    /// Registered runs, sorted.
    pub runs: Vec<Run>,
    /// The rest.
    pub rare: Option<Box<Rare>>,
}

const _: () = assert!(size_of::<FileRecord>() <= 112);

impl FileRecord {
    /// What is rare, for reading.
    pub fn rare(&self) -> &Rare {
        static NONE: Rare = Rare {
            truncates: Vec::new(),
            truncating: None,
            sync: None,
            pinned: false,
            conflict: false,
            hidden: false,
            dropping: false,
        };
        self.rare.as_deref().unwrap_or(&NONE)
    }

    /// Changes what is rare; nothing is kept where nothing is left of it.
    pub fn change_rare<T>(&mut self, change: impl FnOnce(&mut Rare) -> T) -> T {
        let mut rare = self.rare.take().unwrap_or_default();
        let result = change(&mut rare);
        if *rare != Rare::default() {
            self.rare = Some(rare);
        }
        result
    }

    /// True if the record says nothing that the backing file system does not say.
    pub fn is_needless(&self) -> bool {
        self.runs.is_empty()
            && self.size == self.guard.size
            && self.mtime_ns == 0
            && self.rare().truncating.is_none()
            && self.rare().sync.is_none()
            && !(self.rare().pinned || self.rare().conflict)
            && !(self.rare().hidden || self.rare().dropping)
    }

    /// Remembers a truncate.
    pub fn remember(&mut self, truncate: Truncate) {
        self.change_rare(|rare| {
            if rare.truncates.len() == TRUNCATES_MAX {
                let oldest = rare.truncates.remove(0);
                let next = &mut rare.truncates[0];
                next.size = next.size.min(oldest.size);
            }
            rare.truncates.push(truncate);
        });
    }

    /// What a region has to know that has seen truncates up to `after`.
    pub fn terms(&self, after: TruncateEpoch) -> RegionTerms {
        let missed = self.rare().truncates.iter().filter(|t| t.epoch > after).map(|t| t.size);
        RegionTerms {
            region_log2: self.region_log2,
            epoch: self.epoch,
            size: missed.min().unwrap_or(u64::MAX),
            truncating: self.rare().truncating.is_some(),
        }
    }

    /// True if a region is registered.
    pub fn is_registered(&self, region: RegionIndex) -> bool {
        let (run, index) = (region.0 / RUN_REGIONS, region.0 % RUN_REGIONS);
        let found = self.runs.binary_search_by_key(&run, |r| r.run);
        found.is_ok_and(|at| index < self.runs[at].regions)
    }

    /// Registers the first `regions` of a run; true if that changed anything.
    pub fn register(&mut self, run: u32, regions: u32) -> bool {
        match self.runs.binary_search_by_key(&run, |r| r.run) {
            Ok(at) if self.runs[at].regions >= regions => false,
            Ok(at) => {
                self.runs[at].regions = regions;
                true
            }
            Err(at) => {
                self.runs.insert(at, Run { run, regions });
                true
            }
        }
    }

    /// All registered regions.
    pub fn regions(&self) -> impl Iterator<Item = RegionIndex> + use<> {
        let runs = self.runs.clone();
        runs.into_iter()
            .flat_map(|r| (0..r.regions).map(move |i| RegionIndex(r.run * RUN_REGIONS + i)))
    }

    /// Runs that are registered as a whole: what clients need not register again.
    pub fn whole_runs(&self) -> Vec<u32> {
        self.runs.iter().filter(|r| r.regions == RUN_REGIONS).map(|r| r.run).collect()
    }

    /// Runs of which only the first regions are registered.
    pub fn begun_runs(&self) -> Vec<BegunRun> {
        let begun = self.runs.iter().filter(|r| r.regions < RUN_REGIONS);
        begun.map(|r| BegunRun { run: r.run, regions: r.regions }).collect()
    }

    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let rare = self.rare.as_ref().map_or(0, |rare| {
            size_of::<Rare>() + rare.truncates.capacity() * size_of::<Truncate>()
        });
        let runs = self.runs.capacity() * size_of::<Run>();
        // A B-tree is two thirds full on average.
        let node = (size_of::<Self>() + size_of::<u128>()) * 3 / 2;
        (node + self.key.handle.len() + runs + rare) as u64
    }
}

pub(super) fn put_i64(out: &mut Writer, value: i64) {
    put_u64(out, value.cast_unsigned());
}

pub(super) fn take_i64(reader: &mut Reader<'_>) -> Result<i64, DecodeError> {
    Ok(take_u64(reader)?.cast_signed())
}

pub(super) fn put_guard(out: &mut Writer, guard: &Guard) {
    put_u64(out, guard.size);
    put_i64(out, guard.mtime_ns);
}

pub(super) fn take_guard(reader: &mut Reader<'_>) -> Result<Guard, DecodeError> {
    Ok(Guard { size: take_u64(reader)?, mtime_ns: take_i64(reader)? })
}

fn put_option<T: Encoded>(out: &mut Writer, value: Option<&T>) {
    put_u8(out, u8::from(value.is_some()));
    if let Some(value) = value {
        value.encode(out);
    }
}

fn take_option<T: Encoded>(reader: &mut Reader<'_>) -> Result<Option<T>, DecodeError> {
    Ok(if take_bool(reader)? { Some(T::decode(reader)?) } else { None })
}

impl Encoded for HandleKey {
    fn encode(&self, out: &mut Writer) {
        put_u32(out, self.handle_type.cast_unsigned());
        put_bytes(out, &self.handle);
        put_i64(out, self.birth_ns);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let handle_type = take_u32(reader)?.cast_signed();
        let handle = take_bytes(reader)?;
        if handle.len() > 128 {
            return Err(DecodeError::Field("handle"));
        }
        Ok(Self { handle_type, handle: handle.into(), birth_ns: take_i64(reader)? })
    }
}

impl Encoded for Truncate {
    fn encode(&self, out: &mut Writer) {
        put_u64(out, self.epoch.0);
        put_u64(out, self.size);
        put_u64(out, self.session.0);
        put_u64(out, self.sequence.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            epoch: TruncateEpoch(take_u64(reader)?),
            size: take_u64(reader)?,
            session: SessionId(take_u64(reader)?),
            sequence: ClientSequence(take_u64(reader)?),
        })
    }
}

impl Encoded for SyncSession {
    fn encode(&self, out: &mut Writer) {
        put_u64(out, self.op.0);
        self.process.encode(out);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { op: OpId(take_u64(reader)?), process: ProcessId::decode(reader)? })
    }
}

impl Encoded for Run {
    fn encode(&self, out: &mut Writer) {
        put_u32(out, self.run);
        put_u32(out, self.regions);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (run, regions) = (take_u32(reader)?, take_u32(reader)?);
        let fits = run <= u32::MAX / RUN_REGIONS && (1..=RUN_REGIONS).contains(&regions);
        if fits { Ok(Self { run, regions }) } else { Err(DecodeError::Field("run")) }
    }
}

const PINNED: u8 = 1;
const CONFLICT: u8 = 2;
const HIDDEN: u8 = 4;
const DROPPING: u8 = 8;

impl Encoded for FileRecord {
    fn encode(&self, out: &mut Writer) {
        self.key.encode(out);
        put_u64(out, self.size);
        put_i64(out, self.mtime_ns);
        put_u64(out, self.epoch.0);
        put_guard(out, &self.guard);
        put_u8(out, self.region_log2);
        put_list(out, &self.runs);
        let rare = self.rare();
        put_list(out, &rare.truncates);
        put_option(out, rare.truncating.as_ref());
        put_option(out, rare.sync.as_ref());
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        put_u8(
            out,
            bit(rare.pinned, PINNED)
                | bit(rare.conflict, CONFLICT)
                | bit(rare.hidden, HIDDEN)
                | bit(rare.dropping, DROPPING),
        );
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut record = Self {
            key: HandleKey::decode(reader)?,
            size: take_u64(reader)?,
            mtime_ns: take_i64(reader)?,
            epoch: TruncateEpoch(take_u64(reader)?),
            guard: take_guard(reader)?,
            region_log2: take_u8(reader)?,
            runs: take_list(reader)?,
            rare: None,
        };
        let sorted = record.runs.is_sorted_by(|a, b| a.run < b.run);
        if !sorted || !(20..=40).contains(&record.region_log2) {
            return Err(DecodeError::Field("file record"));
        }
        let rare = Rare {
            truncates: take_list(reader)?,
            truncating: take_option(reader)?,
            sync: take_option(reader)?,
            ..Rare::default()
        };
        let bits = take_u8(reader)?;
        if bits & !(PINNED | CONFLICT | HIDDEN | DROPPING) != 0 {
            return Err(DecodeError::Field("file flags"));
        }
        record.change_rare(|all| {
            *all = Rare {
                pinned: bits & PINNED != 0,
                conflict: bits & CONFLICT != 0,
                hidden: bits & HIDDEN != 0,
                dropping: bits & DROPPING != 0,
                ..rare
            };
        });
        Ok(record)
    }
}
