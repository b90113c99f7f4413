//! Storing one sealed group: blocks, then home, then the participants; again under another id
//! where one of them refuses it for good.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use bb_erasure::crc32c;
use bb_pgio::{Sealed, Shape, WriteError, chunk_log2_for};
use bb_proto::meta::{self, CancelCommit, CancelCommitReply};
use bb_proto::{
    Code, Failure, Fragment, Kind, PartitionId, PgBody, PgDescriptor, PgId, RegionIndex,
    partition_of,
};
use bb_runtime::Buf;
use futures_util::future::join_all;

use crate::client::Inner;
use crate::commit::{End, Part};
use crate::error::{Error, Result};
use crate::link::Ask;
use crate::node::{Group, Node, RUN_REGIONS, for_slabs};
use crate::ranges::overlap;

/// One id's worth of a sealed group: everything, unless fewer devices are left than when it was
/// packed.
struct Share {
    fragments: Vec<Fragment>,
    /// Where in the group its data begins.
    base: usize,
    used: usize,
    shape: Shape,
}

/// A commit (or the rest of one) whose outcome is not known when its writer gives up.
pub(crate) enum Unresolved {
    Home(PgId),
    Participants(PgDescriptor, Vec<Part>),
}

/// Why a group, or a share of it, is not stored.
enum Stop {
    /// Nothing is on record: try again under a new id.
    Again,
    /// The same, with a smaller shape, because of this: it is what the application hears where
    /// there is no time left.
    Smaller(Error),
    Failed(Error, Vec<Unresolved>),
}

impl Inner {
    /// Stores a group. When it returns, the group is resolved and off the file's list.
    pub async fn store(self: Rc<Self>, node: &Rc<Node>, group: &Rc<Group>) {
        let give_up = self.link.give_up();
        let mut inline = true;
        while !group.left.borrow().is_empty() {
            match self.store_share(node, group, &mut inline, give_up).await {
                Ok(()) => {}
                Err(Stop::Again | Stop::Smaller(_)) if self.rt().now() < give_up => {
                    self.link.back_off(0).await;
                }
                Err(Stop::Smaller(error)) => {
                    give_up_on(node, group, error);
                    break;
                }
                Err(Stop::Again) => {
                    give_up_on(node, group, self.link.timed_out());
                    break;
                }
                Err(Stop::Failed(error, unresolved)) => {
                    give_up_on(node, group, error);
                    self.resolve(node, unresolved).await;
                    break;
                }
            }
        }
        // The next look at the map must find what the overlay shows no longer.
        node.maps.borrow_mut().forget();
        group.resolved.set(true);
        *group.contents.borrow_mut() = None;
        node.groups.borrow_mut().retain(|other| !Rc::ptr_eq(other, group));
        node.progress.notify_all();
        self.sealable.notify_all();
        self.forget_unused(node);
    }

    async fn store_share(
        self: &Rc<Self>,
        node: &Rc<Node>,
        group: &Group,
        inline: &mut bool,
        give_up: bb_runtime::Instant,
    ) -> std::result::Result<(), Stop> {
        let failed = |error: Error| Stop::Failed(error, Vec::new());
        let share = self.share(group, give_up).await.map_err(failed)?;
        let by_partition = self.partitions(node, &share.fragments);
        let partitions = self.link.map().partition_count();
        let record_at = self.record_partition(node.fid);
        for region in crate::node::by_region(node, &share.fragments).keys() {
            // Where the file's record is, a commit registers its regions itself.
            if partition_of(node.fid, *region, partitions) != record_at {
                self.register(node, *region).await.map_err(failed)?;
            }
        }
        let first = node.region_of(share.fragments[0].offset);
        let session = self.writable(node).await.map_err(failed)?;
        let pg = self.session.mint(partition_of(node.fid, first, partitions));
        let travels = *inline && share.used <= self.options.inline_bytes_max && share.base == 0;
        let (descriptor, payload) = if travels {
            let contents = group.contents.borrow();
            let slab = contents.as_ref().map(|c| c.slabs[0].slice(..share.used));
            let bytes = slab.ok_or(Stop::Again)?;
            let len = u32::try_from(share.used).unwrap_or(u32::MAX);
            let body = PgBody::Inline { len, crc: crc32c(&bytes) };
            (PgDescriptor { pg, body }, vec![bytes])
        } else {
            (self.put_blocks(node, group, &share, pg, give_up).await?, Vec::new())
        };
        #[cfg(feature = "planted")]
        if self.planted(crate::Planted::DropSealedBeforeCommit) {
            group.left.borrow_mut().retain(|f| !share.fragments.contains(f));
        }
        self.wait_for_earlier(node, group).await;
        let mut parts: Vec<Part> = by_partition
            .into_iter()
            .map(|(p, fragments)| Part { partition: p, fragments })
            .collect();
        // Home is where the first fragment is.
        let home_at = parts.iter().position(|p| p.partition == pg.home).unwrap_or(0);
        let home = parts.swap_remove(home_at);
        let others: Vec<PartitionId> = parts.iter().map(|p| p.partition).collect();
        let is_all = parts.is_empty() && home.fragments == *group.left.borrow();
        let closes = if is_all && home.partition == record_at { group.closes.get() } else { 0 };
        let end =
            self.commit(node, &descriptor, &home, &others, payload, closes, session, give_up).await;
        match end {
            End::Done => {
                done(group, &home.fragments);
                group.closed.set(closes);
            }
            End::Again => return Err(Stop::Again),
            End::Refused(Error::NoSpace) if travels => {
                *inline = false;
                return Err(Stop::Again);
            }
            End::Refused(error) => return Err(failed(error)),
            End::Unknown(error) => return Err(Stop::Failed(error, vec![Unresolved::Home(pg)])),
        }
        self.commit_parts(node, group, &descriptor, parts, session, give_up).await
    }

