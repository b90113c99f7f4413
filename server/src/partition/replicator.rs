//! Sends the records of many partitions to one other node, in order, several frames under way.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_proto::cluster::{
    REPLICATE_ENTRY_BYTES, ReplicateAck, ReplicateEntry, ReplicateReply, ReplicateVerdict,
    put_replicate,
};
use bb_proto::meta::decode;
use bb_proto::{ConfigNumber, Kind, NodeId, PartitionId, ServiceClass, Writer};
use bb_runtime::sync::Notify;
use bb_transport::Outgoing;

use super::host::PartitionHost;
use super::primary::{Lack, Sending};

/// Bytes of records in a frame, about.
const FRAME_BYTES: usize = 256 << 10;
/// Frames under way to one node.
const FRAMES_MAX: u32 = 4;
/// How long one frame waits for its answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Pause after a frame that was not taken.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A commit point that moved waits so long for a record to travel with.
const NOTICE: Duration = Duration::from_millis(50);

/// The way to one node.
pub(super) struct Replicator {
    node: NodeId,
    ready: RefCell<BTreeSet<PartitionId>>,
    notices: RefCell<BTreeSet<PartitionId>>,
    /// Something to send, or a place to send it from.
    wake: Notify,
    /// A commit point to tell.
    noticed: Notify,
    under_way: Cell<u32>,
    pause: Cell<Duration>,
    ended: Cell<bool>,
}

/// What a frame held.
struct Frame {
    body: Vec<u8>,
    parts: Vec<PartitionId>,
}

impl Replicator {
    /// Nothing is sent yet.
    pub(super) fn start(host: &Rc<PartitionHost>, node: NodeId) -> Rc<Self> {
        let replicator = Rc::new(Self {
            node,
            ready: RefCell::default(),
            notices: RefCell::default(),
            wake: Notify::new(),
            noticed: Notify::new(),
            under_way: Cell::new(0),
            pause: Cell::new(Duration::ZERO),
            ended: Cell::new(false),
        });
        let (this, weak) = (replicator.clone(), Rc::downgrade(host));
        host.env.rt.spawn(async move { this.run(weak).await });
        let (this, weak) = (replicator.clone(), Rc::downgrade(host));
        host.env.rt.spawn(async move { this.run_notices(weak).await });
        replicator
    }

    /// A partition has something to send.
    pub(super) fn mark(&self, partition: PartitionId) {
        if self.ready.borrow_mut().insert(partition) {
            self.wake.notify_all();
        }
    }

    /// A partition's commit point has moved.
    pub(super) fn note(&self, partition: PartitionId) {
        if self.notices.borrow_mut().insert(partition) {
            self.noticed.notify_all();
        }
    }

