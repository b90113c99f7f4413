//! How a node begins, keeps its lease, and takes over new maps.

use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, MapDelta};
use bb_proto::cluster::{Filled, Lease as LeaseRequest, LeaseReply};
use bb_proto::meta::{GetMap, GetMapReply, decode};
use bb_proto::{Code, Kind, NodeId, Tick};

use super::lease::{Refused, exit_after};
use super::{AGAIN, Council};

/// Pause between reports of filled replicas.
const REPORT: Duration = Duration::from_millis(200);

impl Council {
    pub(super) async fn run(self: Rc<Self>) {
        if let Err(why) = self.announce().await {
            return self.end_for_good(why);
        }
        loop {
            let map = self.shared.map();
            let mine = map.node(self.shared.node);
            if mine.is_some_and(|node| node.incarnation == self.shared.incarnation.0) {
                break;
            }
            self.rt.sleep(AGAIN).await;
            self.fetch_map(None).await;
        }
        self.joined.set(true);
        self.changed.notify_all();
        self.follow_replicas();
        let tasks: [std::pin::Pin<Box<dyn Future<Output = ()>>>; 3] = [
            Box::pin(self.clone().keep_lease()),
            Box::pin(self.clone().watch_others()),
            Box::pin(self.clone().report_filled()),
        ];
        for task in tasks {
            self.rt.spawn(task);
        }
    }

    async fn keep_lease(self: Rc<Self>) {
        let mut granted = (None, 0);
        let mut refused = Refused::default();
        while !self.stopping.get() && self.ending.borrow().is_none() {
            let map = self.shared.map();
            let pause = Duration::from_millis(u64::from(map.lease_ms / 6).max(1));
            let asked = self.rt.now();
            let leader = self.leader();
            let ask = LeaseRequest {
                node: self.shared.node.0,
                incarnation: self.shared.incarnation.0,
                epoch: map.epoch,
                granted: if granted.0 == leader { granted.1 } else { 0 },
            };
            match self.ask_leader(Kind::Lease, &ask).await {
                Ok(body) => match decode::<LeaseReply>(&body) {
                    Ok(reply) => {
                        granted = (leader, reply.grant);
                        refused = Refused::default();
                        self.take_lease(asked, &reply);
                        self.rt.sleep(pause).await;
                    }
                    Err(failure) => tracing::warn!(%failure, "a lease cannot be read"),
                },
                Err(failure) => {
                    tracing::debug!(%failure, "no lease yet");
                    // The leader was reached, and does not want this process.
                    if failure.kind() == Code::Denied
                        && refused.again(self.rt.now()) >= exit_after(&map)
                    {
                        let why = "the leader has refused it a lease for too long";
                        return self.end_process(why.to_owned());
                    }
                    self.rt.sleep(AGAIN.min(pause)).await;
                    // The leader may have taken us down: the map says so.
                    self.fetch_map(None).await;
                }
            }
        }
    }

    fn take_lease(self: &Rc<Self>, asked: bb_runtime::Instant, reply: &LeaseReply) {
        let held = self.shared.lease.was_held();
        let length = Duration::from_millis(reply.lease_ms.into());
        self.shared.lease.granted(asked, length, reply.epoch);
        self.shared.set_tick(Tick(reply.tick));
        if let Some(update) = &reply.map {
            self.take_update(update);
        }
        self.shared.lease.is_valid(self.shared.map().epoch);
        if !held && self.shared.lease.was_held() {
            // From now on the map is believed about replicas that it does not name.
            self.follow_replicas();
        }
    }

    /// Asks somebody for the newest map.
    pub(super) async fn fetch_map(self: &Rc<Self>, from: Option<NodeId>) {
        let ask = GetMap { epoch: self.shared.map().epoch, deltas: true };
        let answer = match from {
            Some(node) => self.ask(node, Kind::GetMap, &ask).await,
            None => self.ask_leader(Kind::GetMap, &ask).await,
        };
        match answer.and_then(|body| decode::<GetMapReply>(&body)) {
            Ok(reply) => self.take_update(&reply),
            Err(failure) => tracing::debug!(%failure, "no map yet"),
        }
    }

    fn take_update(self: &Rc<Self>, reply: &GetMapReply) {
        let map = if reply.delta.is_empty() {
            if reply.map.is_empty() {
                return;
            }
            ClusterMap::decode_map(&reply.map)
        } else {
            MapDelta::decode_delta(&reply.delta).and_then(|delta| delta.apply(&self.shared.map()))
        };
        match map {
            Ok(map) => self.put_in_force(map),
            // Another one came in between; or the sender is of another version, and says so often.
            Err(error) => tracing::debug!(%error, "a map is not taken over"),
        }
    }

    async fn report_filled(self: Rc<Self>) {
        loop {
            let changed = self.changed.notified();
            let map = self.shared.map();
            self.filled.borrow_mut().retain(|replica| {
                map.partitions.get(replica.partition as usize).is_some_and(|entry| {
                    entry.config == replica.config && entry.filling.contains(&replica.node)
                })
            });
            let replicas: Vec<_> = self.filled.borrow().iter().copied().collect();
            if replicas.is_empty() {
                changed.await;
                continue;
            }
            if let Err(failure) = self.ask_leader(Kind::Filled, &Filled { replicas }).await {
                tracing::debug!(%failure, "filled replicas were not reported yet");
            }
            self.rt.sleep(REPORT).await;
        }
    }
}
