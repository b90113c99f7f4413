//! Group commit: what was appended while groups are being written gathers in the next one.

use std::rc::{Rc, Weak};

use bb_nvme::Durability;
use bb_runtime::{Buf, BufMut};

use crate::group::{Stamp, seal};
use crate::ids::Lsn;
use crate::log::{Forming, InFlight, Inner};

/// Submits groups until the log is dropped or fails. There is no timer: a group leaves when there
/// is a place for it and the tasks that were ready have had their turn.
pub(crate) async fn run(weak: Weak<Inner>) {
    let Some((rt, wake)) =
        weak.upgrade().map(|inner| (inner.rt.clone(), inner.wake_writer.clone()))
    else {
        return;
    };
    loop {
        let woken = wake.notified();
        let Some(inner) = weak.upgrade() else { return };
        if inner.state.borrow().failed.is_some() {
            return;
        }
        if inner.can_submit() {
            drop(inner);
            // Whoever is ready in this turn may still join the group.
            rt.yield_now().await;
            let Some(inner) = weak.upgrade() else { return };
            while inner.can_submit() {
                inner.submit();
            }
            continue;
        }
        drop(inner);
        woken.await;
    }
}

impl Inner {
    fn can_submit(&self) -> bool {
        let state = self.state.borrow();
        state.failed.is_none()
            && !state.idle_buffers.is_empty()
            && (state.forming.is_some() || !state.closed.is_empty())
    }

    /// Seals the oldest group that waits and starts its write.
    fn submit(self: &Rc<Self>) {
        let (lsn, buf) = {
            let mut state = self.state.borrow_mut();
            if state.closed.is_empty() {
                state.close_forming(self, false);
            }
            let group = state.closed.pop_front().expect("can_submit was asked");
            let mut buf = state.idle_buffers.pop().expect("can_submit was asked");
            self.seal_into(&mut state, &group, &mut buf);
            let end = group.lsn + group.span as u64;
            state.in_flight.push_back(InFlight {
                end,
                done: false,
                completion: group.completion.clone(),
            });
            #[cfg(feature = "planted")]
            if self.options.faults.ack_before_durable {
                group.completion.resolve(Ok(()));
            }
            state.keep_bytes(group.bytes);
            (group.lsn, buf)
        };
        let inner = self.clone();
        self.rt.spawn(async move { inner.write_group(lsn, buf).await });
    }

    fn seal_into(&self, state: &mut crate::log::State, group: &Forming, buf: &mut BufMut) {
        let written = group.bytes.len().next_multiple_of(crate::format::BLOCK);
        buf.set_len(written);
        buf[..group.bytes.len()].copy_from_slice(&group.bytes);
        let stamp = Stamp {
            identity: &self.identity,
            incarnation: state.superblock.incarnation,
            sequence: state.next_sequence,
            lsn: group.lsn,
            durable_through: state.durable_through,
            trim: state.superblock.trim,
            span_bytes: group.span,
            record_count: group.records,
            previous_crc: state.previous_crc,
            external_slots: group.external_slots,
        };
        let externals = state.externals.iter().take(group.external_slots).map(|(t, l)| (*t, *l));
        state.previous_crc = seal(buf, group.bytes.len(), &stamp, externals);
        state.next_sequence += 1;
        state.stats.groups += 1;
        state.stats.group_bytes += written as u64;
    }

    async fn write_group(self: Rc<Self>, lsn: u64, buf: BufMut) {
        let end_of_lap = lsn % self.ring_bytes + buf.len() as u64;
        assert!(end_of_lap <= self.ring_bytes, "a group never straddles the end of the ring");
        let view = buf.freeze();
        let offset = crate::format::RING_OFFSET + lsn % self.ring_bytes;
        let written = self.dev.write(offset, view.clone(), Durability::Durable).await;
        if let Err(error) = written {
            self.fail(&format!("writing a group at LSN {lsn}: {error}"));
            return;
        }
        let buf = self.take_back(view).await;
        self.state.borrow_mut().idle_buffers.push(buf);
        self.group_written(lsn);
    }

    /// The buffer, once the device has let go of it, or another one.
    async fn take_back(&self, view: Buf) -> BufMut {
        match view.try_into_mut() {
            Ok(mut buf) => {
                buf.set_len(self.group_bytes_max);
                buf
            }
            Err(_shared) => self.pool.alloc(self.group_bytes_max).await,
        }
    }

    /// Acknowledges, in order, what is durable now.
    fn group_written(self: &Rc<Self>, lsn: u64) {
        let mut acknowledged = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            if let Some(group) =
                state.in_flight.iter_mut().filter(|group| group.end > lsn).min_by_key(|g| g.end)
            {
                group.done = true;
            }
            while state.in_flight.front().is_some_and(|group| group.done) {
                if let Some(group) = state.in_flight.pop_front() {
                    state.durable_through = group.end;
                    acknowledged.push(group.completion);
                }
            }
            let through = Lsn(state.durable_through);
            state.streams.durable(through);
        }
        for completion in acknowledged {
            completion.resolve(Ok(()));
        }
        self.wake_writer.notify_all();
        self.changed.notify_all();
        self.trim_if_worthwhile();
    }
}