    /// The node gets nothing more.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.wake.notify_all();
        self.noticed.notify_all();
    }

    async fn run(self: Rc<Self>, host: Weak<PartitionHost>) {
        while !self.ended.get() {
            let woken = self.wake.notified();
            let Some(strong) = host.upgrade() else { return };
            let rt = strong.env.rt.clone();
            let frame = match self.under_way.get() < FRAMES_MAX && self.pause.get().is_zero() {
                true => self.fill(&strong),
                false => None,
            };
            if let Some(frame) = frame {
                self.under_way.set(self.under_way.get() + 1);
                let this = self.clone();
                rt.spawn(async move { this.send(&strong, frame).await });
                continue;
            }
            drop(strong);
            woken.await;
        }
    }

    /// Commit points travel with records; where none come, alone.
    async fn run_notices(self: Rc<Self>, host: Weak<PartitionHost>) {
        while !self.ended.get() {
            let noticed = self.noticed.notified();
            if self.notices.borrow().is_empty() {
                noticed.await;
                continue;
            }
            let Some(rt) = host.upgrade().map(|host| host.env.rt.clone()) else { return };
            rt.sleep(NOTICE).await;
            let Some(strong) = host.upgrade() else { return };
            let moved = std::mem::take(&mut *self.notices.borrow_mut());
            let mut frame = Frame { body: Vec::new(), parts: Vec::new() };
            let mut body = Writer::default();
            for id in moved {
                let Some(partition) = strong.replica(id) else { continue };
                if let Some(entry) = partition.commit_entry(self.node) {
                    put(&mut body, id, partition.config(), &entry);
                    frame.parts.push(id);
                }
            }
            frame.body = body.finish();
            if !frame.parts.is_empty() {
                self.under_way.set(self.under_way.get() + 1);
                self.clone().send(&strong, frame).await;
            }
        }
    }

    fn fill(&self, host: &PartitionHost) -> Option<Frame> {
        let mut budget = FRAME_BYTES;
        let mut parts = Vec::new();
        let (mut all, mut bytes) = (Vec::new(), 0);
        while budget > 0 {
            let Some(id) = self.ready.borrow_mut().pop_first() else { break };
            let Some(partition) = host.replica(id) else { continue };
            let entries = partition.take_entries(self.node, &mut budget);
            if entries.is_empty() {
                continue;
            }
            self.notices.borrow_mut().remove(&id);
            budget = budget.saturating_sub(entries.len() * REPLICATE_ENTRY_BYTES);
            bytes += entries.iter().map(Sending::bytes).sum::<usize>();
            all.push((id, partition.config(), entries));
            parts.push(id);
            if partition.has_entries(self.node) {
                self.ready.borrow_mut().insert(id);
            }
        }
        if parts.is_empty() {
            return None;
        }
        // In one piece of memory: a frame is up to 256 KiB, and growing moves it.
        let mut body = Writer::with_capacity(bytes);
        for (id, config, entries) in all {
            entries.iter().for_each(|entry| put(&mut body, id, config, entry));
        }
        Some(Frame { body: body.finish(), parts })
    }

    async fn send(self: Rc<Self>, host: &Rc<PartitionHost>, frame: Frame) {
        let answer = self.call(host, frame.body).await;
        self.under_way.set(self.under_way.get() - 1);
        let pause = match answer {
            Ok(reply) => self.take_acks(host, &reply.acks),
            Err(why) => {
                tracing::debug!(node = self.node.0, why, "a frame of records was not taken");
                frame.parts.iter().for_each(|id| self.send_again(host, *id));
                true
            }
        };
        if pause {
            self.rest(host).await;
        } else {
            self.pause.set(Duration::ZERO);
        }
        self.wake.notify_all();
    }

    /// Records that were not acknowledged, and the commit point, go out once more.
    fn send_again(&self, host: &PartitionHost, id: PartitionId) {
        if let Some(partition) = host.replica(id) {
            partition.send_again(self.node);
            self.ready.borrow_mut().insert(id);
            self.note(id);
        }
    }

    async fn rest(&self, host: &PartitionHost) {
        let pause = (self.pause.get() * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.pause.set(pause);
        host.env.rt.sleep(pause).await;
        // Another frame may have set a longer one; it will end by itself.
        if self.pause.get() == pause {
            self.pause.set(Duration::ZERO);
        }
    }

    async fn call(&self, host: &PartitionHost, body: Vec<u8>) -> Result<ReplicateReply, String> {
        let address = host.env.shared.address_of(self.node).ok_or("the map does not know it")?;
        let request = Outgoing::new(Kind::Replicate, ServiceClass::Replication, DEADLINE, body);
        match host.env.caller.call(&address, request).await {
            Ok(answer) => decode(&answer.body).map_err(|failure| failure.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// True if the node could not take everything now.
    fn take_acks(&self, host: &Rc<PartitionHost>, acks: &[ReplicateAck]) -> bool {
        let mut pause = false;
        for ack in acks {
            let id = PartitionId(ack.partition);
            let Some(partition) = host.replica(id) else { continue };
            let config = ConfigNumber(ack.config);
            if config != partition.config() && ack.verdict() != ReplicateVerdict::Fenced {
                // An answer to an older configuration says nothing about this one.
                continue;
            }
            match ack.verdict() {
                ReplicateVerdict::Logged => {
                    partition.acknowledged(self.node, config, ack.matched);
                    host.follower_moved(&partition, self.node);
                }
                ReplicateVerdict::Gap => match partition.lacks(self.node, config, ack.matched) {
                    Lack::SentAgain => {
                        self.mark(id);
                        self.note(id);
                    }
                    Lack::Forgotten => host.fill_again(&partition, self.node),
                },
                ReplicateVerdict::Absent => host.fill_again(&partition, self.node),
                ReplicateVerdict::Fenced => host.council().refresh_map(None),
                ReplicateVerdict::Behind | ReplicateVerdict::Busy => {
                    self.send_again(host, id);
                    pause = true;
                }
            }
        }
        pause
    }
}

impl Sending {
    /// What it takes of a frame.
    fn bytes(&self) -> usize {
        REPLICATE_ENTRY_BYTES + self.record.as_ref().map_or(0, |record| record.len())
    }
}

fn put(body: &mut Writer, partition: PartitionId, config: ConfigNumber, entry: &Sending) {
    put_replicate(
        body,
        &ReplicateEntry {
            partition,
            config,
            committed: entry.committed,
            sequence: entry.sequence,
            previous: entry.previous,
            record: entry.record.as_ref().map_or(&[], |record| record.as_slice()),
        },
    );
}
