//! Commits: what can be refused before the log is bothered, what a region has to learn first, and
//! then the log.

use std::collections::BTreeSet;
use std::rc::Rc;

use bb_cluster::DeviceState;
use bb_erasure::crc32c;
use bb_proto::meta::{FileStat, FileState, decode};
use bb_proto::{
    Code, Commit, Failure, Fid, Kind, OpId, PgBody, RegionIndex, Rights, ServiceClass,
    TruncateEpoch,
};
use bb_transport::{CallError, Incoming, Response};
use futures_util::future::{join, join_all};

use super::apply_commit::{Verdict, region_of};
use super::engine::Partition;
use super::host::{PartitionHost, class_of};
use super::mutation::Mutation;
use super::pg_mutation::{CommitRecord, CommitRefusal, InlineBytes, PgMutation, PgOutcome};
use super::region_mutation::{RegionId, RegionMutation};
use super::table::{FileRecords, RegionTerms};
use crate::files::has_run;
use crate::planted::{self, Planted};
use crate::rights::check_capability;

/// How often a commit may find a region behind again: truncates that follow each other this fast
/// are the caller's to sort out.
const LEARN_ATTEMPTS: usize = 4;
/// Regions in a run of the file record.
const REGIONS_PER_RUN: u32 = 1024;

impl PartitionHost {
    pub(super) async fn serve_commit(
        &self,
        partition: &Rc<Partition>,
        request: &Incoming,
    ) -> Result<Response, Failure> {
        let commit = Commit::decode(&request.body)
            .map_err(|e| Failure::new(Code::Invalid, e.to_string()))?;
        check_capability(&self.env.shared, &commit.capability, Rights::WRITE, &request.peer)?;
        let id = commit.descriptor.pg;
        let trusted = commit.capability.rights.allows(Rights::SERVER);
        if !trusted && commit.capability.session != id.session {
            return Err(Failure::new(Code::Denied, "the group belongs to another session"));
        }
        if !trusted && commit.stage != OpId(0) {
            // It would make bytes clean that the backing file system may not have.
            return Err(Failure::new(Code::Denied, "only servers bring prestaged bytes"));
        }
        let tick = self.env.shared.tick();
        if id.slot > tick {
            return Err(Failure::new(Code::SlotAhead, "").with_value(tick.0));
        }
        let inline = inline_bytes(&commit, partition, request)?;
        let class = class_of(request);
        let (mut attempts, mut waits) = (0, 0);
        while attempts < LEARN_ATTEMPTS {
            let verdict = partition.state().judge_commit(&commit);
            let mut learning = None;
            let lessons = match verdict {
                Verdict::Duplicate => return Ok(Response::default()),
                Verdict::Refuse(CommitRefusal::RegionBehind(_)) => {
                    let fid = commit.capability.fid;
                    if self.partition_of(fid, RegionIndex(0)) == partition.id() {
                        self.own_lessons(partition, &commit)?
                    } else if waits < LEARN_ATTEMPTS
                        && self.learning.wait((partition.id(), fid)).await
                    {
                        waits += 1;
                        continue;
                    } else {
                        learning = Some(self.learning.begin((partition.id(), fid)));
                        self.lessons(partition, &commit, class).await?
                    }
                }
                Verdict::Refuse(refusal) => return Err(self.refusal(refusal)),
                Verdict::Apply => Vec::new(),
            };
            if let Some(response) =
                self.take_in(partition, &commit, &inline, lessons, class).await?
            {
                return Ok(response);
            }
            drop(learning);
            attempts += 1;
        }
        Err(Failure::new(Code::Busy, "the file is being truncated again and again"))
    }

