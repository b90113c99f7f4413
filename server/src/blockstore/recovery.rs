//! After a start: what the log says, checked against what the device holds where the two may
//! differ (rule 12).
//!
//! A put's record and its data go to two devices side by side, so the log may know of a block
//! whose data never arrived, or only in part. The log also keeps up to which record all data was
//! durable: only blocks put after that are read and checked, not terabytes. One whose data does not
//! match was never acknowledged; it is freed, in the log too. Then the device is flushed: what a
//! killed process had written may have been read from a cache, and a client that repeats its put is
//! told "done" without another write.

use std::collections::BTreeSet;
use std::rc::Rc;

use bb_commitlog::Lsn;
use bb_nvme::{DeviceError, DeviceRef};
use bb_runtime::BufPool;
use futures_util::StreamExt;
use rustc_hash::FxHashMap;

use super::error::{OpenError, ReplayFault};
use super::record::{DEVICE_PAGE, PageRecord, decode_confirmed, decode_page, decode_record};
use super::space::{CHUNK_BYTES, Space};
use super::superblock::Superblock;
use super::table::{BlockKey, Entry, Standing, Table};
use super::{BlockStore, Config, Env, State, external_tag};
use crate::planted::{self, Planted};
use bb_proto::Tick;

/// Takes what the log holds of one device.
pub struct Recovery {
    superblock: Superblock,
    /// By page: the log may deliver records of one page late, while it waits for the end of a
    /// snapshot, so until all is there a block may seem to lie in two pages.
    pages: Vec<FxHashMap<BlockKey, Entry>>,
    confirmed_through: Tick,
}

/// How far recovery is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryProgress {
    /// Blocks to check.
    pub blocks_total: usize,
    /// Blocks checked.
    pub blocks_done: usize,
}

/// What recovery found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// Blocks that the log knows.
    pub blocks: usize,
    /// Those whose data was read and checked.
    pub checked: usize,
    /// Bytes of those.
    pub checked_bytes: u64,
    /// Those that were not whole and were freed.
    pub torn: usize,
    /// Those that could not be read; readers will reconstruct them.
    pub unreadable: usize,
}

struct Suspect {
    key: BlockKey,
    offset: u64,
    len: usize,
    chunk_log2: u8,
    crcs: super::table::ChunkCrcs,
}

enum Finding {
    Whole,
    Torn,
    Unreadable(DeviceError),
}

impl Recovery {
    /// For a device whose superblock was read and checked.
    pub fn new(superblock: Superblock) -> Self {
        let pages = (0..superblock.pages()).map(|_| FxHashMap::default()).collect();
        Self { superblock, pages, confirmed_through: Tick(0) }
    }

    fn page(&mut self, page: u32) -> Result<&mut FxHashMap<BlockKey, Entry>, ReplayFault> {
        self.pages.get_mut(page as usize).ok_or(ReplayFault::Page(page))
    }

    /// A snapshot of a page: it replaces what came before.
    ///
    /// # Errors
    /// [`ReplayFault`]: the log cannot be trusted.
    pub fn snapshot(&mut self, page: u32, bytes: &[u8]) -> Result<(), ReplayFault> {
        if page == DEVICE_PAGE {
            self.confirmed_through = decode_confirmed(bytes)?;
            return Ok(());
        }
        self.page(page)?.clear();
        for entry in decode_page(bytes)? {
            self.add(page, entry)?;
        }
        Ok(())
    }

    /// A record of a page.
    ///
    /// # Errors
    /// [`ReplayFault`]: the log cannot be trusted.
    pub fn record(&mut self, page: u32, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayFault> {
        if page == DEVICE_PAGE {
            self.confirmed_through = decode_confirmed(bytes)?;
            return Ok(());
        }
        match decode_record(bytes)? {
            PageRecord::Put(mut entry) => {
                entry.lsn = lsn;
                self.add(page, entry)
            }
            PageRecord::Free(keys) => {
                let blocks = self.page(page)?;
                for key in keys {
                    blocks.remove(&key);
                }
                Ok(())
            }
        }
    }

    /// The page's stream holds nothing any more.
    ///
    /// # Errors
    /// [`ReplayFault`]: the log cannot be trusted.
    pub fn retired(&mut self, page: u32) -> Result<(), ReplayFault> {
        if page == DEVICE_PAGE {
            self.confirmed_through = Tick(0);
            return Ok(());
        }
        self.page(page)?.clear();
        Ok(())
    }

    fn add(&mut self, page: u32, entry: Entry) -> Result<(), ReplayFault> {
        let in_page = entry.chunk >> self.superblock.page_log2 == page;
        if !in_page || entry.chunk >= self.superblock.chunks() {
            return Err(ReplayFault::Page(page));
        }
        let (key, lsn) = (entry.key(), entry.lsn);
        match self.page(page)?.insert(key, entry) {
            Some(_) => Err(ReplayFault::Twice { key, lsn }),
            None => Ok(()),
        }
    }

    /// Checks what may be torn and opens the store. `progress` hears of every block checked.
    ///
    /// # Errors
    /// [`OpenError`]: a log that contradicts itself, a device or log that failed. The node may go
    /// on without this device.
    pub async fn finish(
        self,
        env: Env,
        dev: DeviceRef,
        config: Config,
        progress: impl Fn(RecoveryProgress),
    ) -> Result<(Rc<BlockStore>, RecoveryReport), OpenError> {
        let superblock = self.superblock;
        let device = dev.info().name.clone();
        let state = self
            .into_state(config.reserve_permille)
            .map_err(|fault| OpenError::Replay { device: device.clone(), fault })?;
        let through = env.log.external_durable(external_tag(&superblock));
        let suspects = suspects(&state, &superblock, through);
        let mut report = RecoveryReport { blocks: state.table.len(), ..Default::default() };
        let torn = check(&env.pool, &dev, &config, suspects, &mut report, progress)
            .await
            .map_err(|error| OpenError::Device { device: device.clone(), error })?;
        let last = Lsn(env.log.head().0.saturating_sub(1));
        let store = BlockStore::new(env, config, dev, superblock, state);
        let flushed = store.flusher.cover().await;
        flushed.map_err(|error| OpenError::Device { device: device.clone(), error })?;
        if !torn.is_empty() {
            let freed = store.handle_free(torn).await;
            freed.map_err(|failure| OpenError::Log { device: device.clone(), failure })?;
        }
        // From here on this is what a restart need not check again.
        let noted = store.env.log.note_external_durable(external_tag(&superblock), last);
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot note in the commit log up to where data is durable");
        }
        tracing::info!(
            device = %device, blocks = report.blocks, checked = report.checked,
            torn = report.torn, unreadable = report.unreadable, "data device recovered"
        );
        Ok((store, report))
    }

