//! What a client knows of one file, shared by all its opens: unsealed and sealed bytes, size,
//! errors.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use bb_proto::meta::{Credentials, FileHandle, FileState};
use bb_proto::{
    Capability, Fid, Fragment, Incarnation, NodeId, RegionIndex, Rights, SessionId, TruncateEpoch,
};
use bb_runtime::sync::{Notify, Permit};
use bb_runtime::{Buf, BufMut, Instant};

use crate::error::{Error, Result};
use crate::maps::MapPages;
use crate::packer::{Packer, Placed, cut};
use crate::ranges::subtract;

/// A file.
pub(crate) struct Node {
    pub fid: Fid,
    pub region_log2: u32,
    pub path: RefCell<Vec<u8>>,
    pub opens: RefCell<Vec<Rc<Opened>>>,
    /// The process (node and incarnation) that was shown the opens, where they were shown by
    /// themselves.
    pub shown_to: Cell<Option<(NodeId, Incarnation)>>,
    /// Survives the close of the last writer, for commits without an answer.
    pub write_capability: Cell<Capability>,
    pub epoch: Cell<TruncateEpoch>,
    /// Size as the cluster acknowledged it.
    pub size_acknowledged: Cell<u64>,
    /// End of the furthest write that the acknowledged size does not cover yet; else 0.
    pub reached: Cell<u64>,
    /// When the acknowledged size was last asked for.
    pub size_asked: Cell<Instant>,
    /// When the cluster last said it.
    pub size_heard: Cell<Instant>,
    /// Time of the last write that the cluster was not told yet, 0 for none.
    pub mtime_ns: Cell<i64>,
    pub named_durably: Cell<bool>,
    /// By run: how many of its regions are registered.
    pub runs: RefCell<BTreeMap<u32, u32>>,
    pub open_group: RefCell<Option<OpenGroup>>,
    /// In the order of sealing; those whose commits have no outcome yet.
    pub groups: RefCell<Vec<Rc<Group>>>,
    /// A group got its outcome, or failed.
    pub progress: Notify,
    /// The first error of an asynchronous write, reported until the last close.
    pub error: RefCell<Option<Error>>,
    pub maps: RefCell<MapPages>,
}

/// One open of a file.
pub(crate) struct Opened {
    pub capability: Cell<Capability>,
    pub open_id: Cell<u64>,
    /// Its end is under way.
    pub closing: Cell<bool>,
    pub flags: i32,
    /// As whom it was opened, and is opened again in another session.
    pub credentials: Rc<Credentials>,
}

/// A parity group that is being filled.
pub(crate) struct OpenGroup {
    pub packer: Packer,
    pub slabs: Vec<BufMut>,
    pub permit: Permit,
}

/// A sealed parity group (under one id or, after refusals, one after the other).
pub(crate) struct Group {
    /// What of the file it covers, sorted.
    pub ranges: Vec<Range<u64>>,
    /// What has not been committed yet.
    pub left: RefCell<Vec<Fragment>>,
    /// The bytes; gone when all is committed or given up.
    pub contents: RefCell<Option<Contents>>,
    /// No commit of it is without an outcome.
    pub resolved: Cell<bool>,
    /// Its bytes were given up; the error is on the node.
    pub failed: Cell<bool>,
    /// The open that its commit shall end, 0 for none.
    pub closes: Cell<u64>,
    /// The one that it has ended.
    pub closed: Cell<u64>,
}

/// Bytes of a sealed group: slabs of equal size, zeros behind the bytes in use.
pub(crate) struct Contents {
    pub slabs: Vec<Buf>,
    pub fragments: Vec<Fragment>,
    /// Gives the memory back to the client's budget.
    pub _permit: Permit,
}

