//! Fragment maps as fetched, kept for at most a second.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{Capability, Fragment, PgDescriptor, PgId};
use bb_runtime::Instant;

/// A map is fetched for aligned pieces of a file of this size: a sequential reader asks once per
/// piece, and a piece of 4 KiB fragments is an answer of some 50 KiB.
pub(crate) const PAGE_BYTES: u64 = 4 << 20;

/// Pages of one file that are kept at the most.
const PAGES_MAX: usize = 64;

/// A group as a fragment map names it.
pub(crate) struct Granted {
    pub descriptor: PgDescriptor,
    /// What permits to read its blocks, where users are proven.
    pub permission: Option<[u8; 16]>,
}

impl std::ops::Deref for Granted {
    type Target = PgDescriptor;

    fn deref(&self) -> &PgDescriptor {
        &self.descriptor
    }
}

impl Granted {
    /// What requests for the group's blocks carry.
    pub fn capability(&self, file: &Capability) -> Capability {
        Capability { signature: self.permission.unwrap_or(file.signature), ..*file }
    }
}

/// What a partition said of a piece of a file.
pub(crate) struct MapPage {
    pub range: Range<u64>,
    /// Sorted by offset, with the group that each lies in.
    pub fragments: Vec<(Fragment, Rc<Granted>)>,
    /// Uncovered bytes from here on are zeros.
    pub zeros_from: u64,
    pub fetched: Instant,
}

/// Pages by their start.
#[derive(Default)]
pub(crate) struct MapPages {
    pages: BTreeMap<u64, Rc<MapPage>>,
    /// Rises when what is under way must not be kept: its answer may be older than a commit.
    generation: u64,
}

impl MapPages {
    pub fn get(&self, start: u64, now: Instant, age_max: Duration) -> Option<Rc<MapPage>> {
        let page = self.pages.get(&start)?;
        (now.since(page.fetched) < age_max).then(|| page.clone())
    }

    pub const fn generation(&self) -> u64 {
        self.generation
    }

    pub fn put(&mut self, page: &Rc<MapPage>, generation: u64) {
        if generation != self.generation {
            return;
        }
        if self.pages.len() >= PAGES_MAX {
            self.pages.pop_first();
        }
        self.pages.insert(page.range.start, page.clone());
    }

    /// The group that the same session wrote next, as far as these pages name it.
    pub fn group_after(&self, pg: PgId) -> Option<Rc<Granted>> {
        let groups = self.pages.values().flat_map(|page| &page.fragments).map(|(_, group)| group);
        let later = |group: &&Rc<Granted>| is_later(group.pg, pg);
        groups.filter(later).min_by_key(|group| group.pg.sequence).cloned()
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        self.generation += 1;
        self.pages.clear();
    }
}

/// True if `pg` was sealed after `before` by the same session.
pub(crate) fn is_later(pg: PgId, before: PgId) -> bool {
    pg.session == before.session && pg.sequence > before.sequence
}
