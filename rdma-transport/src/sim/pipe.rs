//! One direction of a simulated connection: frames on their way, ordered by when they arrive.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{HEADER_BYTES, Header};
use bb_runtime::sync::Notify;
use bb_runtime::{BufMut, Instant};

use super::{HostId, Net};
use crate::codec::Decoder;
use crate::link::{Frame, Limits, LinkError, LinkRecv, LinkSend, LocalFuture};

/// A frame as it travels: real bytes, so that the codec is at work in every simulation.
#[derive(Clone)]
pub(super) struct WireFrame {
    head: Vec<u8>,
    payload: Rc<Vec<u8>>,
}

impl WireFrame {
    fn bytes(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

pub(super) struct Pipe {
    pub(super) from: HostId,
    pub(super) to: HostId,
    frames: RefCell<BTreeMap<(Instant, u64), WireFrame>>,
    next: Cell<u64>,
    bytes: Cell<usize>,
    last_arrival: Cell<Instant>,
    /// When the receiver sees the end.
    end: Cell<Option<Instant>>,
    /// When this side ended it in an orderly way.
    pub(super) closed_at: Cell<Option<Instant>>,
    changed: Notify,
}

impl Pipe {
    pub(super) fn new(from: HostId, to: HostId) -> Rc<Self> {
        Rc::new(Self {
            from,
            to,
            frames: RefCell::default(),
            next: Cell::new(0),
            bytes: Cell::new(0),
            last_arrival: Cell::new(Instant::ZERO),
            end: Cell::new(None),
            closed_at: Cell::new(None),
            changed: Notify::new(),
        })
    }

    /// The receiver sees the end at `at`; frames that would arrive later never do.
    pub(super) fn end_at(&self, at: Instant) {
        self.end.set(Some(at));
        self.changed.notify_all();
    }

    /// As above, unless it ends earlier anyhow.
    pub(super) fn end_by(&self, at: Instant) {
        if self.end.get().is_none_or(|end| end > at) {
            self.end_at(at);
        }
    }

    pub(super) fn is_ended(&self, now: Instant) -> bool {
        self.end.get().is_some_and(|end| end <= now)
    }

    pub(super) fn last_arrival(&self) -> Instant {
        self.last_arrival.get()
    }

    pub(super) fn drop_frames(&self) {
        self.frames.borrow_mut().clear();
        self.bytes.set(0);
        self.changed.notify_all();
    }

    fn put(&self, at: Instant, frame: WireFrame) {
        self.bytes.set(self.bytes.get() + frame.bytes());
        self.last_arrival.set(self.last_arrival.get().max(at));
        let sequence = self.next.replace(self.next.get() + 1);
        self.frames.borrow_mut().insert((at, sequence), frame);
        self.changed.notify_all();
    }

    fn take_arrived(&self, now: Instant) -> Option<WireFrame> {
        let mut frames = self.frames.borrow_mut();
        let first = frames.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        let frame = first.remove();
        self.bytes.set(self.bytes.get().saturating_sub(frame.bytes()));
        drop(frames);
        self.changed.notify_all();
        Some(frame)
    }

    fn next_arrival(&self) -> Option<Instant> {
        self.frames.borrow().first_key_value().map(|((at, _), _)| *at)
    }
}

pub(super) struct SimSend {
    pub(super) net: Rc<Net>,
    pub(super) out: Rc<Pipe>,
    pub(super) back: Rc<Pipe>,
}

impl LinkSend for SimSend {
    fn send(&self, frames: Vec<Frame>) -> LocalFuture<'_, Result<(), LinkError>> {
        Box::pin(async move {
            for frame in frames {
                self.send_one(frame).await?;
            }
            Ok(())
        })
    }

    fn close(&self) {
        self.net.closed(&self.out, &self.back);
    }
}

impl SimSend {
    async fn send_one(&self, frame: Frame) -> Result<(), LinkError> {
        let net = &self.net;
        loop {
            let changed = self.out.changed.notified();
            // What this side knows of the connection is what reached it on the way back.
            if self.out.closed_at.get().is_some() || self.back.is_ended(net.rt.now()) {
                return Err(LinkError::Closed);
            }
            let room = net.config.borrow().window_bytes;
            if self.out.bytes.get() == 0 || self.out.bytes.get() + frame.wire_bytes() <= room {
                break;
            }
            // Room may come, or news of the end on the way back.
            let news = self.back.changed.notified();
            let (changed, news) = (pin!(changed), pin!(news));
            let either = futures_util::future::select(changed, news);
            match self.back.end.get() {
                Some(end) => {
                    let _ = net.rt.timeout(end.since(net.rt.now()), either).await;
                }
                None => {
                    either.await;
                }
            }
        }
        let (head, parts) = frame.into_wire();
        let mut payload = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            payload.extend_from_slice(&part);
        }
        self.transmit(WireFrame { head, payload: Rc::new(payload) })
    }

