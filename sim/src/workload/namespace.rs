//! Operations on names.

use std::cell::Cell;
use std::rc::Rc;

use super::driver::{Handle, Worker};
use super::names::NameGuard;
use crate::bfs::BfsFault;

impl Worker {
    fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[usize::try_from(self.draw(from.len() as u64)).unwrap_or(0)]
    }

    pub(super) async fn change_names(&self) {
        match self.draw(100) {
            0..=29 => self.open_some().await,
            30..=44 => self.stat().await,
            45..=56 => self.unlink().await,
            57..=71 => self.rename().await,
            72..=81 => self.mkdir().await,
            82..=90 => self.rmdir().await,
            _ => self.readdir().await,
        }
    }

    /// Opens what a name leads to, creates it where there is nothing.
    pub(super) async fn open_some(&self) {
        let slot = self.pick(&self.bench.names.of(self.place));
        let known = self.bench.names.get(slot);
        let flags = match self.draw(8) {
            0 => libc::O_RDONLY,
            1 => libc::O_WRONLY,
            _ => libc::O_RDWR,
        };
        match known.file {
            Some(id) if self.draw(12) == 0 => self.open_exclusively(slot, &known.path, id).await,
            Some(id) => {
                let Some(guard) = self.bench.names.share(slot) else { return };
                let truncates = flags != libc::O_RDONLY && self.draw(12) == 0;
                let more = if truncates { libc::O_TRUNC } else { 0 };
                self.open_existing(guard, &known.path, id, flags | more).await;
            }
            None => {
                let Some(guard) = self.bench.names.take(&[slot]) else { return };
                self.create(guard, slot, &known.path).await;
            }
        }
    }

    async fn open_existing(&self, guard: NameGuard, path: &str, id: u64, flags: i32) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let cut = (flags & libc::O_TRUNC != 0)
            .then(|| bench.model.borrow_mut().begin_truncate(id, actor, 0));
        let fresh = bench.tick();
        // O_CREAT on what exists changes nothing.
        let create = if self.draw(3) == 0 { libc::O_CREAT } else { 0 };
        let guard = if create == 0 { guard } else { guard.may_make() };
        bench.note(|| format!("c{} open {path} (f{id}) {flags:#o} as {cut:?}", actor.0));
        match self.process.client.open(path.as_bytes(), flags | create, 0o644).await {
            Ok(file) => {
                bench.count("open", "ok");
                bench.note(|| format!("c{} open {path} (f{id}) ok: {}", actor.0, file.fid()));
                if let Some(cut) = cut {
                    bench.model.borrow_mut().durable(id, cut);
                }
                self.keep(id, file, flags, fresh);
                guard.done();
            }
            Err(error) => {
                self.failed("open", &error, false);
                if create == 0 {
                    guard.done();
                }
            }
        }
    }

    fn keep(&self, id: u64, file: bb_client::File, flags: i32, fresh: crate::model::Moment) {
        let handle = Handle { id, file, flags, fresh: Cell::new(fresh), fresh_size: fresh };
        self.handles.borrow_mut().push(Rc::new(handle));
    }

    async fn create(&self, guard: NameGuard, slot: usize, path: &str) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let exclusive = if self.draw(2) == 0 { libc::O_EXCL } else { 0 };
        let flags = libc::O_RDWR | libc::O_CREAT | exclusive;
        let id = bench.new_file();
        bench.model.borrow_mut().create(id);
        let fresh = bench.tick();
        bench.note(|| format!("c{} create {path} as f{id} {flags:#o}", actor.0));
        match self.process.client.open(path.as_bytes(), flags, 0o644).await {
            Ok(file) => {
                bench.count("create", "ok");
                bench.note(|| format!("c{} create {path} as f{id} ok: {}", actor.0, file.fid()));
                bench.names.set(slot, Some(id));
                self.keep(id, file, flags, fresh);
                guard.done();
            }
            Err(error) => self.failed("create", &error, false),
        }
    }

    async fn open_exclusively(&self, slot: usize, path: &str, id: u64) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let Some(guard) = bench.names.share(slot) else { return };
        bench.note(|| format!("c{} create {path} (f{id}) exclusively", actor.0));
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        // A look that missed the file, and an answer that nobody heard: then the file, new and empty
        // as it may be, looks like our own work.
        let missed = || bench.world.bfs.has_met(BfsFault::Race, self.begun());
        match self.process.client.open(path.as_bytes(), flags, 0o644).await {
            Ok(_) if missed() => bench.count("create", "missed"),
            Ok(_) => bench.violation(format!("an exclusive create of {path} met no file")),
            Err(error) if error.errno() == libc::EEXIST => bench.count("create", "EEXIST"),
            Err(error) => self.failed("create", &error, false),
        }
        guard.done();
    }

    async fn stat(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let slot = self.pick(&bench.names.of(self.place));
        let Some(guard) = bench.names.share(slot) else { return };
        let known = bench.names.get(slot);
        let asked = bench.tick();
        match (self.process.client.stat(known.path.as_bytes()).await, known.file) {
            (Ok(attributes), Some(id)) => {
                bench.count("stat", "ok");
                bench.note(|| {
                    format!("c{} stat {} (f{id}): {}", actor.0, known.path, attributes.size)
                });
                let model = bench.model.borrow();
                let verdict = model.check_size(id, actor, asked, asked, attributes.size);
                drop(model);
                bench.judge("stat", actor, verdict);
            }
            (Ok(_), None) => bench.violation(format!("stat of {} found a file", known.path)),
            (Err(error), None) if error.errno() == libc::ENOENT => bench.count("stat", "ENOENT"),
            (Err(error), _) => self.failed("stat", &error, false),
        }
        guard.done();
    }

    async fn unlink(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let slot = self.pick(&bench.names.of(self.place));
        let Some(guard) = bench.names.take(&[slot]) else { return };
        let known = bench.names.get(slot);
        bench.note(|| format!("c{} unlink {} ({:?})", actor.0, known.path, known.file));
        if let Some(id) = known.file {
            bench.names.lose(id);
        }
        match (self.process.client.unlink(known.path.as_bytes()).await, known.file) {
            (Ok(()), Some(_)) => {
                bench.count("unlink", "ok");
                bench.names.set(slot, None);
                guard.done();
            }
            (Ok(()), None) => bench.violation(format!("unlink of {} met a file", known.path)),
            (Err(error), None) if error.errno() == libc::ENOENT => {
                bench.count("unlink", "ENOENT");
                guard.done();
            }
            (Err(error), _) => self.failed("unlink", &error, false),
        }
    }

    async fn rename(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let mine = bench.names.of(self.place);
        let (from, to) = (self.pick(&mine), self.pick(&mine));
        if from == to {
            return;
        }
        let (a, b) = (bench.names.get(from), bench.names.get(to));
        if a.owner != b.owner {
            return;
        }
        let Some(guard) = bench.names.take(&[from, to]) else { return };
        let keep = self.draw(4) == 0;
        let flags = if keep { libc::RENAME_NOREPLACE } else { 0 };
        bench.note(|| {
            let (x, y) = (a.file, b.file);
            format!("c{} rename {} ({x:?}) to {} ({y:?}) keep {keep}", actor.0, a.path, b.path)
        });
        if let (Some(_), Some(victim), false) = (a.file, b.file, keep) {
            bench.names.lose(victim);
        }
        let client = &self.process.client;
        let result = client.rename(a.path.as_bytes(), b.path.as_bytes(), flags).await;
        bench.note(|| format!("c{} rename {} ended: {result:?}", actor.0, a.path));
        match result {
            Ok(()) if a.file.is_some() && !(keep && b.file.is_some()) => {
                bench.count("rename", "ok");
                bench.names.set(to, a.file);
                bench.names.set(from, None);
                guard.done();
            }
            Ok(()) => bench.violation(format!("rename {} to {} succeeded", a.path, b.path)),
            Err(error) if error.errno() == libc::ENOENT && a.file.is_none() => {
                bench.count("rename", "ENOENT");
                guard.done();
            }
            Err(error) if error.errno() == libc::EEXIST && keep && b.file.is_some() => {
                bench.count("rename", "EEXIST");
                guard.done();
            }
            Err(error) => self.failed("rename", &error, false),
        }
    }

    async fn mkdir(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let slot = self.pick(&bench.dirs.of(self.place));
        let Some(guard) = bench.dirs.take(&[slot]) else { return };
        let known = bench.dirs.get(slot);
        bench.note(|| format!("c{} mkdir {} ({:?})", actor.0, known.path, known.file));
        match (self.process.client.mkdir(known.path.as_bytes(), 0o755).await, known.file) {
            (Ok(()), None) => {
                bench.count("mkdir", "ok");
                bench.dirs.set(slot, Some(0));
                guard.done();
            }
            (Ok(()), Some(_)) => bench.violation(format!("mkdir {} succeeded twice", known.path)),
            (Err(error), Some(_)) if error.errno() == libc::EEXIST => {
                bench.count("mkdir", "EEXIST");
                guard.done();
            }
            (Err(error), _) => self.failed("mkdir", &error, false),
        }
    }

    async fn rmdir(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let slot = self.pick(&bench.dirs.of(self.place));
        let Some(guard) = bench.dirs.take(&[slot]) else { return };
        let known = bench.dirs.get(slot);
        bench.note(|| format!("c{} rmdir {} ({:?})", actor.0, known.path, known.file));
        match (self.process.client.rmdir(known.path.as_bytes()).await, known.file) {
            (Ok(()), Some(_)) => {
                bench.count("rmdir", "ok");
                bench.dirs.set(slot, None);
                guard.done();
            }
            (Ok(()), None) => bench.violation(format!("rmdir {} succeeded twice", known.path)),
            (Err(error), None) if error.errno() == libc::ENOENT => {
                bench.count("rmdir", "ENOENT");
                guard.done();
            }
            (Err(error), _) => self.failed("rmdir", &error, false),
        }
    }

    /// Every name that nobody touched meanwhile is listed, or not, as it should be.
    async fn readdir(&self) {
        let (bench, actor) = (&self.bench, self.process.actor);
        let known = |all: &super::Names| -> Vec<super::Slot> {
            (0..all.len()).map(|at| all.get(at)).collect()
        };
        let outages = || bench.world.tally.borrow().unmounts;
        let (before, outages_before) = ((known(&bench.names), known(&bench.dirs)), outages());
        let entries = match self.process.client.readdir(b"/").await {
            Ok(entries) => entries,
            Err(error) => return self.failed("readdir", &error, false),
        };
        bench.count("readdir", "ok");
        let came_back = bench.world.bfs.has_met(BfsFault::CameBack, self.begun());
        if came_back || outages() != outages_before {
            // It may have been away for the listing and back for the check.
            return;
        }
        let after = (known(&bench.names), known(&bench.dirs));
        let pairs = before.0.iter().zip(&after.0).chain(before.1.iter().zip(&after.1));
        for (old, new) in pairs {
            // A name that is being changed has a version of its own.
            let listed = entries.iter().any(|e| e.name == old.path.as_bytes()[1..]);
            if old.version == new.version
                && !old.is_taken()
                && old.path == new.path
                && listed != new.file.is_some()
            {
                bench.violation(format!(
                    "readdir by client {}: {} listed: {listed}, known: {:?}",
                    actor.0, new.path, new.file
                ));
                return;
            }
        }
    }
}
