//! What residency needs of the partitions of this node.

use std::rc::Rc;

use bb_proto::{Code, Failure, Header, PartitionId};

use crate::context::Shared;
use crate::partition::Partition;

/// The partitions of which this node is the primary.
pub trait Partitions {
    /// One of them.
    fn get(&self, id: PartitionId) -> Option<Rc<Partition>>;

    /// All of them, in order.
    fn all(&self) -> Vec<Rc<Partition>>;
}

/// The partition that a request addresses.
pub(super) fn addressed(
    partitions: &dyn Partitions,
    shared: &Shared,
    header: &Header,
) -> Result<Rc<Partition>, Failure> {
    let id = PartitionId(header.target);
    let Some(partition) = partitions.get(id) else {
        return Err(Failure::new(Code::Fenced, format!("partition {id} is not served here")));
    };
    let config = shared.map().config(id);
    if header.fence != config.0 {
        let detail = format!("partition {id} is at configuration {config}");
        return Err(Failure::new(Code::Fenced, detail));
    }
    Ok(partition)
}