/// Calls `with` for each stretch of one slab in a range of a group.
pub(crate) fn for_slabs(
    slab_bytes: usize,
    pg_offset: usize,
    len: usize,
    mut with: impl FnMut(usize, Range<usize>, usize),
) {
    let mut done = 0;
    while done < len {
        let at = pg_offset + done;
        let (slab, from) = (at / slab_bytes, at % slab_bytes);
        let piece = (slab_bytes - from).min(len - done);
        with(slab, from..from + piece, done);
        done += piece;
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl OpenGroup {
    /// New bytes that the slabs have room for.
    pub fn room(&self) -> u32 {
        let have: usize = self.slabs.iter().map(|slab| slab.len()).sum();
        u32::try_from(have).unwrap_or(u32::MAX).saturating_sub(self.packer.used())
    }

    /// Takes a prefix of `data`; how much.
    pub fn take(&mut self, offset: u64, data: &[u8]) -> usize {
        let room = self.room();
        let mut taken = 0;
        for placed in self.packer.place(offset, data.len() as u64, room) {
            let slab_bytes = self.slabs[0].len();
            for_slabs(
                slab_bytes,
                placed.pg_offset as usize,
                placed.len as usize,
                |slab, at, from| {
                    let len = at.len();
                    self.slabs[slab][at].copy_from_slice(&data[taken + from..][..len]);
                },
            );
            taken += placed.len as usize;
        }
        taken
    }
}

/// Regions of a run: they are registered together.
pub const RUN_REGIONS: u32 = 1024;

/// The runs of which every region is registered.
fn whole_runs(handle: &FileHandle) -> impl Iterator<Item = (u32, u32)> + '_ {
    handle.runs.iter().map(|run| (*run, RUN_REGIONS))
}

impl Node {
    pub fn new(handle: &FileHandle, path: &[u8], now: Instant) -> Rc<Self> {
        let capability = Capability::from(&handle.capability);
        Rc::new(Self {
            fid: capability.fid,
            region_log2: handle.region_log2,
            path: RefCell::new(path.to_vec()),
            opens: RefCell::default(),
            shown_to: Cell::new(None),
            write_capability: Cell::new(capability),
            epoch: Cell::new(TruncateEpoch(handle.epoch)),
            size_acknowledged: Cell::new(handle.size),
            reached: Cell::new(0),
            size_asked: Cell::new(now),
            size_heard: Cell::new(now),
            mtime_ns: Cell::new(0),
            named_durably: Cell::new(false),
            runs: RefCell::new(whole_runs(handle).collect()),
            open_group: RefCell::default(),
            groups: RefCell::default(),
            progress: Notify::new(),
            error: RefCell::default(),
            maps: RefCell::default(),
        })
    }

    /// Adds an open and takes over what the server said with it.
    pub fn opened(
        &self,
        handle: &FileHandle,
        flags: i32,
        credentials: &Rc<Credentials>,
        asked: Instant,
        now: Instant,
    ) -> Rc<Opened> {
        let capability = Capability::from(&handle.capability);
        let opened = Rc::new(Opened {
            capability: Cell::new(capability),
            open_id: Cell::new(handle.open_id),
            closing: Cell::new(false),
            flags,
            credentials: credentials.clone(),
        });
        self.adopt(&capability, handle, asked, now);
        self.opens.borrow_mut().push(opened.clone());
        opened
    }

    /// Takes over what the server says at an open.
    pub fn adopt(
        &self,
        capability: &Capability,
        handle: &FileHandle,
        asked: Instant,
        now: Instant,
    ) {
        if capability.rights.allows(Rights::WRITE) {
            self.write_capability.set(*capability);
        }
        self.runs.borrow_mut().extend(whole_runs(handle));
        self.saw_epoch(TruncateEpoch(handle.epoch), handle.size, asked, now);
    }

    /// Size as this client sees it.
    pub fn size(&self) -> u64 {
        self.size_acknowledged.get().max(self.reached.get())
    }

    /// Something was written up to here.
    pub fn reach(&self, end: u64) {
        if end > self.size() {
            self.reached.set(end);
        }
    }

    /// The cluster says how large the file is. What was written within an earlier, larger size
    /// counts beyond this one.
    fn saw_size(&self, size: u64) {
        self.size_acknowledged.set(size);
        let reached = self.reached.get().max(self.dirty_end());
        self.reached.set(if reached > size { reached } else { 0 });
    }

    /// The file record says this, to what was asked at `asked`. A newer epoch: somebody cut the
    /// file meanwhile, and what was acknowledged before no longer makes it longer.
    pub fn saw_state(&self, state: &FileState, asked: Instant, now: Instant) {
        self.saw_epoch(TruncateEpoch(state.epoch), state.size, asked, now);
    }

    fn saw_epoch(&self, epoch: TruncateEpoch, size: u64, asked: Instant, now: Instant) {
        if epoch > self.epoch.get() {
            self.epoch.set(epoch);
            self.maps.borrow_mut().forget();
            self.cut_to(size);
        } else if epoch < self.epoch.get() {
            // From before a cut that is known here.
            return;
        } else if asked >= self.size_heard.get() {
            self.saw_size(size);
        } else {
            // Another answer came while this one was under way, and either may be the older. Of one
            // epoch the larger is the newer.
            self.saw_size(size.max(self.size_acknowledged.get()));
        }
        self.size_heard.set(now);
    }

    /// A raise of the size to `end`, asked for in `epoch`, was acknowledged.
    pub fn raised(&self, epoch: TruncateEpoch, end: u64, now: Instant) {
        if epoch == self.epoch.get() {
            self.saw_size(self.size_acknowledged.get().max(end));
            self.size_heard.set(now);
        }
    }

    /// A commit told the file's time. One that is still under way may tell an older one after it.
    pub fn told_time(&self, mtime_ns: i64) {
        if mtime_ns == self.mtime_ns.get() && self.groups.borrow().len() == 1 {
            self.mtime_ns.set(0);
        }
    }

    /// The file was cut: only what is written since counts beyond.
    pub fn cut_to(&self, size: u64) {
        self.reached.set(self.dirty_end());
        self.saw_size(size);
    }

    /// First offset behind what this client wrote and the cluster has not acknowledged.
    pub fn dirty_end(&self) -> u64 {
        let sealed = self
            .groups
            .borrow()
            .iter()
            .filter(|g| !g.failed.get())
            .filter_map(|g| g.ranges.last().map(|r| r.end))
            .max()
            .unwrap_or(0);
        let open = self
            .open_group
            .borrow()
            .as_ref()
            .and_then(|open| open.packer.fragments().last().map(Fragment::end))
            .unwrap_or(0);
        sealed.max(open)
    }

    /// True if this client has bytes or a size that the cluster has not acknowledged.
    pub fn is_dirty(&self) -> bool {
        self.reached.get() > 0
            || self.open_group.borrow().is_some()
            || self.groups.borrow().iter().any(|g| !g.failed.get())
    }

    /// The session that the file is open in.
    pub fn session(&self) -> SessionId {
        let opens = self.opens.borrow();
        let first = opens.first().map(|o| o.capability.get().session);
        first.unwrap_or(self.write_capability.get().session)
    }

    pub fn region_of(&self, offset: u64) -> RegionIndex {
        RegionIndex(u32::try_from(offset >> self.region_log2).unwrap_or(u32::MAX))
    }

    /// Error of an asynchronous write, if there was one.
    pub fn check(&self) -> Result<()> {
        match &*self.error.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Keeps the first error.
    pub fn fail(&self, error: Error) {
        tracing::warn!(fid = %self.fid, %error, "written data could not be stored");
        self.error.borrow_mut().get_or_insert(error);
    }

    /// Copies what of `range` is still here into `out`. What is left to be read, sorted.
    ///
    /// Newest first: the open group, then sealed ones from the last to the first.
    pub fn overlay(&self, range: &Range<u64>, out: &mut [u8]) -> Vec<Range<u64>> {
        let mut holes: Vec<Range<u64>> = std::iter::once(range.clone()).collect();
        if let Some(open) = &*self.open_group.borrow() {
            let slabs: Vec<&[u8]> = open.slabs.iter().map(|s| &s[..]).collect();
            copy_out(&mut holes, range, out, &slabs, |hole| open.packer.lookup(hole));
        }
        for group in self.groups.borrow().iter().rev() {
            if let Some(contents) = &*group.contents.borrow() {
                let slabs: Vec<&[u8]> = contents.slabs.iter().map(|s| &s[..]).collect();
                let find = |hole: &Range<u64>| cut(contents.fragments.iter().copied(), hole);
                copy_out(&mut holes, range, out, &slabs, find);
            }
        }
        holes
    }
}

fn copy_out(
    holes: &mut Vec<Range<u64>>,
    range: &Range<u64>,
    out: &mut [u8],
    slabs: &[&[u8]],
    find: impl Fn(&Range<u64>) -> Vec<Placed>,
) {
    let found: Vec<Placed> = holes.iter().flat_map(find).collect();
    for placed in found {
        let slab_bytes = slabs[0].len();
        let to = index(placed.offset - range.start);
        for_slabs(slab_bytes, placed.pg_offset as usize, placed.len as usize, |slab, at, from| {
            let len = at.len();
            out[to + from..][..len].copy_from_slice(&slabs[slab][at]);
        });
        subtract(holes, &(placed.offset..placed.offset + u64::from(placed.len)));
    }
}

/// The sorted ranges that fragments cover, neighbours joined.
pub(crate) fn ranges_of(fragments: &[Fragment]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for fragment in fragments {
        match ranges.last_mut() {
            Some(last) if last.end == fragment.offset => last.end = fragment.end(),
            _ => ranges.push(fragment.offset..fragment.end()),
        }
    }
    ranges
}

/// Fragments by region, in order.
pub(crate) fn by_region(
    node: &Node,
    fragments: &[Fragment],
) -> BTreeMap<RegionIndex, Vec<Fragment>> {
    let mut regions: BTreeMap<RegionIndex, Vec<Fragment>> = BTreeMap::new();
    for fragment in fragments {
        regions.entry(node.region_of(fragment.offset)).or_default().push(*fragment);
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_without_dirty_data_costs_less_than_a_kib() {
        // Apart from its path and the pages of its fragment map.
        let bytes = size_of::<Node>() + size_of::<Opened>() + size_of::<crate::File>();
        assert!(bytes < 1024, "{bytes}");
    }

    #[test]
    fn an_answer_that_was_overtaken_does_not_make_the_file_shorter() {
        let capability = Capability {
            session: SessionId(1),
            fid: Fid(1),
            rights: Rights::WRITE,
            signature: [0; 16],
        };
        let handle = FileHandle {
            capability: (&capability).into(),
            region_log2: 26,
            epoch: 5,
            size: 0,
            open_id: 1,
            runs: Vec::new(),
        };
        let at = |ns| Instant::ZERO + std::time::Duration::from_nanos(ns);
        let node = Node::new(&handle, b"/f", at(0));
        let says = |epoch, size| FileState { epoch, size, ..FileState::default() };
        node.reach(700);
        // Asked before the raise, answered before it, and late.
        node.raised(TruncateEpoch(5), 700, at(20));
        node.saw_state(&says(5, 0), at(10), at(30));
        assert_eq!(node.size(), 700);
        // Asked since: somebody else's change.
        node.saw_state(&says(5, 300), at(40), at(50));
        assert_eq!(node.size(), 300);
        // A cut, and what was said before it.
        node.saw_state(&says(6, 100), at(60), at(70));
        node.saw_state(&says(5, 300), at(65), at(80));
        node.raised(TruncateEpoch(5), 900, at(90));
        assert_eq!(node.size(), 100);
    }
}
