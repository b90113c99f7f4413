//! From a request to the step that carries it out.

use std::rc::Rc;

use bb_proto::meta::{Done, FreeBlocks, decode, encode};
use bb_proto::{Code, DecodeError, Failure, GetBlock, Kind, MEMBERS_MAX, PutBlock};
use bb_transport::{Incoming, Response};

use super::BlockStore;
use super::table::BlockKey;
use crate::rights::{check_block_read, check_claim, check_server};

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
                check_claim(&self.env.shared, &put.capability, &request.peer)?;
                let payload =
                    request.payload.ok_or_else(|| Failure::new(Code::Invalid, "no payload"))?;
                self.handle_put(put, payload, request.header.class).await?;
                Ok(Response::default())
            }
            Kind::GetBlock => {
                let get = GetBlock::decode(&request.body).map_err(malformed)?;
                check_block_read(&self.env.shared, &get.capability, get.pg, &request.peer)?;
                self.handle_get(&get).await
            }
            Kind::FreeBlocks => {
                // It carries no capability: only home partitions decide.
                check_server(&request.peer)?;
                self.handle_free(names(&decode(&request.body)?)?).await?;
                Ok(Response::body(encode(&Done {})))
            }
            kind => Err(Failure::new(Code::Invalid, format!("{kind:?} is not for a device"))),
        }
    }
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
