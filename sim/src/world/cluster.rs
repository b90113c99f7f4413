//! Machines become a cluster: the first is formatted, the others join.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{Change, ClusterMap, Command, Executed, Leave, NodeEntry, redundancy};
use bb_nvme::DeviceRef;
use bb_proto::cluster::{Propose, ProposeReply};
use bb_proto::meta::{GetMap, GetMapReply, decode, encode};
use bb_proto::{Kind, ServiceClass};
use bb_runtime::{BufPool, Rt};
use bb_server::node::{self, JoinPlan, Node, Plan};
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

/// A second of one machine may be so much longer or shorter than one of the world: twice that is
/// what a lease of 3 s and its drift of 130 ms permit between two machines.
const DRIFT_PPM: u64 = 20_000;

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
            region_log2: self.setup.region_log2,
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
    /// joined it. The last `late` of them shall join later.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn begin(&self, late: usize) -> Result<(), String> {
        self.format().await.map_err(|why| format!("cannot be formatted: {why}"))?;
        let first = self.first();
        if self.setup.family.drifts() {
            for machine in &self.machines {
                let ppm = i32::try_from(self.draw(2 * DRIFT_PPM + 1)).unwrap_or(0);
                machine.drift_ppm.set(ppm - i32::try_from(DRIFT_PPM).unwrap_or(0));
                self.tally.borrow_mut().drifting += 1;
            }
        }
        if self.machines.len() > 1 {
            for machine in &self.machines {
                self.rt.spawn(machine.clone().keep_up());
            }
            first.is_kept_up.set(true);
        }
        first.is_member.set(true);
        if !first.start_until_serving(START_LIMIT).await {
            return Err(format!("does not start: {:?}", first.start_mistake()));
        }
        for machine in &self.machines[1..self.machines.len() - late] {
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
        machine.is_member.set(true);
        machine.is_kept_up.set(true);
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

    /// Machines that have their numbers in the cluster.
    pub fn members(&self) -> impl Iterator<Item = &Rc<Machine>> {
        self.machines.iter().filter(|machine| machine.is_member.get())
    }

    /// The nodes that run, in order.
    pub fn nodes(&self) -> Vec<Rc<Node>> {
        self.machines.iter().filter_map(|machine| machine.node()).collect()
    }

    /// Takes a node that is down out of the map for good, as an operator does; with `lose` also
    /// where it holds the last replica of a partition.
    ///
    /// # Errors
    /// Why it is still there.
    pub async fn give_up_node(&self, node: &NodeEntry, lose: bool) -> Result<(), String> {
        let rt = self.rt.new_domain();
        let pool = BufPool::new(1 << 20, false).map_err(text)?;
        let cluster = self.map().map(|map| map.cluster.clone()).unwrap_or_default();
        let identity = Identity {
            role: Role::Server,
            host: "operator".into(),
            cluster,
            incarnation: 0,
            auth: NoAuth::shared(),
        };
        let network = self.net.host(&rt, "operator");
        let caller = Client::new(&rt, network, ClientConfig::new(identity, pool));
        let leave = Leave { node: node.id, incarnation: node.incarnation, give_up: lose };
        let command = Command::new(Change::Leave(leave)).encode_command();
        let body = encode(&Propose { command });
        let mut why = "nobody answers".to_owned();
        let deadline = self.rt.now() + JOIN_PATIENCE;
        while self.rt.now() < deadline {
            for machine in self.members() {
                let wait = Duration::from_secs(2);
                let ask = Outgoing::new(Kind::Propose, ServiceClass::Control, wait, body.clone());
                match caller.call(&machine.address, ask).await {
                    Ok(answer) => {
                        let reply: ProposeReply = decode(&answer.body).map_err(text)?;
                        let executed: Executed = decode(&reply.outcome).map_err(text)?;
                        if executed.void.is_empty() {
                            self.rt.kill(rt.domain());
                            return Ok(());
                        }
                        why = executed.void;
                    }
                    Err(error) => why = error.to_string(),
                }
            }
            self.rt.sleep(Duration::from_millis(500)).await;
        }
        self.rt.kill(rt.domain());
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
        for machine in self.members().filter(|machine| !machine.is_serving()) {
            missing.push(format!("{:?} does not serve", machine.address));
        }
        let Some(map) = self.map() else { return "nobody has a map".to_owned() };
        let addresses: BTreeSet<&str> = self.members().map(|machine| &*machine.address.0).collect();
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
