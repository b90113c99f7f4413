//! What the nodes of a cluster say of themselves.

use bb_proto::Kind;
use bb_proto::meta::{self, NodeStatus};
use futures_util::future::join_all;

use crate::client::Client;
use crate::error::Result;

/// A node of the map, and its answer.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// Its number.
    pub node: u32,
    /// Where it listens.
    pub address: String,
    /// What it says, or why it says nothing.
    pub status: Result<NodeStatus>,
}

impl Client {
    /// Fetches the map again and asks every node in it, all at once.
    pub async fn node_reports(&self) -> Vec<NodeReport> {
        let link = &self.inner.link;
        link.refresh_map().await;
        let map = link.map();
        join_all(map.nodes.iter().map(async |node| {
            let status = match link.ask_node(&node.address, Kind::NodeStatus).await {
                Ok(answer) => meta::decode(&answer.body).map_err(Into::into),
                Err(error) => Err(error),
            };
            NodeReport { node: node.id, address: node.address.clone(), status }
        }))
        .await
    }
}
