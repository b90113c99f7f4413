//! Looks at a cluster from outside, without a session: works where nothing is served, too.

use std::time::Duration;

use bb_cluster::ClusterMap;
use bb_proto::meta::{self, GetMap, GetMapReply};
use bb_proto::{Kind, ServiceClass};
use bb_runtime::uring::Uring;
use bb_runtime::{BufPool, Executor};
use bb_transport::{
    Address, Answer, CallError, Caller, ClientConfig, Identity, Outgoing, Role, Tcp, auth,
};
use futures_util::future::{join, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::error::{Error, Result};
use crate::status::NodeReport;

/// Answers are small.
const POOL_BYTES: usize = 4 << 20;

/// Asks servers for the map and for their state.
pub struct Observer {
    caller: bb_transport::Client,
    seeds: Vec<Address>,
}

/// What a cluster says of itself at one time.
pub struct ClusterView {
    /// The newest map that anybody gave.
    pub map: ClusterMap,
    /// The nodes of the map, in its order; those that have left are not asked.
    pub reports: Vec<NodeReport>,
}

impl Observer {
    /// Over TCP; `addresses` are servers, one that answers is enough.
    ///
    /// # Errors
    /// No memory.
    pub fn over_tcp(
        executor: &Executor,
        ring: &Uring,
        addresses: &[String],
        host: &str,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| Error::errno_of(libc::ENOMEM, error.to_string());
        let pool = BufPool::new(POOL_BYTES, false).map_err(failed)?;
        let identity = Identity {
            role: Role::Client,
            host: host.into(),
            cluster: Vec::new(),
            incarnation: 0,
            auth: auth::Choice::default().method(),
        };
        let config = ClientConfig::new(identity, pool);
        let caller = bb_transport::Client::new(&executor.rt(), Tcp::network(ring), config);
        let seeds = addresses.iter().map(|a| Address::from(a.as_str())).collect();
        Ok(Self { caller, seeds })
    }

    /// Looks once. A server that does not answer within `patience` counts as unreachable; the
    /// answer of one is enough.
    ///
    /// # Errors
    /// Why nobody gave a map.
    pub async fn look(&self, patience: Duration) -> Result<ClusterView> {
        let first = self.first_map(patience).await?;
        self.caller.set_cluster(first.cluster.clone());
        let asked = first.nodes.iter().filter(|node| !node.has_left());
        let answers = asked.map(async |node| {
            let address = Address::from(node.address.as_str());
            let status = self.ask(&address, Kind::NodeStatus, Vec::new(), patience);
            let (status, map) = join(status, self.map_of(&address, patience)).await;
            let status = status.and_then(|answer| Ok(meta::decode(&answer.body)?));
            (NodeReport { node: node.id, address: node.address.clone(), status }, map.ok())
        });
        let answers = join_all(answers).await;
        let mut view = ClusterView { map: first, reports: Vec::new() };
        for (report, map) in answers {
            view.reports.push(report);
            if let Some(map) = map.filter(|map| map.epoch > view.map.epoch) {
                view.map = map;
            }
        }
        // Nodes that joined since the first map are seen the next time.
        Ok(view)
    }

    /// Of all servers at once: a dead one costs no time.
    async fn first_map(&self, patience: Duration) -> Result<ClusterMap> {
        let mut answers: FuturesUnordered<_> =
            self.seeds.iter().map(|seed| self.map_of(seed, patience)).collect();
        let mut last = Error::Rejected("no server is named".to_owned());
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(map) => return Ok(map),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn map_of(&self, address: &Address, patience: Duration) -> Result<ClusterMap> {
        let body = meta::encode(&GetMap { epoch: 0, deltas: false });
        let answer = self.ask(address, Kind::GetMap, body, patience).await?;
        let reply: GetMapReply = meta::decode(&answer.body)?;
        ClusterMap::decode_map(&reply.map).map_err(|error| Error::Rejected(error.to_string()))
    }

    async fn ask(
        &self,
        address: &Address,
        kind: Kind,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Answer> {
        let request = Outgoing::new(kind, ServiceClass::Control, patience, body);
        match self.caller.call(address, request).await {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(failure, _)) => Err(failure.into()),
            Err(CallError::Rejected(text)) => Err(Error::Rejected(text)),
            Err(CallError::TimedOut) => Err(Error::TimedOut { seconds: patience.as_secs() }),
            Err(error @ CallError::Disconnected { .. }) => {
                Err(Error::errno_of(libc::ENOTCONN, error.to_string()))
            }
        }
    }
}
