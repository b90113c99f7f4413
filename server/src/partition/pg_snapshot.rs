//! Parity groups in a snapshot: canonical, in the order of their ids. Byte counts of fragments are
//! not stored: they follow from the regions.

use std::collections::BTreeMap;

use bb_proto::{DecodeError, Fid, PartitionId, PgBody, PgDescriptor, PgId, Reader, Tick, Writer};

use super::pg::{Fate, HomeRecord, Participant, PgTable};
use super::pg_mutation::InlineBytes;
use super::table::{
    Encoded, put_bytes, put_len, put_list, put_u8, put_u32, put_u64, take_bool, take_bytes,
    take_len, take_list, take_u8, take_u32, take_u64,
};

impl Encoded for Participant {
    fn encode(&self, out: &mut Writer) {
        put_u32(out, self.partition.0);
        put_u8(out, u8::from(self.released));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { partition: PartitionId(take_u32(reader)?), released: take_bool(reader)? })
    }
}

impl Encoded for HomeRecord {
    fn encode(&self, out: &mut Writer) {
        put_list(out, &self.participants);
        put_u32(out, self.absent_members);
        put_u32(out, self.freed_members);
        put_u8(out, u8::from(self.dead));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            participants: take_list(reader)?,
            absent_members: take_u32(reader)?,
            freed_members: take_u32(reader)?,
            dead: take_bool(reader)?,
        })
    }
}

impl Encoded for PgTable {
    fn encode(&self, out: &mut Writer) {
        put_u64(out, self.horizon().0);
        put_len(out, self.len());
        for (_, pg) in self.iter() {
            pg.fid.encode(out);
            pg.descriptor.encode(out);
            put_u8(out, u8::from(pg.home.is_some()));
            if let Some(home) = &pg.home {
                home.encode(out);
            }
            put_bytes(out, &pg.inline);
        }
        put_len(out, self.remembered.len());
        for (id, fate) in &self.remembered {
            id.encode(out);
            put_u8(out, *fate as u8);
        }
        put_list(out, &self.owed().collect::<Vec<PgId>>());
    }

    /// Groups get the local names 0, 1, 2, ... in the order of their ids. Live bytes are all zero:
    /// the regions' ledger brings them.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut table = Self::default();
        table.horizon = Tick(take_u64(reader)?);
        for _ in 0..take_len(reader)? {
            let fid = Fid::decode(reader)?;
            let descriptor = PgDescriptor::decode(reader)?;
            let home = take_bool(reader)?.then(|| HomeRecord::decode(reader)).transpose()?;
            let inline = InlineBytes::from(take_bytes(reader)?);
            if !inline.is_empty() && !matches!(descriptor.body, PgBody::Inline { .. }) {
                return Err(DecodeError::Field("inline"));
            }
            if table.index.last_key_value().is_some_and(|(last, _)| *last >= descriptor.pg) {
                return Err(DecodeError::Field("order of groups"));
            }
            let (id, dead) = (descriptor.pg, home.as_ref().is_some_and(|home| home.dead));
            table.insert(fid, descriptor, home, inline);
            if dead {
                table.note_dead(id);
            }
        }
        let mut remembered = BTreeMap::new();
        for _ in 0..take_len(reader)? {
            let id = PgId::decode(reader)?;
            let fate = match take_u8(reader)? {
                1 => Fate::Gone,
                2 => Fate::Cancelled,
                _ => return Err(DecodeError::Field("fate")),
            };
            remembered.insert(id, fate);
        }
        table.remembered = remembered;
        table.owed = take_list(reader)?.into_iter().collect();
        Ok(table)
    }
}
