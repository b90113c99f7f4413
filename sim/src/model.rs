//! The model: which bytes a read may return, given what was written, truncated and acknowledged
//! when.
//!
//! Every write is an interval in the order of events: from the call of `pwrite` to the return of
//! the `fsync` or `close` that covered it (never, while there is none). Somewhere in it the write
//! takes effect, for everybody at once. A read may return a byte of write `a` unless some other
//! write `b` of that byte lies wholly after `a` and wholly before the read. That is the whole rule;
//! truncates are writes of zeros without an end, and a new file is one write of zeros before
//! everything.

use std::collections::BTreeMap;

/// A moment in the order in which the test saw things happen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Moment(u64);

/// A write, or a truncate, that the model knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WriteId(u64);

/// A client process (in one life).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Actor(pub u64);

#[derive(Clone, Debug)]
struct Write {
    id: WriteId,
    actor: Actor,
    from: u64,
    /// First offset behind it; `u64::MAX` for truncates.
    to: u64,
    /// Truncates write zeros and set the size.
    truncate: bool,
    begun: Moment,
    /// When `pwrite` returned: from then on its own client must see it.
    returned: Option<Moment>,
    /// When it was acknowledged as durable.
    durable: Option<Moment>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct FileModel {
    writes: Vec<Write>,
    /// Moment at which the file came into being.
    born: Moment,
}

/// The model of all files of a run.
#[derive(Default)]
pub struct Model {
    now: u64,
    next_write: u64,
    files: BTreeMap<u64, FileModel>,
    writes_may_fail: bool,
}

/// Something that must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The file, as the test names it.
    pub file: u64,
    /// Offset of the first wrong byte.
    pub offset: u64,
    /// What is wrong.
    pub text: String,
}

/// The byte that write `id` puts at `offset`: never 0, so that holes can be told from data.
pub fn pattern(id: WriteId, offset: u64) -> u8 {
    let mut value = id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (offset / 8);
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value ^= value >> 27;
    let byte = value.to_le_bytes()[usize::try_from(offset % 8).unwrap_or(0)];
    if byte == 0 { 0xA5 } else { byte }
}

/// Fills `bytes`, which begin at `offset`, with the [`pattern`] of `id`.
pub fn fill_pattern(id: WriteId, offset: u64, bytes: &mut [u8]) {
    for (at, byte) in (offset..).zip(bytes) {
        *byte = pattern(id, at);
    }
}

