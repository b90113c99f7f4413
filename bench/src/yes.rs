//! Servers that agree to everything at once, and keep nothing.

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, PartitionEntry};
use bb_proto::meta::{self, Attributes, FileHandle, NamespaceReply, SessionOpenReply};
use bb_proto::{Capability, Fid, Kind, Rights, SessionId, Tick};
use bb_transport::{Address, Answer, CallFuture, Caller, Outgoing, Vitals};

const DEVICES: u32 = 20;

/// Agrees to everything.
pub struct Yes {
    map: Vec<u8>,
}

impl Yes {
    /// A cluster of one node that says yes.
    #[expect(clippy::new_without_default, reason = "there is no plainer one")]
    pub fn new() -> Self {
        let node =
            NodeEntry { id: 1, address: "yes".into(), incarnation: 1, ..NodeEntry::default() };
        let device = |id| DeviceEntry {
            id,
            uuid: vec![0; 16],
            incarnation: 1,
            node: 1,
            state: 0,
            capacity_bytes: 1 << 40,
        };
        let map = ClusterMap {
            format: 1,
            epoch: 1,
            cluster: vec![1; 16],
            bfs: vec![2; 16],
            nodes: vec![node],
            devices: (0..DEVICES).map(device).collect(),
            partitions: vec![
                PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
                64
            ],
            data: 2,
            parity: 1,
            codec: 1,
            region_log2: 26,
            window_ticks: 60,
            deterministic: false,
            ..ClusterMap::default()
        };
        Self { map: map.encode_map() }
    }

    fn body(&self, kind: Kind) -> Vec<u8> {
        match kind {
            Kind::GetMap => {
                meta::encode(&meta::GetMapReply { map: self.map.clone(), ..Default::default() })
            }
            Kind::SessionOpen => {
                meta::encode(&SessionOpenReply { session: 1, tick: 1, lease_ms: 1_000_000_000 })
            }
            Kind::Namespace => {
                let capability = Capability {
                    session: SessionId(1),
                    fid: Fid(1),
                    rights: Rights(3),
                    signature: [0; 16],
                };
                meta::encode(&NamespaceReply {
                    attributes: Some(Attributes { mode: 0o100_644, ..Attributes::default() }),
                    file: Some(FileHandle {
                        capability: (&capability).into(),
                        region_log2: 26,
                        epoch: 1,
                        size: 0,
                        open_id: 1,
                        runs: Vec::new(),
                    }),
                    ..NamespaceReply::default()
                })
            }
            _ => Vec::new(),
        }
    }
}

impl Caller for Yes {
    fn call(&self, _to: &Address, request: Outgoing) -> CallFuture {
        let vitals = Vitals { tick: Tick(1), load: 0, free_mib: 1000 };
        let answer = Answer { body: self.body(request.kind), payload: request.sink, vitals };
        Box::pin(std::future::ready(Ok(answer)))
    }
}