    /// Logs what the regions have to learn first, and the group behind it in the same go; each is
    /// judged when it is applied. Nothing where a region is behind again.
    async fn take_in(
        &self,
        partition: &Rc<Partition>,
        commit: &Commit,
        inline: &InlineBytes,
        lessons: Vec<RegionMutation>,
        class: ServiceClass,
    ) -> Result<Option<Response>, Failure> {
        self.check_budget(partition, commit, inline.len())?;
        let absent_members = self.absent_members(partition, commit);
        if has_too_few(commit, absent_members) {
            return self.forbid(partition, class, commit.descriptor.pg).await.map(Some);
        }
        #[cfg(feature = "planted")]
        self.free_before_commit(partition, commit);
        let commit = Commit { closes: 0, ..commit.clone() };
        let record = CommitRecord { commit, absent_members, inline: inline.clone() };
        let mutation = Mutation::Pg(PgMutation::Commit(Box::new(record)));
        let lessons = lessons.into_iter().map(|m| partition.submit(class, Mutation::Region(m)));
        let (_, outcome) = join(join_all(lessons), partition.submit(class, mutation)).await;
        match outcome?.pg()? {
            PgOutcome::Refused(CommitRefusal::RegionBehind(_)) => Ok(None),
            PgOutcome::Refused(refusal) => Err(self.refusal(refusal)),
            _ => Ok(Some(Response::default())),
        }
    }

    fn refusal(&self, refusal: CommitRefusal) -> Failure {
        match refusal {
            CommitRefusal::BehindHorizon => {
                Failure::new(Code::BehindHorizon, "").with_value(self.env.shared.tick().0)
            }
            CommitRefusal::Cancelled => Failure::new(Code::CommitCancelled, ""),
            CommitRefusal::OldEpoch(current) => {
                Failure::new(Code::OldTruncateEpoch, "").with_value(current.0)
            }
            CommitRefusal::RegionBehind(_) => Failure::new(Code::Busy, "a region is behind"),
            CommitRefusal::FileDropped => Failure::new(Code::StaleFile, "the file was dropped"),
            CommitRefusal::Invalid(why) => Failure::new(Code::Invalid, why),
        }
    }

    /// Metadata has a budget (rule 16), and inline groups have half of it: their bytes stay in the
    /// log and in its snapshots, and the client puts what is refused into blocks. Not a condition of
    /// the mutation: what is refused here has not been logged.
    fn check_budget(
        &self,
        partition: &Partition,
        commit: &Commit,
        inline_bytes: usize,
    ) -> Result<(), Failure> {
        let (inline_bytes, max) = (inline_bytes as u64, self.config.metadata_bytes_max);
        let fragments = commit.fragments.len() as u64 * super::region_table::FRAGMENT_BYTES;
        let members = match &commit.descriptor.body {
            PgBody::Blocks { members, .. } => members.len() as u64,
            PgBody::Inline { .. } => 0,
        };
        let is_home = commit.descriptor.pg.home == partition.id();
        let group = super::pg::record_bytes(members, is_home.then_some(commit.participants.len()));
        let enough = self.meter.memory_bytes() + fragments + group + inline_bytes <= max
            && (inline_bytes == 0 || self.meter.inline_bytes() + inline_bytes <= max / 2);
        if !enough && !planted::is(Planted::IgnoreBudget) {
            return Err(Failure::new(Code::NoSpace, "the memory for metadata is used up"));
        }
        Ok(())
    }

    /// Members (bit = index) whose blocks the map does not have at hand (rule 5): the device was given
    /// up since it was written to, or its node went down. Home's to say; a participant's stub follows.
    fn absent_members(&self, partition: &Partition, commit: &Commit) -> u32 {
        let PgBody::Blocks { members, .. } = &commit.descriptor.body else { return 0 };
        if commit.descriptor.pg.home != partition.id() {
            return 0;
        }
        let map = self.env.shared.map();
        let is_absent = |device| {
            let entry = map.device(device).filter(|entry| entry.state() == DeviceState::Active);
            entry.is_none_or(|entry| !map.is_active(entry.node))
        };
        let absent = (0..).zip(members).filter(|(_, member)| is_absent(member.device));
        absent.fold(0, |bits, (index, _): (u32, _)| bits | 1 << index)
    }