    async fn commit_parts(
        self: &Rc<Self>,
        node: &Rc<Node>,
        group: &Group,
        descriptor: &PgDescriptor,
        parts: Vec<Part>,
        session: bb_proto::SessionId,
        give_up: bb_runtime::Instant,
    ) -> std::result::Result<(), Stop> {
        let ends =
            join_all(parts.iter().map(|part| {
                self.commit(node, descriptor, part, &[], Vec::new(), 0, session, give_up)
            }))
            .await;
        let (mut failure, mut unknown) = (None, Vec::new());
        for (part, end) in parts.into_iter().zip(ends) {
            match end {
                End::Done => done(group, &part.fragments),
                // Stays on the list: written again in a new group.
                End::Again => {}
                End::Refused(error) => failure = Some(error),
                End::Unknown(error) => {
                    failure = Some(error);
                    unknown.push(part);
                }
            }
        }
        match failure {
            None => Ok(()),
            Some(error) => {
                let rest = Unresolved::Participants(descriptor.clone(), unknown);
                Err(Stop::Failed(error, vec![rest]))
            }
        }
    }

    /// What goes under the next id: all that is left, if it fits what the cluster can take now.
    async fn share(&self, group: &Group, give_up: bb_runtime::Instant) -> Result<Share> {
        for attempt in 0.. {
            if let Some(geometry) = self.geometry() {
                let left = group.left.borrow();
                let begin = left.iter().map(|f| f.pg_offset as usize).min().unwrap_or(0);
                let end = left.iter().map(|f| (f.pg_offset + f.len) as usize).max().unwrap_or(0);
                let chunk_log2 = chunk_log2_for(end - begin, left.len());
                let full = Shape::full(geometry, chunk_log2);
                let base =
                    if end <= full.data_bytes() { 0 } else { begin & !(full.block_bytes() - 1) };
                let limit = base + full.data_bytes();
                let fragments = clip(&left, base, limit);
                let used = end.min(limit) - base;
                let codec = self.link.map().codec;
                let shape = Shape::fit(geometry, used, chunk_log2).coded(codec);
                return Ok(Share { fragments, base, used, shape });
            }
            if self.rt().now() >= give_up {
                break;
            }
            self.link.back_off(attempt).await;
            self.link.refresh_map().await;
        }
        Err(Error::errno_of(libc::EIO, "too few devices are active for a parity group"))
    }

    fn partitions(
        &self,
        node: &Node,
        fragments: &[Fragment],
    ) -> BTreeMap<PartitionId, Vec<Fragment>> {
        let count = self.link.map().partition_count();
        let mut all: BTreeMap<PartitionId, Vec<Fragment>> = BTreeMap::new();
        for fragment in fragments {
            let partition = partition_of(node.fid, node.region_of(fragment.offset), count);
            all.entry(partition).or_default().push(*fragment);
        }
        all
    }

