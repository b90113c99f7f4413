//! What is remembered of devices between requests: load as reported, requests under way, refusals.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{Candidate, ClusterMap, DeviceState, NodeState};
use bb_proto::{DeviceId, NodeId};
use bb_runtime::{Instant, Rt};
use bb_transport::Vitals;

/// What one request of ours under way adds to a device's load: a reply that says "idle" is older
/// than what we sent since.
const LOAD_PER_REQUEST: u32 = 20;

#[derive(Default, Clone, Copy)]
struct Known {
    load: u32,
    under_way: u32,
    avoid_until: Option<Instant>,
}

/// Loads by device.
#[derive(Default)]
pub(crate) struct Devices {
    known: RefCell<BTreeMap<DeviceId, Known>>,
}

/// Counts a request under way until dropped.
pub(crate) struct UnderWay {
    devices: Rc<Devices>,
    device: DeviceId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.devices.change(self.device, |known| {
            known.under_way = known.under_way.saturating_sub(1);
        });
    }
}

impl Devices {
    fn change(&self, device: DeviceId, with: impl FnOnce(&mut Known)) {
        with(self.known.borrow_mut().entry(device).or_default());
    }

    pub(crate) fn begin(self: &Rc<Self>, device: DeviceId) -> UnderWay {
        self.change(device, |known| known.under_way += 1);
        UnderWay { devices: self.clone(), device }
    }

    pub(crate) fn seen(&self, device: DeviceId, vitals: Vitals) {
        self.change(device, |known| known.load = vitals.load);
    }

    /// The device did its work.
    pub(crate) fn well(&self, device: DeviceId) {
        self.change(device, |known| known.avoid_until = None);
    }

    /// New groups go elsewhere for a while.
    pub(crate) fn avoid(&self, rt: &Rt, device: DeviceId, how_long: Duration) {
        let until = rt.now() + how_long;
        self.change(device, |known| known.avoid_until = Some(until));
    }

    pub(crate) fn is_avoided(&self, rt: &Rt, device: DeviceId) -> bool {
        let until = self.known.borrow().get(&device).and_then(|known| known.avoid_until);
        until.is_some_and(|until| rt.now() < until)
    }

    /// The active devices on active nodes for which `keep` holds, with what is known of them.
    pub(crate) fn candidates(
        &self,
        map: &ClusterMap,
        keep: impl Fn(DeviceId) -> bool,
    ) -> Vec<Candidate> {
        let known = self.known.borrow();
        let active =
            |node: u32| map.node(NodeId(node)).is_some_and(|n| n.state == NodeState::Active as i32);
        map.devices
            .iter()
            .filter(|d| d.state == DeviceState::Active as i32 && active(d.node))
            .filter(|d| keep(DeviceId(d.id)))
            .map(|d| {
                let known = known.get(&DeviceId(d.id)).copied().unwrap_or_default();
                let load = known.load + LOAD_PER_REQUEST * known.under_way;
                Candidate { device: DeviceId(d.id), node: d.node, load }
            })
            .collect()
    }
}
