//! Machines become a cluster: the first is formatted, the others join.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, redundancy};
use bb_nvme::DeviceRef;
use bb_proto::meta::{GetMap, GetMapReply, decode, encode};
use bb_proto::{Kind, ServiceClass};
use bb_runtime::{BufPool, Rt};
use bb_server::node::{self, JoinPlan, Plan};
use bb_transport::auth::NoAuth;
use bb_transport::{Caller, Client, ClientConfig, Identity, Outgoing, Role};

use super::machine::POOL_BYTES;
use super::{Machine, World};

/// Time for a process to serve where nothing goes wrong.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long a cluster is asked to take a node in.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// Time for all partitions to get all their replicas where nothing goes wrong.
const SPREAD_LIMIT: Duration = Duration::from_secs(60);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl World {
    /// Makes a new cluster on the first machine's disks.
    ///
    /// # Errors
    /// Why it could not be made.
    pub async fn format(&self) -> Result<(), String> {
        let machine = self.first();
        let pool = BufPool::new(POOL_BYTES, false).map_err(text)?;
        let log: DeviceRef = machine.log_disk.attach();
        let devices: Vec<DeviceRef> =
            machine.disks.iter().map(|disk| -> DeviceRef { disk.attach() }).collect();
        let plan = Plan {
            node: 1,
            address: machine.address.0.to_string(),
            bfs: [7; 16],
            data: self.setup.data,
            parity: self.setup.parity,
            codec: u8::try_from(ClusterMap::default().codec.max(1)).unwrap_or(1),
            partitions: self.setup.partitions,
            region_log2: 20,
            window_ticks: self.setup.window_ticks,
            deterministic: self.setup.deterministic,
            write_through: false,
        };
        node::format(&self.rt, &pool, &log, &devices, &plan, &mut |_, _, _| {})
            .await
            .map(drop)
            .map_err(text)
    }

    /// Makes the cluster of the setup, all of it serving: the first machine, and those that have
    /// joined it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn begin(&self) -> Result<(), String> {
        self.format().await.map_err(|why| format!("cannot be formatted: {why}"))?;
        let first = self.first();
        if !first.start_until_serving(START_LIMIT).await {
            return Err(format!("does not start: {:?}", first.start_mistake()));
        }
        for machine in &self.machines[1..] {
            self.take_in(machine).await?;
        }
        if self.machines.len() > 1 && !self.until_whole(SPREAD_LIMIT).await {
            return Err(format!("does not become whole: {}", self.what_is_missing()));
        }
        Ok(())
    }

    /// A machine with blank or worthless disks joins, and its server starts.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn take_in(&self, machine: &Rc<Machine>) -> Result<(), String> {
        let address = &machine.address;
        let rt = self.rt.new_domain();
        let joined = self.join(machine, &rt).await;
        self.rt.kill(rt.domain());
        joined.map_err(|why| format!("{address:?} cannot join: {why}"))?;
        machine.start();
        Ok(())
    }

    async fn join(&self, machine: &Machine, rt: &Rt) -> Result<(), String> {
        let pool = BufPool::new(POOL_BYTES, false).map_err(text)?;
        let network = self.net.host(rt, machine.address.clone());
        let caller = |role, cluster| {
            let identity = Identity {
                role,
                host: machine.address.0.clone(),
                cluster,
                incarnation: 0,
                auth: NoAuth::shared(),
            };
            Client::new(rt, network.clone(), ClientConfig::new(identity, pool.clone()))
        };
        let map = self.ask_for_map(machine, &caller(Role::Client, Vec::new())).await?;
        let plan = JoinPlan {
            address: machine.address.0.to_string(),
            witness: false,
            write_through: false,
            caller: Rc::new(caller(Role::Server, map.cluster.clone())),
            patience: JOIN_PATIENCE,
            map,
        };
        let log: DeviceRef = machine.log_disk.attach();
        let devices: Vec<DeviceRef> =
            machine.disks.iter().map(|disk| -> DeviceRef { disk.attach() }).collect();
        node::join(rt, &pool, &log, &devices, &plan, &mut |_, _, _| {})
            .await
            .map(drop)
            .map_err(text)
    }

    async fn ask_for_map(&self, joining: &Machine, caller: &Client) -> Result<ClusterMap, String> {
        let mut why = "nobody answers".to_owned();
        let deadline = self.rt.now() + JOIN_PATIENCE;
        while self.rt.now() < deadline {
            for peer in self.machines.iter().filter(|peer| peer.address != joining.address) {
                let body = encode(&GetMap { epoch: 0, deltas: false });
                let wait = Duration::from_secs(2);
                let ask = Outgoing::new(Kind::GetMap, ServiceClass::Control, wait, body);
                match caller.call(&peer.address, ask).await {
                    Ok(answer) => {
                        let reply: GetMapReply = decode(&answer.body).map_err(text)?;
                        return ClusterMap::decode_map(&reply.map).map_err(text);
                    }
                    Err(error) => why = error.to_string(),
                }
            }
            self.rt.sleep(Duration::from_millis(200)).await;
        }
        Err(why)
    }

    /// The newest map that is in force anywhere.
    pub fn map(&self) -> Option<Rc<ClusterMap>> {
        let maps = self.machines.iter().filter_map(|machine| machine.node());
        maps.map(|node| node.context().shared.map()).max_by_key(|map| map.epoch)
    }

    /// Waits until every machine serves and every partition has all its replicas. False if that
    /// takes longer than `limit`.
    pub async fn until_whole(&self, limit: Duration) -> bool {
        let deadline = self.rt.now() + limit;
        while !self.what_is_missing().is_empty() {
            if self.rt.now() >= deadline {
                return false;
            }
            self.rt.sleep(Duration::from_millis(100)).await;
        }
        true
    }

    /// What keeps the cluster from being whole; empty when it is.
    pub fn what_is_missing(&self) -> String {
        let mut missing = Vec::new();
        for machine in self.machines.iter().filter(|machine| !machine.is_serving()) {
            missing.push(format!("{:?} does not serve", machine.address));
        }
        let Some(map) = self.map() else { return "nobody has a map".to_owned() };
        let addresses: BTreeSet<&str> =
            self.machines.iter().map(|machine| &*machine.address.0).collect();
        let active = map.nodes.iter().filter(|node| node.is_active());
        let active: BTreeSet<&str> = active.map(|node| node.address.as_str()).collect();
        for address in addresses.difference(&active) {
            missing.push(format!("{address} is not active in the map"));
        }
        let counts = redundancy(&map);
        if !counts.is_full() {
            missing.push(format!("{counts:?}"));
        }
        for machine in &self.machines {
            let Some(node) = machine.node() else { continue };
            let shared = &node.context().shared;
            if shared.map().epoch != map.epoch {
                missing.push(format!("{:?} has an older map", machine.address));
            }
        }
        missing.join("; ")
    }
}
