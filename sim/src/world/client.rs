//! A client process.

use std::rc::Rc;
use std::time::Duration;

use bb_client::{Client, ClientOptions};
use bb_runtime::{BufPool, Rt};
use bb_transport::auth::NoAuth;
use bb_transport::{Address, Caller, ClientConfig, Identity, Role};

use super::World;
use crate::model::Actor;

/// Memory of a client process that is not about memory.
const POOL_BYTES: usize = 32 << 20;
/// Memory of client processes that do the work: also so little that they wait for it.
const POOLS_BYTES: [usize; 4] = [8 << 20, 8 << 20, 12 << 20, 32 << 20];

/// A client process.
pub struct ClientProcess {
    /// Its tasks' domain.
    pub rt: Rt,
    /// Who it is to the model.
    pub actor: Actor,
    /// The connected client.
    pub client: Client,
    /// Its way to the server, for requests that no client would make.
    pub caller: Rc<dyn Caller>,
}

/// How clients behave: patient, so that no outage of a run fails a call, and with little memory.
pub fn client_options(rt: &Rt, full: bool) -> ClientOptions {
    ClientOptions {
        command_timeout: Duration::from_secs(if full { 5 } else { 400 }),
        request_timeout: Duration::from_secs(2),
        write_back_bytes: [2 << 20, 4 << 20, 8 << 20]
            [usize::try_from(rt.random_below(3)).unwrap_or(0)],
        read_cache_bytes: [0, 512 << 10, 4 << 20][usize::try_from(rt.random_below(3)).unwrap_or(0)],
        ..ClientOptions::default()
    }
}

/// The memory of a client process, by lot.
pub fn pool_bytes(rt: &Rt) -> usize {
    POOLS_BYTES[usize::try_from(rt.random_below(POOLS_BYTES.len() as u64)).unwrap_or(0)]
}

impl World {
    /// Starts a client process in a domain of its own. Its tasks die with [`World::kill_client`].
    ///
    /// # Errors
    /// Why it cannot connect.
    pub async fn connect(&self, options: ClientOptions) -> Result<Rc<ClientProcess>, String> {
        self.connect_with(options, POOL_BYTES).await
    }

    /// The same, with so much memory.
    ///
    /// # Errors
    /// Why it cannot connect.
    pub async fn connect_with(
        &self,
        options: ClientOptions,
        pool_bytes: usize,
    ) -> Result<Rc<ClientProcess>, String> {
        let number = self.clients.get() + 1;
        self.clients.set(number);
        let rt = self.rt.new_domain();
        let name = format!("client{number}");
        let pool = BufPool::new(pool_bytes, false).map_err(|error| error.to_string())?;
        let identity = Identity {
            role: Role::Client,
            host: name.as_str().into(),
            cluster: Vec::new(),
            incarnation: 0,
            auth: NoAuth::shared(),
        };
        let network = self.net.host(&rt, name.as_str());
        let config = ClientConfig::new(identity, pool.clone());
        let caller: Rc<dyn Caller> = Rc::new(bb_transport::Client::new(&rt, network, config));
        let (rt2, caller2, addresses) = (rt.clone(), caller.clone(), self.addresses());
        // In its own domain, so that all it ever starts dies with it.
        let connect = rt.spawn(async move {
            let options = ClientOptions { host: name, ..options };
            Client::connect(rt2, pool, caller2, addresses, options).await
        });
        let client = match connect.await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        };
        #[cfg(feature = "planted")]
        if let Some(plant) = self.setup.plant {
            plant.plant_into(&client);
        }
        Ok(Rc::new(ClientProcess { rt, actor: Actor(number), client, caller }))
    }

    /// Where servers listen, in a random order.
    fn addresses(&self) -> Vec<Address> {
        let mut all: Vec<_> = self.machines.iter().map(|machine| machine.address.clone()).collect();
        for at in (1..all.len()).rev() {
            let other = usize::try_from(self.draw(at as u64 + 1)).unwrap_or(0);
            all.swap(at, other);
        }
        all
    }

    /// Kills a client process.
    pub fn kill_client(&self, process: &ClientProcess) {
        self.rt.kill(process.rt.domain());
    }
}
