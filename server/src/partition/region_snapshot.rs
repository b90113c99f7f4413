//! Regions in a snapshot. A fragment names its group by the place of that in the snapshot, a
//! placeholder its prestage likewise: so the bytes do not depend on names that live in memory.

use std::collections::BTreeMap;

use bb_proto::meta::FragmentState;
use bb_proto::{DecodeError, OpId, Reader, Tick, TruncateEpoch, Writer};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::fragment_map::{PgRef, Piece, Place, StageRef};
use super::pg::{Ledger, PgTable};
use super::region::{Intent, Region, Stage};
use super::region_mutation::{ProcessId, Range, RegionId, take_region_log2};
use super::region_table::RegionTable;
use super::table::{Encoded, put_len, put_u8, put_u64, take_bool, take_len, take_u64};

/// A fragment: 20 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct FragmentRecord {
    offset: U64,
    len: U32,
    /// Number of the group in the snapshot, or of the stage in the region.
    reference: U32,
    /// Bits 0 to 2: state, 4 for a placeholder. From bit 3: offset in the group.
    tail: U32,
}

const _: () = assert!(size_of::<FragmentRecord>() == 20);
const PLACEHOLDER: u32 = 4;

impl RegionTable {
    /// Adds the bytes to `out`. Groups are named by their place in the order of `pgs`.
    pub fn encode(&self, pgs: &PgTable, out: &mut Writer) {
        let mut places = BTreeMap::new();
        for (place, (at, _)) in pgs.iter().enumerate() {
            places.insert(at, u32::try_from(place).expect("fewer groups than local names"));
        }
        put_len(out, self.regions.len());
        for (id, region) in &self.regions {
            id.encode(out);
            encode_region(region, &places, out);
        }
        put_len(out, self.dropped.len());
        for (id, tick) in &self.dropped {
            id.encode(out);
            put_u64(out, tick.0);
        }
    }

    /// Takes the table off `reader`; `groups` is the number of groups in the snapshot. What the
    /// fragments name goes to `ledger`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(
        reader: &mut Reader<'_>,
        groups: usize,
        ledger: &mut Ledger,
    ) -> Result<Self, DecodeError> {
        let mut table = Self::default();
        for _ in 0..take_len(reader)? {
            let id = RegionId::decode(reader)?;
            let region = decode_region(reader, groups, ledger)?;
            if region.truncating().is_some() {
                table.truncating.insert(id);
            }
            table.totals.replace(&Default::default(), &region.fragments.counts());
            if table.regions.insert(id, region).is_some() {
                return Err(DecodeError::Field("region twice"));
            }
        }
        for _ in 0..take_len(reader)? {
            let id = RegionId::decode(reader)?;
            table.dropped.insert(id, Tick(take_u64(reader)?));
        }
        Ok(table)
    }
}

fn encode_region(region: &Region, places: &BTreeMap<PgRef, u32>, out: &mut Writer) {
    put_u8(out, region.region_log2);
    put_u64(out, region.epoch.0);
    put_u8(out, u8::from(region.truncating.is_some()));
    put_u64(out, region.truncating.unwrap_or(0));
    put_len(out, region.intents.len());
    for (op, intent) in &region.intents {
        put_u64(out, op.0);
        intent.process.encode(out);
        intent.range.encode(out);
    }
    put_len(out, region.stages.len());
    let mut stages = BTreeMap::new();
    for (number, (op, stage)) in (0_u32..).zip(&region.stages) {
        put_u64(out, op.0);
        stage.process.encode(out);
        stages.insert(stage.local, number);
    }
    put_len(out, region.fragments.pieces(0, u64::MAX).count());
    for piece in region.fragments.pieces(0, u64::MAX) {
        let (reference, tail) = match piece.place {
            Place::Pg { pg, pg_offset, state } => {
                (places[&pg], pg_offset << 3 | u32::try_from(i32::from(state)).unwrap_or(0))
            }
            Place::Placeholder(stage) => (stages[&stage], PLACEHOLDER),
        };
        out.put(&FragmentRecord {
            offset: U64::new(piece.offset),
            len: U32::new(piece.len),
            reference: U32::new(reference),
            tail: U32::new(tail),
        });
    }
}

fn decode_region(
    reader: &mut Reader<'_>,
    groups: usize,
    ledger: &mut Ledger,
) -> Result<Region, DecodeError> {
    let region_log2 = take_region_log2(reader)?;
    let mut region = Region::new(region_log2, TruncateEpoch(take_u64(reader)?));
    let truncating = take_bool(reader)?;
    region.truncating = Some(take_u64(reader)?).filter(|_| truncating);
    for _ in 0..take_len(reader)? {
        let op = OpId(take_u64(reader)?);
        let intent = Intent { process: ProcessId::decode(reader)?, range: Range::decode(reader)? };
        region.intents.insert(op, intent);
    }
    for number in 0..take_len(reader)? {
        let local = StageRef(u32::try_from(number).map_err(|_| DecodeError::Field("stage"))?);
        let op = OpId(take_u64(reader)?);
        region.stages.insert(op, Stage { process: ProcessId::decode(reader)?, local });
    }
    let mut end = 0;
    for _ in 0..take_len(reader)? {
        let piece = decode_piece(reader.take()?, groups, region.stages.len())?;
        if piece.offset < end {
            return Err(DecodeError::Field("fragments overlap"));
        }
        end = piece.end();
        if let Place::Pg { pg, .. } = piece.place {
            ledger.add(pg, piece.len);
        }
        region.fragments.insert(piece);
    }
    Ok(region)
}

fn decode_piece(
    record: &FragmentRecord,
    groups: usize,
    stages: usize,
) -> Result<Piece, DecodeError> {
    let (offset, len) = (record.offset.get(), record.len.get());
    let (reference, tail) = (record.reference.get(), record.tail.get());
    let limit = if tail & 7 == PLACEHOLDER { stages } else { groups };
    if usize::try_from(reference).is_ok_and(|reference| reference >= limit) {
        return Err(DecodeError::Field("reference"));
    }
    if len == 0 || offset.checked_add(u64::from(len)).is_none() {
        return Err(DecodeError::Field("fragment"));
    }
    let place = match tail & 7 {
        PLACEHOLDER => Place::Placeholder(StageRef(reference)),
        state => Place::Pg {
            pg: PgRef(reference),
            pg_offset: tail >> 3,
            state: i32::try_from(state)
                .ok()
                .and_then(|state| FragmentState::try_from(state).ok())
                .ok_or(DecodeError::Field("fragment state"))?,
        },
    };
    Ok(Piece { offset, len, place })
}