impl Model {
    /// A model in which what a client wrote may be given up before it is durable, because space is
    /// short: until then not even its writer must see it.
    pub fn with_writes_that_fail() -> Self {
        Self { writes_may_fail: true, ..Self::default() }
    }

    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        Moment(self.now)
    }

    /// A new, empty file.
    pub fn create(&mut self, file: u64) {
        let born = self.tick();
        self.files.insert(file, FileModel { writes: Vec::new(), born });
    }

    /// The file is gone.
    pub fn remove(&mut self, file: u64) {
        self.files.remove(&file);
    }

    /// All files that exist.
    pub fn files(&self) -> Vec<u64> {
        self.files.keys().copied().collect()
    }

    /// A write begins; the caller writes [`pattern`] of the id at each offset.
    pub fn begin_write(&mut self, file: u64, actor: Actor, offset: u64, len: u64) -> WriteId {
        self.begin(file, actor, offset, offset.saturating_add(len), false)
    }

    /// A truncate begins.
    pub fn begin_truncate(&mut self, file: u64, actor: Actor, size: u64) -> WriteId {
        self.begin(file, actor, size, u64::MAX, true)
    }

    fn begin(&mut self, file: u64, actor: Actor, from: u64, to: u64, truncate: bool) -> WriteId {
        let begun = self.tick();
        self.next_write += 1;
        let id = WriteId(self.next_write);
        let write = Write { id, actor, from, to, truncate, begun, returned: None, durable: None };
        if let Some(model) = self.files.get_mut(&file) {
            model.writes.push(write);
        }
        id
    }

    /// The write's call returned without an error: its client reads it from now on.
    pub fn returned(&mut self, file: u64, id: WriteId) {
        let now = self.tick();
        self.with(file, id, |write| write.returned = Some(now));
    }

    /// The write was acknowledged as durable.
    pub fn durable(&mut self, file: u64, id: WriteId) {
        let now = self.tick();
        self.with(file, id, |write| {
            write.returned.get_or_insert(now);
            write.durable = Some(now);
        });
    }

    /// All writes of `actor` that began before `before` and had returned are durable: its fsync or
    /// close said so.
    pub fn synced(&mut self, file: u64, actor: Actor, before: Moment) {
        let now = self.tick();
        let Some(model) = self.files.get_mut(&file) else { return };
        for write in &mut model.writes {
            let covered = write.actor == actor && write.returned.is_some_and(|at| at < before);
            if covered && write.durable.is_none() {
                write.durable = Some(now);
            }
        }
        model.prune(now);
    }

    /// Writes of `actor` that are not durable yet were given up: an error was reported. They may
    /// have taken effect, may still, or never will.
    pub fn given_up(&mut self, file: u64, actor: Actor) {
        let Some(model) = self.files.get_mut(&file) else { return };
        for write in &mut model.writes {
            if write.actor == actor && write.durable.is_none() {
                write.returned = None;
            }
        }
    }

    /// True if nothing was written or truncated since `moment`, and everything before is durable.
    pub fn is_quiet_since(&self, file: u64, moment: Moment) -> bool {
        self.files.get(&file).is_some_and(|model| {
            model.writes.iter().all(|write| write.durable.is_some_and(|at| at < moment))
        })
    }

    fn with(&mut self, file: u64, id: WriteId, change: impl FnOnce(&mut Write)) {
        if let Some(model) = self.files.get_mut(&file)
            && let Some(write) = model.writes.iter_mut().rev().find(|w| w.id == id)
        {
            change(write);
        }
    }

    /// Checks what a read returned. `fresh_since` is when the reader last dropped its caches (open
    /// or fsync); what others made durable before then it must see. Returns the bytes that must be
    /// there for certain, for statistics.
    ///
    /// # Errors
    /// The first byte that no permitted write explains.
    pub fn check_read(
        &self,
        file: u64,
        reader: Actor,
        fresh_since: Moment,
        read_begun: Moment,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), Violation> {
        let Some(model) = self.files.get(&file) else { return Ok(()) };
        let end = offset + bytes.len() as u64;
        let mut cuts: Vec<u64> = vec![offset, end];
        for write in &model.writes {
            cuts.extend([write.from, write.to].iter().filter(|c| **c > offset && **c < end));
        }
        cuts.sort_unstable();
        cuts.dedup();
        for pair in cuts.windows(2) {
            let reader_sees = if self.writes_may_fail { NOBODY } else { reader };
            let candidates = model.candidates(reader_sees, fresh_since, read_begun, pair[0]);
            let piece = &bytes[index(pair[0] - offset)..index(pair[1] - offset)];
            if candidates.iter().any(|c| c.explains(pair[0], piece)) {
                continue;
            }
            for at in pair[0]..pair[1] {
                let byte = bytes[usize::try_from(at - offset).unwrap_or(usize::MAX)];
                let explained = candidates.iter().any(|c| match c {
                    Candidate::Zero => byte == 0,
                    Candidate::Write(id) => byte == pattern(*id, at),
                });
                if !explained {
                    let text = format!(
                        "byte {byte:#04x} is explained by none of {candidates:?}; writes here: {}",
                        model.describe(at)
                    );
                    return Err(Violation { file, offset: at, text });
                }
            }
        }
        Ok(())
    }

    /// Checks that a file may end at or before `end`: a read there returned nothing.
    ///
    /// # Errors
    /// When more is durable.
    pub fn check_end(
        &self,
        file: u64,
        reader: Actor,
        fresh_since: Moment,
        asked: Moment,
        end: u64,
    ) -> Result<(), Violation> {
        let Some(model) = self.files.get(&file) else { return Ok(()) };
        let reader = if self.writes_may_fail { NOBODY } else { reader };
        let (least, _) = model.size_bounds(reader, fresh_since, asked);
        if least <= end {
            return Ok(());
        }
        let text = format!("nothing at {end}, and the size is at least {least}");
        Err(Violation { file, offset: end, text })
    }

    /// Checks a size that `stat` or a read to the end showed.
    ///
    /// # Errors
    /// When it is smaller than what is durable, or larger than anything written.
    pub fn check_size(
        &self,
        file: u64,
        reader: Actor,
        fresh_since: Moment,
        asked: Moment,
        size: u64,
    ) -> Result<(), Violation> {
        let Some(model) = self.files.get(&file) else { return Ok(()) };
        let reader = if self.writes_may_fail { NOBODY } else { reader };
        let (least, most) = model.size_bounds(reader, fresh_since, asked);
        if (least..=most).contains(&size) {
            return Ok(());
        }
        let text = format!("size {size} is not within {least}..={most}: {}", model.describe_all());
        Err(Violation { file, offset: size, text })
    }
}

