//! Messages between voters.

use std::rc::Rc;

use bb_consensus::{Net, VoterNumber};
use bb_proto::cluster::RaftMessages;
use bb_proto::meta::encode;
use bb_proto::{Kind, ServiceClass};
use bb_runtime::Rt;
use bb_transport::{Address, Caller, Outgoing};

use super::ASK;
use super::machine::Replicated;
use crate::context::Shared;

/// Sends to whoever has a voter number in the newest map that this node knows.
pub(super) struct VoterNet {
    pub(super) rt: Rt,
    pub(super) caller: Rc<dyn Caller>,
    pub(super) shared: Rc<Shared>,
    pub(super) replicated: Rc<Replicated>,
    pub(super) own: VoterNumber,
}

impl Net for VoterNet {
    fn send(&self, to: VoterNumber, messages: Vec<Vec<u8>>) {
        // A voter's own log may be ahead of the map in force, or (a new voter's) behind it.
        let find = |map: &bb_cluster::ClusterMap| {
            map.nodes.iter().find(|node| node.voter == to.0).map(|node| node.address.clone())
        };
        let address = find(&self.replicated.state().map).or_else(|| find(&self.shared.map()));
        let Some(address) = address else { return };
        let body = encode(&RaftMessages { messages, from: self.own.0 });
        let request = Outgoing::new(Kind::Raft, ServiceClass::Control, ASK, body);
        // Lost messages are the library's business.
        self.rt.spawn(self.caller.call(&Address::from(address.as_str()), request));
    }
}
