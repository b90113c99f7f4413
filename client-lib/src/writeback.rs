//! From the application's bytes to sealed parity groups, within the memory that is granted.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bb_pgio::Shape;
use bb_runtime::BufMut;
use bb_runtime::sync::Permit;
use futures_util::future::{Either, select};

use crate::client::Inner;
use crate::error::{Error, Result};
use crate::node::{Contents, Group, Node, OpenGroup, Opened, ranges_of};
use crate::packer::Packer;

/// First memory of an open group: what small files get by with. Its bytes are copied once more when
/// the group outgrows it.
const FIRST_SLAB_BYTES: usize = 16 << 10;

impl Inner {
    /// Takes `data` into the file's open group, and seals it when it is full. Waits while too much
    /// is unacknowledged.
    pub async fn write(self: &Rc<Self>, node: &Rc<Node>, offset: u64, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() {
            if matches!(*node.error.borrow(), Some(Error::NoSpace)) {
                return Err(Error::NoSpace);
            }
            let at = offset + done as u64;
            let full = {
                let mut open = node.open_group.borrow_mut();
                let taken = open.as_mut().map_or(0, |group| group.take(at, &data[done..]));
                done += taken;
                if taken > 0 {
                    self.sealable.notify_all();
                }
                node.reach(offset + done as u64);
                open.as_ref().is_some_and(|group| group.packer.is_full())
            };
            if full {
                self.wait_for_slot(node).await;
                self.seal_if_full(node);
            } else if done < data.len() {
                self.grow(node, data.len() - done).await?;
            }
        }
        node.mtime_ns.set(self.rt().wall().0);
        Ok(())
    }

    /// Waits until the file may have one more sealed group.
    async fn wait_for_slot(&self, node: &Node) {
        loop {
            let progress = node.progress.notified();
            let waiting = node.groups.borrow().iter().filter(|g| !g.failed.get()).count();
            if waiting < self.options.sealed_per_file_max {
                return;
            }
            progress.await;
        }
    }

    /// Adds memory to the open group, or begins one.
    async fn grow(self: &Rc<Self>, node: &Rc<Node>, want: usize) -> Result<()> {
        let Some(geometry) = self.geometry() else {
            // Nothing can be written at present: seal waits for devices, so shall the writer.
            return self.wait_for_devices().await;
        };
        let full = Shape::full(geometry, 14);
        let (first, have) = match &*node.open_group.borrow() {
            None => (want <= FIRST_SLAB_BYTES, 0),
            Some(open) => (false, open.slabs.first().map_or(0, |slab| slab.len())),
        };
        // A begun group keeps its sizes, also when the cluster's geometry changed meanwhile.
        let outgrown = have == FIRST_SLAB_BYTES && full.block_bytes() > have;
        let size = match have {
            0 if first => FIRST_SLAB_BYTES.min(full.block_bytes()),
            _ if have == 0 || outgrown => full.block_bytes(),
            _ => have,
        };
        let (permit, slab) = self.memory(size).await;
        let mut open = node.open_group.borrow_mut();
        let Some(group) = open.as_mut() else {
            let capacity = u32::try_from(full.data_bytes()).unwrap_or(u32::MAX);
            let packer = Packer::new(capacity, node.region_log2);
            *open = Some(OpenGroup { packer, slabs: vec![slab], permit });
            return Ok(());
        };
        let mut slab = slab;
        // Two writers may have begun at once, each with a small first slab: a second one like it
        // would leave a group that can neither be filled nor grow.
        let outgrows = slab.len() == FIRST_SLAB_BYTES && full.block_bytes() > slab.len();
        if group.slabs.len() == 1 && group.slabs[0].len() < slab.len() {
            let used = group.packer.used() as usize;
            slab[..used].copy_from_slice(&group.slabs[0][..used]);
            group.slabs[0] = slab;
            group.permit = permit;
        } else if group.slabs[0].len() == slab.len() && !outgrows {
            group.slabs.push(slab);
            group.permit.merge(permit);
        }
        // Else another writer was here meanwhile: the loop of the caller looks again.
        Ok(())
    }

    async fn wait_for_devices(&self) -> Result<()> {
        let give_up = self.link.give_up();
        for attempt in 0.. {
            if self.geometry().is_some() {
                return Ok(());
            }
            if self.rt().now() >= give_up {
                break;
            }
            self.link.back_off(attempt).await;
            self.link.refresh_map().await;
        }
        Err(Error::errno_of(libc::EIO, "too few devices are active for a parity group"))
    }