/// No client is numbered like this.
const NOBODY: Actor = Actor(u64::MAX);

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Candidate {
    Zero,
    Write(WriteId),
}

impl Candidate {
    fn explains(self, offset: u64, bytes: &[u8]) -> bool {
        match self {
            Self::Zero => bytes.iter().all(|byte| *byte == 0),
            Self::Write(id) => (offset..).zip(bytes).all(|(at, byte)| *byte == pattern(id, at)),
        }
    }
}

impl Write {
    fn covers(&self, offset: u64) -> bool {
        self.from <= offset && offset < self.to
    }

    /// When the write is over for `reader`: its own client sees it at once.
    fn over(&self, reader: Actor, fresh_since: Moment, read_begun: Moment) -> bool {
        let own = self.actor == reader && self.returned.is_some_and(|at| at < read_begun);
        own || self.durable.is_some_and(|at| at < fresh_since)
    }
}

impl FileModel {
    fn candidates(
        &self,
        reader: Actor,
        fresh_since: Moment,
        read_begun: Moment,
        offset: u64,
    ) -> Vec<Candidate> {
        let here: Vec<&Write> = self.writes.iter().filter(|w| w.covers(offset)).collect();
        let over: Vec<&&Write> =
            here.iter().filter(|w| w.over(reader, fresh_since, read_begun)).collect();
        let hidden = |a: &Write| {
            over.iter().any(|b| {
                b.id != a.id
                    && (a.durable.is_some_and(|end| end < b.begun)
                        // One client's own writes take effect in the order in which it made them.
                        || a.actor == b.actor && a.returned.is_some_and(|end| end < b.begun))
            })
        };
        let mut candidates: Vec<Candidate> = here
            .iter()
            .filter(|w| !hidden(w))
            .map(|w| if w.truncate { Candidate::Zero } else { Candidate::Write(w.id) })
            .collect();
        if over.is_empty() {
            candidates.push(Candidate::Zero);
        }
        candidates
    }

    fn size_bounds(&self, reader: Actor, fresh_since: Moment, asked: Moment) -> (u64, u64) {
        let over = |w: &Write| w.over(reader, fresh_since, asked);
        // A write counts for the lower bound if no truncate can lie behind it.
        let least = self
            .writes
            .iter()
            .filter(|w| over(w))
            .filter(|w| {
                !self.writes.iter().any(|t| {
                    let before = t.durable.is_some_and(|end| end < w.begun)
                        || t.actor == w.actor && t.returned.is_some_and(|end| end < w.begun);
                    t.truncate && t.id != w.id && !before
                })
            })
            .map(|w| if w.truncate { w.from } else { w.to })
            .max()
            .unwrap_or(0);
        // A write counts for the upper bound unless a truncate lies wholly behind it.
        let most = self
            .writes
            .iter()
            .filter(|w| {
                !self.writes.iter().any(|t| {
                    let behind = w.durable.is_some_and(|end| end < t.begun)
                        || t.actor == w.actor && w.returned.is_some_and(|end| end < t.begun);
                    t.truncate && t.id != w.id && over(t) && behind
                })
            })
            .map(|w| if w.truncate { w.from } else { w.to })
            .max()
            .unwrap_or(0);
        (least, most)
    }

