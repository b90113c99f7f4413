//! N = 1: parity blocks are copies.

use std::ops::Range;

use crate::codec::{check_encode, check_reconstruct};
use crate::{Codec, CodecId, ErasureError, Geometry};

/// 1+K copies. A code of its own, because a Cauchy row of one column is a product, not a copy:
/// a reader would have to decode what it could have served.
pub(crate) struct Replication;

impl Replication {
    fn check_geometry(&self, geometry: Geometry) -> Result<(), ErasureError> {
        if geometry.data() == 1 {
            return Ok(());
        }
        Err(ErasureError::GeometryUnsupported { codec: self.name(), geometry })
    }
}

impl Codec for Replication {
    fn id(&self) -> CodecId {
        CodecId::REPLICATION
    }

    fn name(&self) -> &'static str {
        "replication"
    }

    fn encode_columns(
        &self,
        geometry: Geometry,
        data: &[&[u8]],
        parity: &mut [&mut [u8]],
        columns: Range<usize>,
    ) -> Result<(), ErasureError> {
        self.check_geometry(geometry)?;
        check_encode(geometry, data, parity, &columns)?;
        for copy in parity {
            copy[columns.clone()].copy_from_slice(&data[0][columns.clone()]);
        }
        Ok(())
    }

    fn reconstruct(
        &self,
        geometry: Geometry,
        present: &[Option<&[u8]>],
        wanted: &[usize],
        out: &mut [&mut [u8]],
    ) -> Result<(), ErasureError> {
        self.check_geometry(geometry)?;
        let plan = check_reconstruct(geometry, present, wanted, out)?;
        for source in plan.sources().filter_map(|index| present[index]) {
            for copy in out.iter_mut() {
                copy.copy_from_slice(source);
            }
        }
        Ok(())
    }
}
