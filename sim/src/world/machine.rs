//! A machine: its disks, and the life of its server process, which is started, killed, started again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::PlanLimits;
use bb_commitlog::Options;
use bb_nvme::{DeviceRef, SimDisk, SimDiskOptions};
use bb_runtime::sync::Notify;
use bb_runtime::{BufPool, Instant, Rt};
use bb_server::node::{Node, Parts};
use bb_server::{blockstore, partition::HostConfig};
use bb_transport::auth::NoAuth;
use bb_transport::{Address, Client, ClientConfig, Identity, Role, Server, ServerConfig, Service};

use super::Site;
use crate::bfs::SimProcess;
use crate::scale::Tap;

/// Memory of a server process.
pub(super) const POOL_BYTES: usize = 64 << 20;
/// Longer than any outage of a run: what a lost session does to operations under way is for
/// directed tests.
const SESSION_LEASE: Duration = Duration::from_secs(25);
/// Pause before another attempt to start.
const START_PAUSE: Duration = Duration::from_millis(300);

/// A server process.
pub struct Life {
    /// Its tasks' domain.
    rt: Rt,
    bfs: RefCell<Option<Rc<SimProcess>>>,
    node: RefCell<Option<Rc<Node>>>,
    serving: Cell<bool>,
    ended: Cell<bool>,
    stop: Notify,
    changed: Notify,
}

/// A start that failed.
#[derive(Clone, Debug)]
pub struct StartMistake {
    /// When starts began to fail.
    pub since: Instant,
    /// Why the last one did.
    pub why: String,
}

/// A machine with one server.
pub struct Machine {
    site: Rc<Site>,
    number: usize,
    /// The data devices.
    pub disks: Vec<SimDisk>,
    /// The log's device.
    pub log_disk: SimDisk,
    /// Where its server listens.
    pub address: Address,
    /// The server process, if one runs.
    life: RefCell<Option<Rc<Life>>>,
    /// Since when a start fails, and why.
    mistake: RefCell<Option<StartMistake>>,
    /// It has its numbers in the cluster.
    pub is_member: Cell<bool>,
    /// A server that ended by itself is started again.
    pub is_kept_up: Cell<bool>,
    /// Numbers of its devices, when somebody looked last.
    pub devices: RefCell<Vec<u32>>,
    /// How much faster the clocks of processes from now on run.
    pub drift_ppm: Cell<i32>,
}

impl Machine {
    /// The machine of that number, with blank disks.
    pub(super) fn new(site: &Rc<Site>, number: usize) -> Rc<Self> {
        let (setup, rt) = (&site.setup, &site.rt);
        // The first is called as it was when it was the only one.
        let name = |what: &str| match number {
            0 => what.to_owned(),
            _ => format!("{what}-{}", number + 1),
        };
        let disk = |what: &str, bytes| SimDisk::new(rt, &SimDiskOptions::new(&name(what), bytes));
        let disks = (0..setup.devices).map(|n| disk(&format!("disk{n}"), setup.device_bytes));
        Rc::new(Self {
            site: site.clone(),
            number,
            disks: disks.collect(),
            log_disk: disk("log", setup.log_bytes),
            address: Address::from(name("server").as_str()),
            life: RefCell::default(),
            mistake: RefCell::default(),
            is_member: Cell::new(false),
            is_kept_up: Cell::new(false),
            devices: RefCell::default(),
            drift_ppm: Cell::new(0),
        })
    }

    /// All its disks, the log's last.
    pub fn all_disks(&self) -> impl Iterator<Item = &SimDisk> {
        self.disks.iter().chain([&self.log_disk])
    }

    /// Starts a server process; it goes on by itself, also where it cannot start.
    pub fn start(self: &Rc<Self>) {
        let life = Rc::new(Life {
            rt: self.site.rt.new_domain_with_drift(self.drift_ppm.get()),
            bfs: RefCell::default(),
            node: RefCell::default(),
            serving: Cell::new(false),
            ended: Cell::new(false),
            stop: Notify::new(),
            changed: Notify::new(),
        });
        *self.life.borrow_mut() = Some(life.clone());
        let machine = self.clone();
        self.site.tally.borrow_mut().starts += 1;
        life.rt.clone().spawn(async move {
            let result = machine.serve(&life).await;
            life.serving.set(false);
            life.ended.set(true);
            if let Err(why) = &result {
                machine.site.tally.borrow_mut().failed_starts += 1;
                tracing::warn!(why, "the server could not start, or ended");
                let since = machine.site.rt.now();
                let mut mistake = machine.mistake.borrow_mut();
                let since = mistake.as_ref().map_or(since, |mistake| mistake.since);
                *mistake = Some(StartMistake { since, why: why.clone() });
            }
            life.changed.notify_all();
        });
    }

