//! A block comes in.
//!
//! The payload is checked first: a block that arrived damaged changes nothing. (At 70 GB/s warm
//! that takes a 256 KiB block 4 us; overlapping it with the write would need the write to be
//! submitted within the turn.) Then data and record go to two devices side by side. The record
//! bears the chunks' checksums, so a restart can tell which of the two was lost.

use std::rc::Rc;

use bb_commitlog::{Append, Lsn, Reservation};
use bb_proto::{Code, Failure, PutBlock, Rights, ServiceClass};
use bb_runtime::Buf;
use futures_util::future::join;

use super::record::{encode_put, put_bytes};
use super::space::Address;
use super::table::{BlockKey, ChunkCrcs, Entry, EntryId, Logs, Standing, State};
use super::{BlockStore, external_tag, log_class};

/// What there is to know under a block's name.
enum Found {
    Nothing,
    /// The same block: a repeated request.
    Same,
    /// Something that will be decided soon.
    Undecided,
}

struct Begun {
    id: EntryId,
    address: Address,
    append: Append,
}

impl BlockStore {
    /// Takes a block. When this returns well, it survives a power cut.
    ///
    /// # Errors
    /// Busy, NoSpace, Corrupt, Denied, SlotAhead, Stale (the block is being freed), DeviceFailed;
    /// Invalid where another block has that name. After any but DeviceFailed nothing has changed.
    pub async fn handle_put(
        self: &Rc<Self>,
        put: PutBlock,
        payload: Buf,
        class: ServiceClass,
    ) -> Result<(), Failure> {
        self.check_alive()?;
        self.check_put(&put, &payload)?;
        let store = self.clone();
        // A task of its own: it runs to its end even if the caller gives up half-way, so that
        // space is never in doubt.
        let task = self.env.rt.spawn(async move { store.put(&put, payload, class).await });
        task.await.unwrap_or_else(|_| Err(Failure::new(Code::Busy, "the server is stopping")))
    }

    fn check_put(&self, put: &PutBlock, payload: &Buf) -> Result<(), Failure> {
        let capability = &put.capability;
        if !capability.rights.allows(Rights::WRITE) {
            return Err(Failure::new(Code::Denied, "the file was not opened for writing"));
        }
        if !capability.rights.allows(Rights::SERVER) && capability.session != put.pg.session {
            return Err(Failure::new(Code::Denied, "the group belongs to another session"));
        }
        let tick = self.env.shared.tick();
        if put.pg.slot > tick {
            let detail = format!("slot {} lies ahead of tick {tick}", put.pg.slot);
            return Err(Failure::new(Code::SlotAhead, detail).with_value(tick.0));
        }
        if payload.len() != put.block_bytes() {
            let detail = format!("{} bytes for a block of {}", payload.len(), put.block_bytes());
            return Err(Failure::new(Code::Invalid, detail));
        }
        if !(payload.as_ptr() as usize).is_multiple_of(bb_runtime::SLAB_BYTES_MIN) {
            return Err(Failure::new(Code::Invalid, "the payload does not begin on a page"));
        }
        if payload.len() >> put.chunk_log2 != put.chunk_crcs.len() {
            return Err(Failure::new(Code::Invalid, "not one checksum per chunk"));
        }
        let crcs = bb_erasure::crc32c_chunks(payload, 1 << put.chunk_log2);
        let wrong = crcs.zip(&put.chunk_crcs).position(|(crc, told)| crc != *told);
        match wrong {
            Some(chunk) => {
                Err(Failure::new(Code::Corrupt, format!("chunk {chunk} does not match its CRC32C")))
            }
            None => Ok(()),
        }
    }

