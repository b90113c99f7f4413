//! What other nodes (and clients, for the map) ask of a council.

use std::rc::Rc;

use bb_cluster::{MapUpdate, Reconfigure};
use bb_consensus::VoterNumber;
use bb_proto::cluster::{
    Filled, HandOver, Heartbeat, Lease as LeaseRequest, Propose, ProposeReply, RaftMessages,
    Suspect,
};
use bb_proto::meta::{Done, GetMap, GetMapReply, decode, encode};
use bb_proto::{Code, Failure, Kind, PartitionId};
use bb_transport::{Incoming, Response};

use super::Council;
use super::voter::Voter;
use crate::rights::check_server;

impl Council {
    /// Answers a request about the cluster.
    ///
    /// # Errors
    /// What the request's handler says.
    pub async fn handle(self: &Rc<Self>, request: Incoming) -> Result<Response, Failure> {
        let body = request.body.as_slice();
        if request.header.kind == Kind::GetMap {
            return Ok(Response::body(encode(&self.get_map(decode(body)?))));
        }
        check_server(&request.peer)?;
        let answer = match request.header.kind {
            Kind::Raft => {
                self.take_votes(&decode(body)?);
                encode(&Done {})
            }
            Kind::Propose => encode(&self.take_proposal(decode(body)?).await?),
            Kind::Lease => encode(&self.grant(decode::<LeaseRequest>(body)?).await?),
            Kind::Heartbeat => {
                self.beat_back(decode(body)?)?;
                encode(&Done {})
            }
            Kind::Suspect => {
                self.take_suspicion(&decode::<Suspect>(body)?)?;
                encode(&Done {})
            }
            Kind::Filled => {
                self.take_filled(decode::<Filled>(body)?.replicas)?;
                encode(&Done {})
            }
            Kind::HandOver => {
                self.take_handover(&decode(body)?)?;
                encode(&Done {})
            }
            kind => {
                return Err(Failure::new(Code::Unsupported, format!("{kind:?} is not for nodes")));
            }
        };
        Ok(Response::body(answer))
    }

    fn get_map(self: &Rc<Self>, ask: GetMap) -> GetMapReply {
        if let Some(voter) = &*self.voter.borrow() {
            self.follow_state(voter);
        }
        self.map_update(ask.epoch, ask.deltas)
    }

    /// The map in force is that of this voter's state.
    pub(super) fn follow_state(self: &Rc<Self>, voter: &Voter) {
        let newer = {
            let state = voter.replicated.state();
            self.shared.set_tick(state.tick);
            (state.map.epoch > self.shared.map().epoch).then(|| state.map.clone())
        };
        if let Some(map) = newer {
            self.put_in_force(map);
        }
    }

    /// What leads from an epoch to the map in force.
    pub(super) fn map_update(&self, epoch: u64, deltas: bool) -> GetMapReply {
        let map = self.shared.map();
        if !deltas {
            let map = if epoch >= map.epoch { Vec::new() } else { map.encode_map() };
            return GetMapReply { map, ..GetMapReply::default() };
        }
        match self.history.borrow_mut().update(&map, epoch) {
            MapUpdate::Current => GetMapReply::default(),
            MapUpdate::Delta(delta) => GetMapReply { delta, ..GetMapReply::default() },
            MapUpdate::Whole(map) => GetMapReply { map, ..GetMapReply::default() },
        }
    }

    fn take_votes(&self, messages: &RaftMessages) {
        let voter = self.voter.borrow().clone();
        let Some(voter) = voter else { return };
        for message in &messages.messages {
            if let Err(error) = voter.consensus.step(VoterNumber(messages.from), message) {
                tracing::debug!(%error, from = messages.from, "a vote was not taken");
            }
        }
    }

    async fn take_proposal(self: &Rc<Self>, ask: Propose) -> Result<ProposeReply, Failure> {
        let voter = self.leading_voter()?;
        let executed = match Self::propose_here(&voter, ask.command).await {
            Err(failure) if failure.kind() == Code::NotLeader => return Err(self.not_leader()),
            other => other?,
        };
        self.follow_state(&voter);
        Ok(ProposeReply { epoch: self.shared.map().epoch, outcome: encode(&executed) })
    }

    fn beat_back(&self, ask: Heartbeat) -> Result<(), Failure> {
        let me = (self.shared.node.0, self.shared.incarnation.0);
        if (ask.node, ask.incarnation) == me {
            Ok(())
        } else {
            let text = format!("this is node {} in incarnation {}", me.0, me.1);
            Err(Failure::new(Code::Fenced, text))
        }
    }

    fn take_handover(self: &Rc<Self>, ask: &HandOver) -> Result<(), Failure> {
        let wanted: Reconfigure = decode(&ask.reconfigure)?;
        let host = self.partitions.borrow().upgrade();
        let Some(host) = host else { return Ok(()) };
        for change in wanted.changes {
            if let Some(partition) = host.partition(PartitionId(change.partition)) {
                let this = self.clone();
                self.rt.spawn(async move { this.hand_over_one(&partition, change).await });
            }
        }
        Ok(())
    }
}
