//! Operations on open files.

use std::rc::Rc;

use super::driver::{Handle, Worker};
use crate::model::fill_pattern;

/// Files stay below this.
const FILE_BYTES: u64 = 3 << 20;
/// Largest transfer.
const TRANSFER_BYTES: u64 = 300 << 10;
/// What begins a record of the file that is appended to.
const RECORD_MAGIC: &[u8; 8] = b"\xF1record\xF2";

impl Worker {
    fn may_write(handle: &Handle) -> bool {
        handle.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// Around the borders of regions, so that groups have participants.
    fn hot_extent(&self) -> (u64, usize) {
        let border = self.draw(3) << 20;
        let offset = (border + 4096 * self.draw(8)).saturating_sub(16_384);
        let len = 4096 * (1 + self.draw(6)) - self.draw(2) * self.draw(4_000);
        (offset, usize::try_from(len).unwrap_or(1))
    }

    fn extent(&self) -> (u64, usize) {
        if self.bench.family.is_hot() {
            return self.hot_extent();
        }
        let len = match self.draw(10) {
            0..=3 => 1 + self.draw(4_000),
            4..=7 => 1 + self.draw(40_000),
            8 => 4096 * (1 + self.draw(16)),
            _ => 1 + self.draw(TRANSFER_BYTES),
        };
        let offset = match self.draw(6) {
            0 => 4096 * self.draw(FILE_BYTES / 4096),
            1 => self.draw(FILE_BYTES),
            2 => (1 << 20) - 1 - self.draw(10_000),
            _ => self.draw(400_000),
        };
        (offset, usize::try_from(len).unwrap_or(1))
    }

    pub(super) async fn write(&self, handle: &Handle) {
        if !Self::may_write(handle) {
            return;
        }
        let (offset, len) = self.extent();
        let (bench, actor) = (&self.bench, self.process.actor);
        let id = bench.model.borrow_mut().begin_write(handle.id, actor, offset, len as u64);
        bench.tick();
        bench.note(|| format!("c{} write f{} {offset}+{len} as {id:?}", actor.0, handle.id));
        let mut data = vec![0; len];
        fill_pattern(id, offset, &mut data);
        match handle.file.pwrite(&data, offset).await {
            Ok(written) if written == len => {
                bench.model.borrow_mut().returned(handle.id, id);
                bench.count("write", "ok");
            }
            Ok(written) => bench.violation(format!("write of {len} bytes: {written}")),
            Err(error) => {
                self.failed("write", &error, bench.names.is_gone(handle.id));
            }
        }
    }

    pub(super) async fn read(&self, handle: &Handle) {
        if handle.flags & libc::O_ACCMODE == libc::O_WRONLY {
            return;
        }
        let (offset, len) = self.extent();
        let (bench, actor) = (&self.bench, self.process.actor);
        let fresh_size = handle.fresh_size;
        let fresh = handle.fresh.get().max(bench.forgotten());
        let begun = bench.tick();
        bench.note(|| format!("c{} read f{} {offset}+{len}", actor.0, handle.id));
        let mut out = vec![0xEE; len];
        match handle.file.pread(&mut out, offset).await {
            Ok(got) => {
                bench.count("read", "ok");
                bench.note(|| format!("c{} read f{} {offset}: {got}", actor.0, handle.id));
                let verdict = {
                    let model = bench.model.borrow();
                    model.check_read(handle.id, actor, fresh, begun, offset, &out[..got]).and_then(
                        |()| match got {
                            got if got == len => Ok(()),
                            0 => model.check_end(handle.id, actor, fresh_size, begun, offset),
                            _ => {
                                let size = offset + got as u64;
                                model.check_size(handle.id, actor, fresh_size, begun, size)
                            }
                        },
                    )
                };
                bench.judge("read", actor, verdict);
            }
            Err(error) => self.failed("read", &error, bench.names.is_gone(handle.id)),
        }
    }

    pub(super) async fn fsync(&self, handle: &Handle) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let before = bench.tick();
        bench.note(|| format!("c{} fsync f{}", actor.0, handle.id));
        match handle.file.fsync().await {
            Ok(()) => {
                bench.count("fsync", "ok");
                bench.note(|| format!("c{} fsync f{} ok", actor.0, handle.id));
                bench.model.borrow_mut().synced(handle.id, actor, before);
                handle.fresh.set(handle.fresh.get().max(before));
            }
            Err(error) => {
                bench.model.borrow_mut().given_up(handle.id, actor);
                self.failed("fsync", &error, bench.names.is_gone(handle.id));
            }
        }
    }