    fn into_state(self, reserve_permille: u32) -> Result<State, ReplayFault> {
        let chunks = self.superblock.chunks();
        let reserve = u64::from(chunks) * u64::from(reserve_permille) / 1000;
        let mut state = State {
            table: Table::new(self.superblock.pages(), self.superblock.page_log2),
            space: Space::new(chunks, u32::try_from(reserve.max(1)).unwrap_or(u32::MAX)),
            unconfirmed: BTreeSet::new(),
            confirmed_through: self.confirmed_through,
            data_under_way: BTreeSet::new(),
            data_under_way_max: Lsn(0),
            #[cfg(feature = "planted")]
            ghosts: std::collections::BTreeMap::new(),
        };
        for blocks in self.pages {
            let mut entries: Vec<Entry> = blocks.into_values().collect();
            // The same order in every run.
            entries.sort_unstable_by_key(Entry::address);
            for entry in entries {
                place(&mut state, entry)?;
            }
        }
        Ok(state)
    }
}

fn place(state: &mut State, mut entry: Entry) -> Result<(), ReplayFault> {
    let (key, lsn, address) = (entry.key(), entry.lsn, entry.address());
    if state.table.find(key).is_some() {
        return Err(ReplayFault::Twice { key, lsn });
    }
    state.space.claim(address, entry.block_log2).map_err(|error| ReplayFault::Space {
        key,
        lsn,
        address,
        error,
    })?;
    if entry.standing == Standing::Unconfirmed && entry.pg.slot <= state.confirmed_through {
        entry.standing = Standing::Confirmed;
    }
    let open = entry.standing != Standing::Confirmed;
    let id = state.table.insert(entry);
    if open {
        state.unconfirmed.insert((key.pg.slot, id));
    }
    Ok(())
}

/// Blocks whose data may be torn, in the order of the device.
fn suspects(state: &State, superblock: &Superblock, through: Option<Lsn>) -> Vec<Suspect> {
    if planted::is(Planted::SkipTornCheck) {
        return Vec::new();
    }
    let mut suspects: Vec<Suspect> = (0..state.table.page_count())
        .flat_map(|page| state.table.page(page))
        .filter(|entry| through.is_none_or(|through| entry.lsn > through))
        .map(|entry| Suspect {
            key: entry.key(),
            offset: superblock.data_offset() + entry.address().offset(entry.block_log2),
            len: entry.bytes(),
            chunk_log2: entry.chunk_log2,
            crcs: entry.crcs.clone(),
        })
        .collect();
    suspects.sort_unstable_by_key(|suspect| suspect.offset);
    suspects
}

/// Reads the suspects; gives back those that are not whole.
async fn check(
    pool: &BufPool,
    dev: &DeviceRef,
    config: &Config,
    suspects: Vec<Suspect>,
    report: &mut RecoveryReport,
    progress: impl Fn(RecoveryProgress),
) -> Result<Vec<BlockKey>, DeviceError> {
    let blocks_total = suspects.len();
    let mut torn = Vec::new();
    let mut findings = futures_util::stream::iter(suspects)
        .map(|suspect| look(pool, dev, suspect))
        .buffer_unordered(config.recovery_reads.max(1));
    while let Some((suspect, finding)) = findings.next().await {
        report.checked += 1;
        report.checked_bytes += suspect.len as u64;
        match finding {
            Finding::Whole => {}
            Finding::Torn => {
                tracing::info!(block = %suspect.key, "a put was cut off; its space is freed");
                torn.push(suspect.key);
            }
            Finding::Unreadable(error @ DeviceError::Failed(_)) => return Err(error),
            // It may have been acknowledged: what is there is for home to say.
            Finding::Unreadable(error) => {
                tracing::warn!(block = %suspect.key, %error, "a block cannot be read");
                report.unreadable += 1;
            }
        }
        progress(RecoveryProgress { blocks_total, blocks_done: report.checked });
    }
    report.torn = torn.len();
    Ok(torn)
}

async fn look(pool: &BufPool, dev: &DeviceRef, suspect: Suspect) -> (Suspect, Finding) {
    let buf = pool.alloc(suspect.len).await;
    let finding = match dev.read(suspect.offset, buf).await {
        Err(error) => Finding::Unreadable(error),
        Ok(buf) => {
            let chunks = buf.chunks_exact(1 << suspect.chunk_log2);
            let whole =
                chunks.zip(suspect.crcs.as_slice()).all(|(c, crc)| bb_erasure::crc32c(c) == *crc);
            if whole { Finding::Whole } else { Finding::Torn }
        }
    };
    (suspect, finding)
}

const _: () = assert!(CHUNK_BYTES == bb_runtime::SLAB_BYTES_MAX as u64, "a block fits a buffer");