    /// Decides the fate of one frame.
    fn transmit(&self, mut frame: WireFrame) -> Result<(), LinkError> {
        let net = &self.net;
        let config = net.config.borrow().clone();
        net.count(|c| c.sent += 1);
        if !net.reaches(&self.out, &self.back) {
            net.count(|c| c.swallowed += 1);
            return Ok(());
        }
        if net.chance(config.reset_ppm) {
            net.reset(&self.out, &self.back);
            return Err(LinkError::Closed);
        }
        if net.chance(config.loss_ppm) {
            net.count(|c| c.lost += 1);
            return Ok(());
        }
        if net.chance(config.corrupt_ppm) {
            net.count(|c| c.corrupted += 1);
            net.flip_bit(&mut frame.head);
        }
        if !frame.payload.is_empty() && net.chance(config.corrupt_payload_ppm) {
            net.count(|c| c.payloads_corrupted += 1);
            let bytes: &mut Vec<u8> = Rc::make_mut(&mut frame.payload);
            net.flip_bit(bytes);
        }
        if net.chance(config.duplicate_ppm) {
            net.count(|c| c.duplicated += 1);
            let at = net.rt.now() + net.latency();
            self.out.put(at, frame.clone());
        }
        let slowness = net.slowness(self.out.from, self.out.to);
        let mut at = net.rt.now() + net.latency() + slowness;
        if net.chance(config.late_ppm) {
            net.count(|c| c.late += 1);
            let late = u64::try_from(config.late_max.as_nanos()).unwrap_or(u64::MAX);
            // Outside of the order: others need not wait for it.
            let order = self.out.last_arrival.get();
            let delay = Duration::from_nanos(net.rt.random_below(late.max(1)));
            self.out.put(at + delay, frame);
            self.out.last_arrival.set(order);
            return Ok(());
        }
        if at < self.out.last_arrival.get() {
            if net.chance(config.reorder_ppm) {
                net.count(|c| c.reordered += 1);
            } else {
                at = self.out.last_arrival.get();
            }
        }
        self.out.put(at, frame);
        Ok(())
    }
}

impl Drop for SimSend {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) struct SimRecv {
    pub(super) net: Rc<Net>,
    pub(super) pipe: Rc<Pipe>,
    pub(super) decoder: Decoder,
    /// Payload of the last head.
    pub(super) payload: Rc<Vec<u8>>,
}

impl SimRecv {
    async fn next(&self) -> Result<WireFrame, LinkError> {
        let (net, pipe) = (&self.net, &self.pipe);
        loop {
            let changed = pipe.changed.notified();
            let now = net.rt.now();
            let end = pipe.end.get();
            let arrival = pipe.next_arrival();
            // What has arrived before the end is still received.
            if arrival.is_some_and(|at| at <= now && end.is_none_or(|end| at <= end))
                && let Some(frame) = pipe.take_arrived(now)
            {
                return Ok(frame);
            }
            if end.is_some_and(|end| end <= now) {
                return Err(LinkError::Closed);
            }
            match [arrival, end].into_iter().flatten().min() {
                Some(at) => {
                    let _ = net.rt.timeout(at.since(now), changed).await;
                }
                None => changed.await,
            }
        }
    }

    async fn next_head(&mut self, limits: Limits) -> Result<(Header, Vec<u8>), LinkError> {
        let frame = self.next().await?;
        let (slow_ppm, slow_max) = {
            let config = self.net.config.borrow();
            (config.slow_ppm, config.slow_max)
        };
        if self.net.chance(slow_ppm) {
            self.net.count(|c| c.slow += 1);
            let longest = u64::try_from(slow_max.as_nanos()).unwrap_or(u64::MAX).max(1);
            let pause = Duration::from_nanos(self.net.rt.random_below(longest));
            self.net.rt.sleep(pause).await;
        }
        self.net.count(|c| c.received += 1);
        self.decoder.feed(&frame.head);
        let Some((header, body)) = self.decoder.head(limits)? else {
            // On a real network more bytes would have to come; they would not match.
            return Err(LinkError::Frame(bb_proto::FrameError::Checksum));
        };
        if HEADER_BYTES + body.len() != frame.head.len()
            || header.payload_len as usize != frame.payload.len()
        {
            return Err(LinkError::Frame(bb_proto::FrameError::Checksum));
        }
        // It came whole, so it need not go through the decoder.
        self.decoder.payload_came(frame.payload.len());
        self.payload = frame.payload;
        Ok((header, body))
    }
}

impl LinkRecv for SimRecv {
    fn head(&mut self, limits: Limits) -> LocalFuture<'_, Result<(Header, Vec<u8>), LinkError>> {
        Box::pin(self.next_head(limits))
    }

    fn payload(&mut self, mut buf: BufMut) -> LocalFuture<'_, Result<BufMut, LinkError>> {
        Box::pin(async move {
            assert_eq!(self.payload.len(), buf.len(), "the buffer is as long as the payload");
            buf.copy_from_slice(&self.payload);
            self.payload = Rc::default();
            Ok(buf)
        })
    }

    fn skip_payload(&mut self) -> LocalFuture<'_, Result<(), LinkError>> {
        Box::pin(async move {
            self.payload = Rc::default();
            Ok(())
        })
    }
}
