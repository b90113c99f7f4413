//! The vocabulary that all parts of Burstbay share: ids, units, errors, frames and messages.
//!
//! `docs/protocol.md` describes what is here for people who write another implementation.

mod block;
pub mod cluster;
mod commit;
mod error;
mod frame;
mod ids;
pub mod meta;
mod wire;

pub use block::{Capability, GetBlock, GetBlockReply, PutBlock, Rights, block_bytes_for};
pub use commit::{
    Commit, FRAGMENTS_MAX, Fragment, Member, PG_DATA_BYTES_MAX, PgBody, PgDescriptor,
};
pub use error::{Code, Failure};
pub use frame::{
    BODY_BYTES_MAX, FLAG_ERROR, FLAG_REPLY, FrameError, HEADER_BYTES, Header, Kind,
    PAYLOAD_BYTES_MAX, ServiceClass, frame_crc,
};
pub use ids::{
    ClientSequence, ConfigNumber, DeviceId, Epoch, Fid, Incarnation, MEMBERS_MAX, NodeId, OpId,
    PartitionId, PgId, RegionIndex, SessionId, Tick, TruncateEpoch, partition_of,
    partition_of_session,
};
pub use wire::{DecodeError, Reader, Writer};