    async fn serve(&self, life: &Rc<Life>) -> Result<(), String> {
        let rt = &life.rt;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let pool = BufPool::new(POOL_BYTES, false).map_err(|error| text(&error))?;
        let network = self.site.net.host(rt, self.address.clone());
        let identity = Identity {
            role: Role::Server,
            host: self.address.0.clone(),
            cluster: Vec::new(),
            incarnation: 0,
            auth: NoAuth::shared(),
        };
        let caller =
            Client::new(rt, network.clone(), ClientConfig::new(identity.clone(), pool.clone()));
        let bfs = self.site.bfs.process();
        *life.bfs.borrow_mut() = Some(bfs.clone());
        let parts = Parts {
            security: None,
            address: self.address.clone(),
            pool: pool.clone(),
            log: self.log_disk.attach(),
            log_options: self.log_options(),
            devices: self.disks.iter().map(|disk| -> DeviceRef { disk.attach() }).collect(),
            unusable: Vec::new(),
            give_up: Vec::new(),
            bfs,
            caller: Rc::new(caller.clone()),
            blocks: blockstore::Config {
                orphan_interval: Duration::from_secs(2),
                ..blockstore::Config::default()
            },
            session_lease: SESSION_LEASE,
            host: HostConfig {
                call_deadline: Duration::from_secs(2),
                work_interval: Duration::from_millis(300),
                ask_interval: Duration::from_secs(2),
                ..HostConfig::default()
            },
            metadata_bytes_max: self.site.metadata_bytes_max.get(),
            plan: self.plan_limits(),
        };
        let node = Node::start(rt, parts, &|_, _| {}).await.map_err(|error| text(&error))?;
        if !self.site.setup.calls_itself_by_network {
            caller.set_local(self.address.clone(), self.counted(&node, true));
        }
        let shared = node.context().shared.clone();
        caller.set_cluster(shared.map().cluster.clone());
        let identity = Identity {
            cluster: shared.map().cluster.clone(),
            incarnation: shared.incarnation.0,
            ..identity
        };
        let listener = network.listen(&self.address).await.map_err(|error| text(&error))?;
        let service = self.counted(&node, false);
        let server = Server::start(rt, listener, service, ServerConfig::new(identity, pool));
        *life.node.borrow_mut() = Some(node.clone());
        let stop = std::pin::pin!(life.stop.notified());
        let log = node.context().log.clone();
        let failed = async { format!("the commit log failed: {}", log.failed().await) };
        let (failed, ends) = (std::pin::pin!(failed), std::pin::pin!(node.council().must_end()));
        let ends = futures_util::future::select(failed, ends);
        // It may be told to end before it serves.
        let joined = async {
            node.council().joined().await;
            *self.mistake.borrow_mut() = None;
            life.serving.set(true);
            life.changed.notify_all();
            stop.await;
        };
        let stop = std::pin::pin!(joined);
        if let futures_util::future::Either::Right((why, _)) =
            futures_util::future::select(stop, ends).await
        {
            return Err(why.factor_first().0);
        }
        node.council().leave_in_order().await;
        server.stop(Duration::from_secs(2)).await;
        caller.close();
        node.stop().await.map_err(|error| text(&error))
    }

    /// The node, behind a counter of what it is asked where that is wanted.
    fn counted(&self, node: &Rc<Node>, local: bool) -> Rc<dyn Service> {
        if !self.site.setup.counts_traffic {
            return node.clone();
        }
        let traffic = self.site.traffic.clone();
        Rc::new(Tap { service: node.clone(), server: self.number, local, traffic })
    }