    /// Memory for written bytes. Where none is granted, open groups are sealed, the fullest first:
    /// only what is sealed gives memory back without its writer's doing.
    async fn memory(self: &Rc<Self>, bytes: usize) -> (Permit, BufMut) {
        let permit = loop {
            if let Some(permit) = self.budget.try_acquire(bytes as u64) {
                break permit;
            }
            if !self.seal_one() {
                break self.sealing_until(self.budget.acquire(bytes as u64)).await;
            }
        };
        let used = self.options.write_back_bytes.saturating_sub(self.budget.free());
        self.link.count(|counters| {
            counters.unacknowledged_bytes_max = counters.unacknowledged_bytes_max.max(used);
        });
        loop {
            if let Some(slab) = self.link.try_buffer(bytes) {
                return (permit, slab);
            }
            if !self.seal_one() {
                return (permit, self.sealing_until(self.link.pool().alloc(bytes)).await);
            }
        }
    }

    /// Waits for memory, and seals meanwhile what could not be sealed before, or was begun since: its
    /// writer may write no more.
    async fn sealing_until<T>(self: &Rc<Self>, memory: impl Future<Output = T>) -> T {
        let mut memory = std::pin::pin!(memory);
        loop {
            let sealable = self.sealable.notified();
            while self.seal_one() {}
            match select(memory, std::pin::pin!(sealable)).await {
                Either::Left((memory, _)) => return memory,
                Either::Right(((), waits)) => memory = waits,
            }
        }
    }

    /// Seals the fullest open group of a file that may have another sealed one.
    fn seal_one(self: &Rc<Self>) -> bool {
        let fullest = {
            let nodes = self.nodes.borrow();
            let used = |node: &&Rc<Node>| {
                node.open_group.borrow().as_ref().map_or(0, |open| open.packer.used())
            };
            let may = |node: &&Rc<Node>| {
                used(node) > 0 && node.groups.borrow().len() < self.options.sealed_per_file_max
            };
            nodes.values().filter(may).max_by_key(used).cloned()
        };
        match fullest {
            Some(node) => {
                self.seal(&node);
                true
            }
            None => false,
        }
    }

    fn seal_if_full(self: &Rc<Self>, node: &Rc<Node>) {
        if node.open_group.borrow().as_ref().is_some_and(|open| open.packer.is_full()) {
            self.seal(node);
        }
    }

    /// Seals the open group, if there is one, and sends it on its way.
    pub fn seal(self: &Rc<Self>, node: &Rc<Node>) {
        let Some(mut open) = node.open_group.borrow_mut().take() else { return };
        if open.packer.is_empty() {
            return;
        }
        // What is sent must hold nothing but the file's bytes.
        let used = open.packer.used() as usize;
        let slab_bytes = open.slabs[0].len();
        for (index, slab) in open.slabs.iter_mut().enumerate() {
            let from = used.saturating_sub(index * slab_bytes).min(slab_bytes);
            slab[from..].fill(0);
        }
        let fragments = open.packer.fragments();
        let contents = Contents {
            slabs: open.slabs.into_iter().map(BufMut::freeze).collect(),
            fragments: fragments.clone(),
            _permit: open.permit,
        };
        let group = Rc::new(Group {
            ranges: ranges_of(&fragments),
            left: RefCell::new(fragments),
            contents: RefCell::new(Some(contents)),
            resolved: Cell::new(false),
            failed: Cell::new(false),
            closes: Cell::new(0),
            closed: Cell::new(0),
        });
        node.groups.borrow_mut().push(group.clone());
        let (inner, node) = (self.clone(), node.clone());
        self.rt().spawn(async move { inner.store(&node, &group).await });
    }

    /// Flushes because `opened` is being closed. True if that ended with the commit of what was left to
    /// write, and all that a close tells was told with it.
    pub async fn flush_last(self: &Rc<Self>, node: &Rc<Node>, opened: &Opened) -> Result<bool> {
        self.seal(node);
        let last = match &node.groups.borrow()[..] {
            [only] => Some(only.clone()),
            _ => None,
        };
        if let Some(group) = &last {
            // If its commit is under way already, it is closed by a request of its own.
            group.closes.set(opened.open_id.get());
        }
        self.flush(node).await?;
        let closed = last.is_some_and(|group| group.closed.get() == opened.open_id.get());
        Ok(closed && node.reached.get() == 0 && node.mtime_ns.get() == 0)
    }

    /// Seals, and waits until everything sealed so far is acknowledged or has failed.
    pub async fn flush(self: &Rc<Self>, node: &Rc<Node>) -> Result<()> {
        self.seal(node);
        let mine: Vec<Rc<Group>> = node.groups.borrow().clone();
        loop {
            let progress = node.progress.notified();
            #[cfg(feature = "planted")]
            if self.planted(crate::Planted::FsyncBeforeCommit) {
                break;
            }
            if mine.iter().all(|g| g.resolved.get() || g.failed.get()) {
                break;
            }
            progress.await;
        }
        node.check()
    }
}
