//! Commands for the map, to the Raft leader, whoever that is.

use std::rc::Rc;

use bb_cluster::{Change, Command, DeviceName, Executed, NodeName, Started};
use bb_proto::cluster::{Propose, ProposeReply};
use bb_proto::meta::{decode, encode};
use bb_proto::{Code, DeviceId, Failure, Kind, NodeId, ServiceClass};
use bb_transport::{CallError, Outgoing};
use prost::Message;

use super::voter::Voter;
use super::{AGAIN, ASK, Council, GIVEN_UP, outcome};

impl Council {
    /// Asks one node.
    pub(super) async fn ask<M: Message>(
        &self,
        node: NodeId,
        kind: Kind,
        message: &M,
    ) -> Result<Vec<u8>, Failure> {
        let busy = |why: &dyn std::fmt::Display| Failure::new(Code::Busy, why.to_string());
        let address =
            self.shared.address_of(node).ok_or_else(|| busy(&"the map does not know it"))?;
        let request = Outgoing::new(kind, ServiceClass::Control, ASK, encode(message));
        match self.caller.call(&address, request).await {
            Ok(answer) => Ok(answer.body),
            Err(CallError::Refused(failure, _)) => Err(failure),
            Err(error) => Err(busy(&error)),
        }
    }

    /// Asks the leader, or whoever may know who that is.
    pub(super) async fn ask_leader<M: Message>(
        &self,
        kind: Kind,
        message: &M,
    ) -> Result<Vec<u8>, Failure> {
        let leader = self.leader().unwrap_or_else(|| self.some_voter());
        let answer = self.ask(leader, kind, message).await;
        match &answer {
            Ok(_) => self.leader.set(Some(leader)),
            Err(failure) if failure.kind() == Code::NotLeader => {
                let hint = u32::try_from(failure.value).unwrap_or(0);
                self.leader.set((hint != 0 && hint != leader.0).then_some(NodeId(hint)));
            }
            Err(failure) if failure.kind() == Code::Busy => self.leader.set(None),
            Err(_) => {}
        }
        answer
    }

    fn some_voter(&self) -> NodeId {
        let map = self.shared.map();
        let voters: Vec<u32> =
            map.nodes.iter().filter(|node| node.voter != 0).map(|node| node.id).collect();
        match voters.as_slice() {
            [] => self.shared.node,
            all => {
                let at = self.rt.random_below(all.len() as u64);
                NodeId(all[usize::try_from(at).unwrap_or(0)])
            }
        }
    }

    /// Proposes once.
    pub(super) async fn propose_once(&self, command: &Command) -> Result<Executed, Failure> {
        let own = self.voter.borrow().clone().filter(|voter| voter.is_leader());
        if let Some(voter) = own {
            return Self::propose_here(&voter, command.encode_command()).await;
        }
        let ask = Propose { command: command.encode_command() };
        let reply: ProposeReply = decode(&self.ask_leader(Kind::Propose, &ask).await?)?;
        decode(&reply.outcome)
    }

    /// Proposes as the leader.
    pub(super) async fn propose_here(
        voter: &Rc<Voter>,
        command: Vec<u8>,
    ) -> Result<Executed, Failure> {
        let command = Self::in_term(command, voter.consensus.term());
        match voter.consensus.propose(command).await {
            Ok(bytes) => decode(&bytes),
            Err(bb_consensus::ProposeError::NotLeader(_)) => Err(Failure::new(Code::NotLeader, "")),
            Err(error) => Err(Failure::new(Code::Busy, error.to_string())),
        }
    }

    /// Proposes until it is executed, or void.
    pub(super) async fn propose(&self, change: Change) -> Executed {
        let command = Command::new(change);
        loop {
            match self.propose_once(&command).await {
                Ok(executed) => return executed,
                Err(failure) => {
                    tracing::debug!(%failure, "a command was not executed yet");
                    self.rt.sleep(AGAIN).await;
                }
            }
        }
    }

    /// Tells the map that this process begins; `Err` if the map never wants one with this log back.
    pub(super) async fn announce(self: &Rc<Self>) -> Result<(), String> {
        let started = Started {
            node: self.shared.node.0,
            log: self.log.identity().log.0.to_vec(),
            incarnation: self.shared.incarnation.0,
            address: self.shared.address.0.to_string(),
        };
        let executed = self.propose(Change::Started(started)).await;
        tracing::debug!(outcome = outcome(&executed), "this process was announced");
        self.fetch_map(None).await;
        let map = self.shared.map();
        let place = map.node(self.shared.node);
        match place {
            Some(node) if node.incarnation == self.shared.incarnation.0 => Ok(()),
            Some(node) if node.damaged || node.has_left() => Err(GIVEN_UP.to_owned()),
            _ if executed.void.is_empty() => Ok(()),
            _ => Err(executed.void),
        }
    }

    /// A device of this node has failed for good: the map says so from now on.
    pub async fn give_up_device(self: &Rc<Self>, device: DeviceId) {
        let incarnation = self.shared.map().device_incarnation(device).0;
        let name = DeviceName { device: device.0, incarnation };
        let executed = self.propose(Change::DeviceFailed(name)).await;
        tracing::warn!(%device, outcome = outcome(&executed), "given up in the map");
        self.fetch_map(None).await;
    }

    pub(super) async fn report_damage(&self, node: NodeId, why: &str) {
        let Some(incarnation) = self.shared.map().node(node).map(|node| node.incarnation) else {
            return;
        };
        let name = NodeName { node: node.0, incarnation };
        let executed = self.propose(Change::Damaged(name)).await;
        tracing::warn!(node = node.0, why, outcome = outcome(&executed), "reported as damaged");
    }
}