    /// Too many of a group's members went away before its commit: its client, who still has the
    /// bytes, writes them elsewhere. Forbidden in the log, since a copy of the commit may be on its
    /// way (rule 3).
    async fn forbid(
        &self,
        partition: &Rc<Partition>,
        class: ServiceClass,
        pg: bb_proto::PgId,
    ) -> Result<Response, Failure> {
        let mutation = Mutation::Pg(PgMutation::Cancel { pg });
        match partition.submit(class, mutation).await?.pg()? {
            PgOutcome::Cancelled { committed: true } => Ok(Response::default()),
            _ => {
                Err(Failure::new(Code::CommitCancelled, "too many of the group's members are gone"))
            }
        }
    }

    /// What the regions of the commit that are behind have to learn of a file whose record is here,
    /// too: nothing has to be asked, and a small file costs one round of the log.
    fn own_lessons(
        &self,
        partition: &Rc<Partition>,
        commit: &Commit,
    ) -> Result<Vec<RegionMutation>, Failure> {
        let fid = commit.capability.fid;
        let state = partition.state();
        let known = state.files.region_terms(fid, TruncateEpoch(0)).ok_or_else(stale)?;
        let mut lessons = Vec::new();
        for id in self.regions_of(partition, commit, known.region_log2)? {
            let at = state.regions.get(id).map(super::region::Region::epoch);
            lessons.extend(match at {
                Some(epoch) if epoch >= commit.epoch => None,
                Some(epoch) => {
                    let terms = state.files.region_terms(fid, epoch).ok_or_else(stale)?;
                    Some(truncate(id, commit.epoch, &terms)?)
                }
                None if !has_run(id.region.0 / REGIONS_PER_RUN, known.region_log2) => {
                    return Err(Failure::new(Code::Invalid, "no file is that large"));
                }
                None if known.epoch < commit.epoch => return Err(not_reached()),
                None => Some(RegionMutation::Open { id }),
            });
        }
        Ok(lessons)
    }

    /// The regions that a commit writes to, all of them of this partition.
    fn regions_of(
        &self,
        partition: &Partition,
        commit: &Commit,
        region_log2: u8,
    ) -> Result<BTreeSet<RegionId>, Failure> {
        let fid = commit.capability.fid;
        let region = |fragment| {
            let id = region_of(fid, fragment, region_log2);
            id.filter(|id| self.partition_of(fid, id.region) == partition.id())
        };
        let regions: Option<_> = commit.fragments.iter().map(region).collect();
        regions.ok_or_else(|| {
            Failure::new(Code::Invalid, "a fragment does not lie in a region of the partition")
        })
    }

    /// What the regions of the commit that are behind have to learn of a file whose record is in another
    /// partition (rule 7).
    async fn lessons(
        &self,
        partition: &Rc<Partition>,
        commit: &Commit,
        class: ServiceClass,
    ) -> Result<Vec<RegionMutation>, Failure> {
        let fid = commit.capability.fid;
        let known = partition.state().regions.region_log2(fid);
        let region_log2 = match known {
            Some(region_log2) => region_log2,
            None => self.terms(fid, commit.epoch, None, class).await?.region_log2,
        };
        let mut lessons = Vec::new();
        for id in self.regions_of(partition, commit, region_log2)? {
            lessons.extend(self.lesson(partition, id, commit.epoch, class).await?);
        }
        Ok(lessons)
    }

    async fn lesson(
        &self,
        partition: &Rc<Partition>,
        id: RegionId,
        wanted: TruncateEpoch,
        class: ServiceClass,
    ) -> Result<Option<RegionMutation>, Failure> {
        let at = partition.state().regions.get(id).map(super::region::Region::epoch);
        if at.is_some_and(|epoch| epoch >= wanted) {
            return Ok(None);
        }
        // A region that is opened holds nothing that an older truncate could cut. It matters only
        // whether the newest is still under way, and where that cuts.
        let before = TruncateEpoch(wanted.0.saturating_sub(1));
        let terms = self.terms(id.fid, at.unwrap_or(before), Some(id.region), class).await?;
        truncate(id, wanted, &terms).map(Some)
    }