    /// Forgets writes that no read can return any more, so that checks stay fast.
    fn prune(&mut self, now: Moment) {
        if self.writes.len() < 64 {
            return;
        }
        let cover: Vec<(u64, u64, Moment)> = self
            .writes
            .iter()
            .filter(|w| !w.truncate && w.durable.is_some_and(|at| at < now))
            .map(|w| (w.from, w.to, w.begun))
            .collect();
        let horizon = Moment(now.0.saturating_sub(4_000));
        self.writes.retain(|w| {
            let covered = cover.iter().any(|(from, to, begun)| {
                *from <= w.from
                    && w.to <= *to
                    && w.durable.is_some_and(|end| end < *begun)
                    && *begun < horizon
            });
            w.truncate || !covered
        });
    }

    fn describe(&self, offset: u64) -> String {
        let lines: Vec<String> =
            self.writes.iter().filter(|w| w.covers(offset)).map(|w| format!("{w:?}")).collect();
        format!("born {:?}; {}", self.born, lines.join("; "))
    }

    fn describe_all(&self) -> String {
        let lines: Vec<String> = self.writes.iter().map(|w| format!("{w:?}")).collect();
        lines.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Actor = Actor(1);
    const B: Actor = Actor(2);

    fn read(model: &mut Model, reader: Actor, byte_of: Option<WriteId>) -> Result<(), Violation> {
        let now = model.tick();
        let bytes: Vec<u8> = (0..16).map(|at| byte_of.map_or(0, |id| pattern(id, at))).collect();
        model.check_read(1, reader, now, now, 0, &bytes)
    }

    #[test]
    fn what_was_acknowledged_must_be_read() {
        let mut model = Model::default();
        model.create(1);
        let write = model.begin_write(1, A, 0, 16);
        model.returned(1, write);
        assert!(read(&mut model, B, None).is_ok(), "not durable yet");
        assert!(read(&mut model, B, Some(write)).is_ok(), "may be there already");
        assert!(read(&mut model, A, None).is_err(), "its writer sees it");
        let before = model.tick();
        model.synced(1, A, before);
        assert!(read(&mut model, B, None).is_err());
        assert!(read(&mut model, B, Some(write)).is_ok());
    }

    #[test]
    fn an_overwritten_byte_must_not_come_back() {
        let mut model = Model::default();
        model.create(1);
        let old = model.begin_write(1, A, 0, 16);
        model.durable(1, old);
        let new = model.begin_write(1, B, 0, 16);
        assert!(read(&mut model, A, Some(old)).is_ok(), "the new one is under way");
        model.durable(1, new);
        assert!(read(&mut model, A, Some(old)).is_err());
        assert!(read(&mut model, A, Some(new)).is_ok());
    }

    #[test]
    fn concurrent_writes_may_win_either_way_and_strange_bytes_never() {
        let mut model = Model::default();
        model.create(1);
        let a = model.begin_write(1, A, 0, 16);
        let b = model.begin_write(1, B, 0, 16);
        model.durable(1, a);
        model.durable(1, b);
        assert!(read(&mut model, A, Some(a)).is_ok());
        assert!(read(&mut model, A, Some(b)).is_ok());
        assert!(read(&mut model, A, Some(WriteId(99))).is_err());
    }

    #[test]
    fn a_truncate_hides_what_was_before_and_bounds_the_size() {
        let mut model = Model::default();
        model.create(1);
        let write = model.begin_write(1, A, 0, 16);
        model.durable(1, write);
        let cut = model.begin_truncate(1, B, 4);
        let now = model.tick();
        assert!(model.check_size(1, A, now, now, 16).is_ok(), "under way");
        model.durable(1, cut);
        let now = model.tick();
        assert!(model.check_size(1, A, now, now, 16).is_err());
        assert!(model.check_size(1, A, now, now, 4).is_ok());
        assert!(read(&mut model, A, Some(write)).is_err(), "bytes past the cut are zeros");
    }
}