    async fn put_blocks(
        self: &Rc<Self>,
        node: &Rc<Node>,
        group: &Group,
        share: &Share,
        pg: PgId,
        give_up: bb_runtime::Instant,
    ) -> std::result::Result<PgDescriptor, Stop> {
        let sealed = self.encode(group, share).await?;
        for attempt in 0.. {
            let capability = node.write_capability.get();
            if capability.session != pg.session {
                return Err(Stop::Again);
            }
            let error = match self.io.write(&capability, pg, &sealed).await {
                Ok(descriptor) => return Ok(descriptor),
                Err(error) => error,
            };
            match &error {
                WriteError::Refused(failure) => {
                    return Err(self.put_refused(failure, pg, give_up).await);
                }
                WriteError::Erasure(_) => return Err(Stop::Failed(error.into(), Vec::new())),
                WriteError::NoSpace { .. } | WriteError::Unreachable => {}
            }
            if self.rt().now() >= give_up {
                return Err(Stop::Failed(error.into(), Vec::new()));
            }
            tracing::debug!(fid = %node.fid, %error, "a group is not written yet");
            self.link.back_off(attempt.max(4)).await;
            self.link.refresh_map().await;
            // Space may have come to fewer devices than this shape needs.
            if self.geometry().is_some_and(|g| g.data() < share.shape.geometry.data()) {
                return Err(Stop::Smaller(error.into()));
            }
        }
        Err(Stop::Again)
    }

    async fn put_refused(
        self: &Rc<Self>,
        failure: &Failure,
        pg: PgId,
        give_up: bb_runtime::Instant,
    ) -> Stop {
        let error = Error::from(failure.clone());
        match failure.kind() {
            Code::BehindHorizon if self.rt().now() < give_up => {
                self.link.saw_tick(bb_proto::Tick(failure.value));
                Stop::Again
            }
            _ if self.recovered(&error, pg.session).await => Stop::Again,
            _ => Stop::Failed(error, Vec::new()),
        }
    }

    /// The blocks of a share: views of the slabs where a block lies in one, copies elsewhere.
    async fn encode(&self, group: &Group, share: &Share) -> std::result::Result<Sealed, Stop> {
        let (shape, block_bytes) = (share.shape, share.shape.block_bytes());
        let view = |index: usize| -> Option<Buf> {
            let contents = group.contents.borrow();
            let slabs = &contents.as_ref()?.slabs;
            let (from, slab_bytes) = (share.base + index * block_bytes, slabs[0].len());
            let inside = from % slab_bytes + block_bytes <= slab_bytes;
            let slab = slabs.get(from / slab_bytes).filter(|_| inside)?;
            Some(slab.slice(from % slab_bytes..from % slab_bytes + block_bytes))
        };
        let views: Vec<Option<Buf>> = (0..shape.geometry.data()).map(view).collect();
        let copies = views.iter().filter(|v| v.is_none()).count();
        let sizes = vec![block_bytes; copies + shape.geometry.parity()];
        let mut buffers = self.io.take_buffers(&sizes).await;
        let parity = buffers.split_off(copies);
        let contents = group.contents.borrow();
        let slabs = &contents.as_ref().ok_or(Stop::Again)?.slabs;
        let (slab_bytes, have) = (slabs[0].len(), slabs.len() * slabs[0].len());
        let copy = |(index, view): (usize, Option<Buf>)| {
            view.or_else(|| {
                let mut buf = buffers.pop()?;
                let from = share.base + index * block_bytes;
                let len = have.saturating_sub(from).min(block_bytes);
                for_slabs(slab_bytes, from, len, |slab, at, to| {
                    buf[to..to + at.len()].copy_from_slice(&slabs[slab][at]);
                });
                buf[len..].fill(0);
                Some(buf.freeze())
            })
        };
        let data = views.into_iter().enumerate().filter_map(copy).collect();
        Sealed::new(shape, data, parity).map_err(|e| Stop::Failed(e.into(), Vec::new()))
    }

    /// Rule 3: waits until no earlier group of the file that has bytes in common is without an
    /// outcome.
    async fn wait_for_earlier(&self, node: &Node, group: &Group) {
        #[cfg(feature = "planted")]
        if self.planted(crate::Planted::SkipReorderWait) {
            return;
        }
        loop {
            let progress = node.progress.notified();
            let blocked = node
                .groups
                .borrow()
                .iter()
                .take_while(|other| !std::ptr::eq(&raw const ***other, group))
                .any(|other| !other.resolved.get() && overlap(&other.ranges, &group.ranges));
            if !blocked {
                return;
            }
            progress.await;
        }
    }