    /// What the file record, in another partition, says to a region that has seen truncates up to
    /// `after`.
    async fn terms(
        &self,
        fid: Fid,
        after: TruncateEpoch,
        region: Option<RegionIndex>,
        class: ServiceClass,
    ) -> Result<RegionTerms, Failure> {
        let unregistered = || Failure::new(Code::RegionUnknown, "register the region first");
        let owner = self.partition_of(fid, RegionIndex(0));
        let file = self.file_state(owner, fid, after, class).await?;
        if !file.known {
            return Err(stale());
        }
        if region.is_some_and(|region| !is_registered(&file, region)) {
            return Err(unregistered());
        }
        let region_log2 = u8::try_from(file.region_log2).ok().filter(|l| (20..=40).contains(l));
        Ok(RegionTerms {
            region_log2: region_log2
                .ok_or_else(|| Failure::new(Code::Busy, "the file record has no region size"))?,
            epoch: TruncateEpoch(file.epoch),
            size: file.size,
            truncating: file.truncating,
        })
    }

    pub(super) async fn file_state(
        &self,
        owner: bb_proto::PartitionId,
        fid: Fid,
        after: TruncateEpoch,
        class: ServiceClass,
    ) -> Result<FileState, Failure> {
        let question = FileStat { fid: fid.into(), counts: false, truncates_after: Some(after.0) };
        match self.ask_partition(Kind::FileStat, class, owner, &question).await {
            Ok(answer) => decode(&answer.body),
            // For good: no such file, or the record's partition is lost.
            Err(CallError::Refused(failure, _))
                if matches!(failure.kind(), Code::StaleFile | Code::Errno) =>
            {
                Err(failure)
            }
            // Whatever it is, it passes: the commit can be sent again.
            Err(error) => Err(Failure::new(Code::Busy, format!("asking the file record: {error}"))),
        }
    }
}

fn stale() -> Failure {
    Failure::new(Code::StaleFile, "no record of this file")
}

fn not_reached() -> Failure {
    Failure::new(Code::Invalid, "an epoch that the file has not reached")
}

/// A region learns what the file record says, which must be at least at `wanted`.
fn truncate(
    id: RegionId,
    wanted: TruncateEpoch,
    terms: &RegionTerms,
) -> Result<RegionMutation, Failure> {
    let RegionTerms { region_log2, epoch, size, truncating } = *terms;
    if epoch < wanted {
        return Err(not_reached());
    }
    Ok(RegionMutation::Truncate { id, region_log2, epoch, size, done: !truncating })
}

/// True if more members are absent than parity makes up for.
fn has_too_few(commit: &Commit, absent: u32) -> bool {
    match &commit.descriptor.body {
        PgBody::Blocks { parity, .. } => absent.count_ones() > u32::from(*parity),
        PgBody::Inline { .. } => false,
    }
}

/// Whether the file record, as it says of itself, has this region.
fn is_registered(file: &FileState, region: RegionIndex) -> bool {
    let run = region.0 / REGIONS_PER_RUN;
    let in_part = |end: &u32| region.0 < *end && (*end - 1) / REGIONS_PER_RUN == run;
    file.runs.contains(&run) || file.run_ends.iter().any(in_part)
}

/// The payload of an inline group, at home.
fn inline_bytes(
    commit: &Commit,
    partition: &Partition,
    request: &Incoming,
) -> Result<InlineBytes, Failure> {
    let PgBody::Inline { len, crc } = &commit.descriptor.body else {
        return Ok(InlineBytes::default());
    };
    if commit.descriptor.pg.home != partition.id() {
        return Ok(InlineBytes::default());
    }
    let bytes = request.payload.as_deref().unwrap_or_default();
    if u32::try_from(bytes.len()) != Ok(*len) {
        return Err(Failure::new(Code::Invalid, "an inline group without its bytes"));
    }
    if crc32c(bytes) != *crc {
        return Err(Failure::new(Code::Corrupt, "the bytes of the inline group"));
    }
    Ok(bytes.into())
}
