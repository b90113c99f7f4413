//! From a request to the step that carries it out.

use std::rc::Rc;

use bb_proto::meta::{Done, FreeBlocks, decode, encode};
use bb_proto::{
    Capability, Code, DecodeError, Failure, GetBlock, Kind, MEMBERS_MAX, PutBlock, Rights,
};
use bb_transport::{Incoming, Response, Role};

use super::BlockStore;
use super::table::BlockKey;

impl BlockStore {
    /// Answers a request that addresses this device.
    ///
    /// # Errors
    /// Fenced, Invalid for what cannot be read or is not for a device, and those of the steps.
    pub async fn serve(self: &Rc<Self>, request: Incoming) -> Result<Response, Failure> {
        self.check_fence(request.header.fence)?;
        match request.header.kind {
            Kind::PutBlock => {
                let put = PutBlock::decode(&request.body).map_err(malformed)?;
                check_server(&put.capability, request.peer.role)?;
                let payload =
                    request.payload.ok_or_else(|| Failure::new(Code::Invalid, "no payload"))?;
                self.handle_put(put, payload, request.header.class).await?;
                Ok(Response::default())
            }
            Kind::GetBlock => {
                let get = GetBlock::decode(&request.body).map_err(malformed)?;
                check_server(&get.capability, request.peer.role)?;
                self.handle_get(&get).await
            }
            Kind::FreeBlocks => {
                // It carries no capability: only home partitions decide.
                if request.peer.role != Role::Server {
                    return Err(Failure::new(Code::Denied, "only servers free blocks"));
                }
                self.handle_free(names(&decode(&request.body)?)?).await?;
                Ok(Response::body(encode(&Done {})))
            }
            kind => Err(Failure::new(Code::Invalid, format!("{kind:?} is not for a device"))),
        }
    }
}

/// Nobody gives itself the rights of a server (rule 17).
fn check_server(capability: &Capability, role: Role) -> Result<(), Failure> {
    if !capability.rights.allows(Rights::SERVER) || role == Role::Server {
        return Ok(());
    }
    Err(Failure::new(Code::Denied, "only servers have the rights of servers"))
}

fn malformed(error: DecodeError) -> Failure {
    Failure::new(Code::Invalid, error.to_string())
}

fn names(free: &FreeBlocks) -> Result<Vec<BlockKey>, Failure> {
    let name = |block: &bb_proto::meta::BlockName| {
        let index = u8::try_from(block.index).ok();
        let index = index.filter(|index| usize::from(*index) < MEMBERS_MAX)?;
        Some(BlockKey { pg: block.pg.into(), index })
    };
    let names: Option<Vec<BlockKey>> = free.blocks.iter().map(name).collect();
    names.ok_or_else(|| Failure::new(Code::Invalid, "an index that no block can have"))
}