    async fn put(&self, put: &PutBlock, payload: Buf, class: ServiceClass) -> Result<(), Failure> {
        let started = self.env.rt.now();
        let crcs = ChunkCrcs::from(put.chunk_crcs.as_slice());
        let mut room: Option<Reservation> = None;
        let begun = loop {
            self.check_alive()?;
            let settled = self.settled.notified();
            match self.look(put, &crcs)? {
                Found::Same => return Ok(()),
                Found::Undecided => settled.await,
                Found::Nothing => match room.take() {
                    Some(room) => break self.begin(put, crcs, class, room)?,
                    // The name may be taken while we wait: look again afterwards.
                    None => {
                        let sizes = vec![put_bytes(crcs.as_slice().len())];
                        room = Some(self.admit(log_class(class), sizes).await?);
                    }
                },
            }
        };
        let Begun { id, address, append } = begun;
        let lsn = append.lsn;
        let offset = self.offset_of(address, put.block_log2);
        let data = async {
            let written = self.flusher.write(offset, payload).await;
            if written.is_ok() {
                self.data_is_durable(lsn);
            }
            written
        };
        let (written, recorded) = join(data, append.durable).await;
        written.map_err(|error| self.fail_device("writing a block", &error))?;
        recorded.map_err(|error| self.fail_log(&error))?;
        self.state.borrow_mut().table.get_mut(id).state = State::Live;
        self.settled.notify_all();
        self.load.put_took(self.env.rt.now().since(started));
        Ok(())
    }

    fn look(&self, put: &PutBlock, crcs: &ChunkCrcs) -> Result<Found, Failure> {
        let state = self.state.borrow();
        let Some(id) = state.table.find(BlockKey { pg: put.pg, index: put.index }) else {
            return Ok(Found::Nothing);
        };
        let entry = state.table.get(id);
        let same_logs = entry.block_log2 == put.block_log2 && entry.chunk_log2 == put.chunk_log2;
        if !same_logs || entry.crcs != *crcs {
            return Err(Failure::new(Code::Invalid, "another block has this name"));
        }
        match entry.state {
            State::Live => Ok(Found::Same),
            State::Pending => Ok(Found::Undecided),
            // A late repetition: home has given the group up.
            State::Freeing | State::Zombie => {
                Err(Failure::new(Code::Stale, "the block is being freed"))
            }
        }
    }

    /// Takes space and a place in the log, in one step: who sees the block in the table (a
    /// checkpoint) may rely on its record being in the log before.
    fn begin(
        &self,
        put: &PutBlock,
        crcs: ChunkCrcs,
        class: ServiceClass,
        mut room: Reservation,
    ) -> Result<Begun, Failure> {
        let state = &mut *self.state.borrow_mut();
        let may_use_reserve = class <= ServiceClass::Reclaim;
        let Some(address) = state.space.allocate(put.block_log2, may_use_reserve) else {
            if state.space.is_unmapping() {
                return Err(Failure::new(Code::Busy, "the last free space is being unmapped"));
            }
            return Err(Failure::new(Code::NoSpace, "the device is full"));
        };
        let key = BlockKey { pg: put.pg, index: put.index };
        let logs = Logs { block: put.block_log2, chunk: put.chunk_log2 };
        let mut entry = Entry::new(key, address, logs, crcs);
        if put.pg.slot <= state.confirmed_through {
            entry.standing = Standing::UnconfirmedLate;
        }
        let stream = self.stream(state.table.page_of(address.chunk)).id();
        let append = match self.env.log.append(stream, &mut room, &encode_put(&entry)) {
            Ok(append) => append,
            Err(error) => {
                state.space.release(address);
                return Err(self.log_refused(&error));
            }
        };
        entry.lsn = append.lsn;
        let id = state.table.insert(entry);
        state.unconfirmed.insert((put.pg.slot, id));
        state.data_under_way.insert(append.lsn);
        state.data_under_way_max = append.lsn;
        Ok(Begun { id, address, append })
    }

    /// Tells the log how far the device's data is durable, so that a restart checks only what was
    /// put after that (rule 12).
    fn data_is_durable(&self, lsn: Lsn) {
        let state = &mut *self.state.borrow_mut();
        state.data_under_way.remove(&lsn);
        let through = match state.data_under_way.first() {
            Some(first) => Lsn(first.0.saturating_sub(1)),
            None => state.data_under_way_max,
        };
        if let Err(error) =
            self.env.log.note_external_durable(external_tag(&self.superblock), through)
        {
            // The next restart checks more than it would have to; nothing else.
            tracing::warn!(%error, "cannot note in the commit log up to where data is durable");
        }
    }
}