    /// Starts a server that ended by itself again after a pause, as a service manager does, for as
    /// long as [`Machine::is_kept_up`] says so.
    pub async fn keep_up(self: Rc<Self>) {
        loop {
            self.site.rt.sleep(START_PAUSE).await;
            let ended = self.life.borrow().as_ref().is_none_or(|life| life.ended.get());
            if self.is_kept_up.get() && ended {
                if self.life.borrow().is_some() {
                    self.site.tally.borrow_mut().ended_by_themselves += 1;
                    self.clear();
                }
                self.start();
            }
        }
    }

    fn log_options(&self) -> Options {
        #[cfg(feature = "planted")]
        if let Some(plant) = self.site.setup.plant {
            return Options { faults: plant.log_faults(), ..Options::default() };
        }
        Options::default()
    }

    /// Runs are short: what may wait in a real cluster happens soon.
    fn plan_limits(&self) -> PlanLimits {
        if self.site.setup.nodes == 1 {
            return PlanLimits::default();
        }
        PlanLimits {
            settle: Duration::from_secs(3),
            voter_grace: Duration::from_secs(15),
            ..PlanLimits::default()
        }
    }

    /// True while a server process answers.
    pub fn is_serving(&self) -> bool {
        self.life.borrow().as_ref().is_some_and(|life| life.serving.get())
    }

    /// The node, for looking at it.
    pub fn node(&self) -> Option<Rc<Node>> {
        self.life.borrow().as_ref().and_then(|life| life.node.borrow().clone())
    }

    /// Notes the numbers of its devices.
    pub fn note_devices(&self) {
        let Some(node) = self.node() else { return };
        let shared = &node.context().shared;
        let map = shared.map();
        let own = map.devices.iter().filter(|device| device.node == shared.node.0);
        *self.devices.borrow_mut() = own.map(|device| device.id).collect();
    }

    /// Kills the server process where it stands.
    pub fn kill(&self) {
        self.end(false);
    }

    /// Cuts the server's power.
    pub fn cut_power(&self) {
        self.end(true);
    }

    fn end(&self, power: bool) {
        let Some(life) = self.life.borrow_mut().take() else { return };
        let mut tally = self.site.tally.borrow_mut();
        if power {
            tally.power_cuts += 1;
        } else {
            tally.kills += 1;
        }
        if !life.serving.get() {
            tally.killed_in_recovery += 1;
        }
        drop(tally);
        self.end_life(&life);
        for disk in self.all_disks() {
            if power {
                disk.power_loss();
            } else {
                disk.process_crash();
            }
        }
    }

    /// Takes away what is left of a process that has ended.
    fn clear(&self) {
        let Some(life) = self.life.borrow_mut().take() else { return };
        self.end_life(&life);
        self.all_disks().for_each(SimDisk::process_crash);
    }

    fn end_life(&self, life: &Life) {
        *life.node.borrow_mut() = None;
        self.site.rt.kill(life.rt.domain());
        if let Some(bfs) = life.bfs.borrow_mut().take() {
            bfs.kill();
        }
    }

    /// Stops the server in good order, for at most `limit`; then kills it.
    pub async fn stop(&self, limit: Duration) {
        let Some(life) = self.life.borrow().clone() else { return };
        if life.serving.get() {
            self.site.tally.borrow_mut().stops += 1;
            life.stop.notify_all();
            let ended = async {
                while !life.ended.get() {
                    life.changed.notified().await;
                }
            };
            let _ = self.site.rt.timeout(limit, ended).await;
        }
        let kills = self.site.tally.borrow().kills;
        self.kill();
        self.site.tally.borrow_mut().kills = kills;
    }

    /// Starts the server, again and again until it serves. False if it does not within `limit`.
    pub async fn start_until_serving(self: &Rc<Self>, limit: Duration) -> bool {
        let deadline = self.site.rt.now() + limit;
        loop {
            let life = self.life.borrow().clone();
            match life {
                Some(life) if life.serving.get() => return true,
                Some(life) if life.ended.get() => {
                    self.kill();
                    self.site.rt.sleep(START_PAUSE).await;
                }
                Some(life) => {
                    let changed = life.changed.notified();
                    let _ = self.site.rt.timeout(Duration::from_secs(5), changed).await;
                }
                None => self.start(),
            }
            if self.site.rt.now() >= deadline {
                return self.is_serving();
            }
        }
    }

    /// Why the server does not start, and since when, if it does not.
    pub fn start_mistake(&self) -> Option<StartMistake> {
        self.mistake.borrow().clone()
    }
}
