//! A partition at one point, as a checkpoint holds it.
//!
//! ```text
//! offset  bytes  what
//!      0      4  magic "BBPS"
//!      4      4  version, 1
//!      8      8  length of the state
//!     16         the state (canonical), then the logged tail: a count, and each record with its
//!                length before it
//!    end      4  CRC32C of everything before
//! ```

use bb_erasure::crc32c;
use bb_proto::{DecodeError, PartitionId, Reader, Writer};

use super::record::RecordError;
use super::state::PartitionState;
use super::table::{Encoded, put_bytes, put_len, put_u32, put_u64, take_bytes, take_len};
use super::table::{take_u32, take_u64};

const MAGIC: u32 = u32::from_le_bytes(*b"BBPS");
const VERSION: u32 = 1;

/// The bytes of a snapshot.
pub fn encode_snapshot<'a>(
    state: &PartitionState,
    tail: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Vec<u8> {
    let mut body = Writer::default();
    state.encode(&mut body);
    let body = body.finish();
    let mut out = Writer::with_capacity(body.len() + 64);
    put_u32(&mut out, MAGIC);
    put_u32(&mut out, VERSION);
    put_u64(&mut out, body.len() as u64);
    out.put(body.as_slice());
    put_len(&mut out, tail.len());
    for record in tail {
        put_bytes(&mut out, record);
    }
    let mut bytes = out.finish();
    let crc = crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The state and the tail of a snapshot of `partition`.
///
/// # Errors
/// [`RecordError`].
pub fn decode_snapshot(
    partition: PartitionId,
    bytes: &[u8],
) -> Result<(PartitionState, Vec<Vec<u8>>), RecordError> {
    let (bytes, crc) =
        bytes.split_last_chunk::<4>().ok_or(RecordError::Damaged("snapshot too short"))?;
    if crc32c(bytes) != u32::from_le_bytes(*crc) {
        return Err(RecordError::Damaged("snapshot checksum"));
    }
    let mut reader = Reader::new(bytes);
    if take_u32(&mut reader)? != MAGIC {
        return Err(RecordError::Damaged("snapshot magic"));
    }
    let version = take_u32(&mut reader)?;
    if version > VERSION {
        return Err(RecordError::Newer(u8::try_from(version).unwrap_or(u8::MAX)));
    }
    let len = usize::try_from(take_u64(&mut reader)?).map_err(|_| DecodeError::Field("length"))?;
    let mut body = Reader::new(reader.take_bytes(len)?);
    let state = PartitionState::decode(&mut body)?;
    body.finish()?;
    if state.id() != partition {
        return Err(RecordError::Damaged("snapshot of another partition"));
    }
    let mut tail = Vec::new();
    for _ in 0..take_len(&mut reader)? {
        tail.push(take_bytes(&mut reader)?.to_vec());
    }
    reader.finish()?;
    Ok((state, tail))
}