    /// After an error was reported: finds out what became of commits, for as long as it takes.
    async fn resolve(self: &Rc<Self>, node: &Rc<Node>, unresolved: Vec<Unresolved>) {
        for commit in unresolved {
            match commit {
                Unresolved::Home(pg) => {
                    for attempt in 0.. {
                        let capability = node.write_capability.get();
                        if capability.session != pg.session {
                            // The group's session is gone, and with it what may be on its way.
                            break;
                        }
                        let (pg_name, capability) = (pg.into(), (&capability).into());
                        let cancel = CancelCommit { pg: pg_name, capability };
                        let ask = Ask::new(Kind::CancelCommit, meta::encode(&cancel));
                        match self.link.ask(pg.home, &ask).await {
                            Ok(answer)
                                if meta::decode::<CancelCommitReply>(&answer.body).is_ok() =>
                            {
                                break;
                            }
                            // Home is lost: nothing can be committed there any more.
                            Err(Error::Errno { .. }) => break,
                            _ => {}
                        }
                        self.link.back_off(attempt).await;
                    }
                }
                Unresolved::Participants(descriptor, parts) => {
                    for part in parts {
                        self.commit_at_last(node, &descriptor, &part).await;
                    }
                }
            }
        }
    }

    async fn commit_at_last(
        self: &Rc<Self>,
        node: &Rc<Node>,
        descriptor: &PgDescriptor,
        part: &Part,
    ) {
        loop {
            let (session, give_up) = (descriptor.pg.session, self.link.give_up());
            let end =
                self.commit(node, descriptor, part, &[], Vec::new(), 0, session, give_up).await;
            if !matches!(end, End::Unknown(_)) {
                return;
            }
        }
    }

    /// Registers a region, and those before it in its run, before the first commit there.
    pub async fn register(self: &Rc<Self>, node: &Rc<Node>, region: RegionIndex) -> Result<()> {
        let (run, index) = (region.0 / RUN_REGIONS, region.0 % RUN_REGIONS);
        if node.runs.borrow().get(&run).is_some_and(|regions| index < *regions) {
            return Ok(());
        }
        // Doubling: a file that grows registers ten times in a run, a small one only itself.
        let regions = (index + 1).next_power_of_two();
        loop {
            let capability = node.write_capability.get();
            let session = capability.session;
            let body =
                meta::encode(&meta::FileRegions { capability: (&capability).into(), run, regions });
            match self
                .link
                .ask(self.record_partition(node.fid), &Ask::new(Kind::FileRegions, body))
                .await
            {
                Ok(_) => break,
                Err(error) if self.renewed(&error, node, session).await => {}
                Err(error) => return Err(error),
            }
        }
        let mut runs = node.runs.borrow_mut();
        let known = runs.entry(run).or_default();
        *known = regions.max(*known);
        Ok(())
    }

    /// The partition of the file record.
    pub fn record_partition(&self, fid: bb_proto::Fid) -> PartitionId {
        partition_of(fid, RegionIndex(0), self.link.map().partition_count())
    }
}

/// The group's bytes are lost, and the file has the error.
fn give_up_on(node: &Node, group: &Group, error: Error) {
    node.fail(error);
    group.failed.set(true);
    *group.contents.borrow_mut() = None;
    node.progress.notify_all();
}

/// These fragments of the group are committed.
fn done(group: &Group, fragments: &[Fragment]) {
    let mut left = group.left.borrow_mut();
    for committed in fragments {
        *left =
            left.iter().flat_map(|f| without(f, &(committed.offset..committed.end()))).collect();
    }
}

fn without(fragment: &Fragment, gone: &Range<u64>) -> Vec<Fragment> {
    let part = |from: u64, to: u64| {
        let skip = u32::try_from(from - fragment.offset).unwrap_or(u32::MAX);
        let len = u32::try_from(to - from).unwrap_or(u32::MAX);
        Fragment { offset: from, pg_offset: fragment.pg_offset + skip, len }
    };
    if gone.end <= fragment.offset || fragment.end() <= gone.start {
        return vec![*fragment];
    }
    let mut rest = Vec::new();
    if fragment.offset < gone.start {
        rest.push(part(fragment.offset, gone.start));
    }
    if gone.end < fragment.end() {
        rest.push(part(gone.end, fragment.end()));
    }
    rest
}

/// The parts of fragments whose bytes lie in `base..limit` of the group, moved to start at 0.
fn clip(fragments: &[Fragment], base: usize, limit: usize) -> Vec<Fragment> {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let cut = |f: &Fragment| {
        let (from, to) = (f.pg_offset as usize, (f.pg_offset + f.len) as usize);
        let (begin, end) = (from.max(base), to.min(limit));
        (begin < end).then(|| Fragment {
            offset: f.offset + (begin - from) as u64,
            pg_offset: small(begin - base),
            len: small(end - begin),
        })
    };
    fragments.iter().filter_map(cut).collect()
}