    pub(super) async fn close(&self, handle: Rc<Handle>) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let handle = match Rc::try_unwrap(handle) {
            Ok(handle) => handle,
            Err(handle) => {
                // In use by the other task.
                self.handles.borrow_mut().push(handle);
                return;
            }
        };
        let before = bench.tick();
        bench.note(|| format!("c{} close f{}", actor.0, handle.id));
        let writer = Self::may_write(&handle);
        match handle.file.close().await {
            Ok(()) => {
                bench.count("close", "ok");
                bench.note(|| format!("c{} close f{} ok", actor.0, handle.id));
                if writer {
                    bench.model.borrow_mut().synced(handle.id, actor, before);
                }
            }
            Err(error) => {
                bench.model.borrow_mut().given_up(handle.id, actor);
                self.failed("close", &error, bench.names.is_gone(handle.id));
            }
        }
    }

    pub(super) async fn truncate(&self, handle: &Handle) {
        if !Self::may_write(handle) {
            return;
        }
        let size = if self.draw(3) == 0 { self.draw(FILE_BYTES) } else { self.draw(300_000) };
        let (bench, actor) = (&self.bench, self.process.actor);
        let id = bench.model.borrow_mut().begin_truncate(handle.id, actor, size);
        bench.tick();
        bench.note(|| format!("c{} truncate f{} to {size} as {id:?}", actor.0, handle.id));
        match handle.file.truncate(size).await {
            Ok(()) => {
                bench.note(|| format!("c{} truncate f{} to {size} ok", actor.0, handle.id));
                bench.model.borrow_mut().durable(handle.id, id);
                bench.count("truncate", "ok");
            }
            Err(error) => self.failed("truncate", &error, bench.names.is_gone(handle.id)),
        }
    }

    pub(super) async fn fstat(&self, handle: &Handle) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let asked = bench.tick();
        match handle.file.fstat().await {
            Ok(attributes) => {
                bench.count("fstat", "ok");
                let size = attributes.size;
                bench.note(|| format!("c{} fstat f{}: {size}", actor.0, handle.id));
                let model = bench.model.borrow();
                let verdict = model.check_size(handle.id, actor, asked, asked, size);
                drop(model);
                bench.judge("fstat", actor, verdict);
            }
            Err(error) => self.failed("fstat", &error, bench.names.is_gone(handle.id)),
        }
    }

    /// Appends a record to the file that everybody appends to.
    pub(super) async fn append(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let file = match self.appender().await {
            Ok(file) => file,
            Err(error) => return self.failed("open", &error, false),
        };
        let number = bench.new_file();
        let record = append_record(number, usize::try_from(self.draw(3_000)).unwrap_or(0));
        bench.appended.borrow_mut().insert(number, false);
        bench.note(|| format!("c{} append r{number} {}", actor.0, record.len()));
        let mut result = file.pwrite(&record, 0).await.map(drop);
        if result.is_ok() {
            result = file.fsync().await;
        }
        match result {
            Ok(()) => {
                bench.count("append", "ok");
                bench.appended.borrow_mut().insert(number, true);
            }
            Err(error) => self.failed("append", &error, false),
        }
    }

    async fn appender(&self) -> Result<Rc<bb_client::File>, bb_client::Error> {
        if let Some(file) = &*self.appender.borrow() {
            return Ok(file.clone());
        }
        let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT;
        let file = Rc::new(self.process.client.open(b"/append", flags, 0o644).await?);
        *self.appender.borrow_mut() = Some(file.clone());
        Ok(file)
    }
}

/// A record of the file that is appended to.
pub(super) fn append_record(number: u64, filler: usize) -> Vec<u8> {
    let mut record = RECORD_MAGIC.to_vec();
    record.extend(number.to_le_bytes());
    record.extend((filler as u64).to_le_bytes());
    record.extend(std::iter::repeat_n(0x55, filler));
    record
}

/// How often each record is whole in the file that is appended to.
pub fn appended_records(bytes: &[u8]) -> std::collections::BTreeMap<u64, u32> {
    let mut found = std::collections::BTreeMap::new();
    let word = |at: usize| -> Option<u64> {
        bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
    };
    for at in 0..bytes.len().saturating_sub(7) {
        if &bytes[at..at + 8] != RECORD_MAGIC {
            continue;
        }
        let (Some(number), Some(filler)) = (word(at + 8), word(at + 16)) else { continue };
        let end = usize::try_from(filler).unwrap_or(usize::MAX).saturating_add(at + 24);
        if bytes.get(at + 24..end).is_some_and(|rest| rest.iter().all(|byte| *byte == 0x55)) {
            *found.entry(number).or_default() += 1;
        }
    }
    found
}
