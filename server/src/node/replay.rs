//! Sorting what the log holds to those whose streams they are.

use std::collections::{BTreeMap, BTreeSet};

use bb_commitlog::{Lsn, Replay, ReplayError, StreamId};
use bb_proto::DeviceId;

use crate::blockstore::{Recovery, Superblock};
use crate::context::Stream;
use crate::council::{Ballots, LocalState};
use crate::partition::PartitionReplay;

/// What replay has brought back.
#[derive(Default)]
pub(super) struct Replayed {
    pub(super) local: LocalState,
    pub(super) ballots: Ballots,
    pub(super) stores: BTreeMap<DeviceId, Recovery>,
    pub(super) partitions: PartitionReplay,
    /// Streams of devices that are not here, by device.
    pub(super) absent: BTreeMap<DeviceId, BTreeSet<StreamId>>,
}

impl Replayed {
    pub(super) fn new(superblocks: &[Superblock]) -> Self {
        let stores = superblocks.iter().map(|s| (s.device, Recovery::new(*s))).collect();
        Self { stores, ..Self::default() }
    }
}

enum Event<'a> {
    Snapshot(&'a [u8]),
    Record(&'a [u8]),
    Retired,
}

impl Replayed {
    fn take(&mut self, stream: StreamId, lsn: Lsn, event: &Event<'_>) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        match Stream::from_id(stream) {
            Some(Stream::Map) => match event {
                Event::Snapshot(bytes) => self.ballots.snapshot(bytes),
                Event::Record(bytes) => self.ballots.record(bytes),
                Event::Retired => {
                    self.ballots = Ballots::default();
                    Ok(())
                }
            },
            Some(Stream::Node) => match event {
                Event::Snapshot(bytes) | Event::Record(bytes) => self.local.replay(bytes),
                Event::Retired => Err("a node cannot be retired".to_owned()),
            },
            Some(Stream::Blocks { device, page }) => {
                let Some(store) = self.stores.get_mut(&device) else {
                    // Whether it may be absent is for the map to say, which may come later.
                    self.absent.entry(device).or_default().insert(stream);
                    return Ok(());
                };
                match event {
                    Event::Snapshot(bytes) => store.snapshot(page, bytes),
                    Event::Record(bytes) => store.record(page, lsn, bytes),
                    Event::Retired => store.retired(page),
                }
                .map_err(|error| text(&error))
            }
            Some(Stream::Partition(id)) => match event {
                Event::Snapshot(bytes) => self.partitions.snapshot(id, bytes),
                Event::Record(bytes) => self.partitions.record(id, bytes),
                Event::Retired => {
                    self.partitions.retired(id);
                    Ok(())
                }
            }
            .map_err(|error| text(&error)),
            None => Err("a kind of stream that this version does not know".to_owned()),
        }
    }
}

impl Replay for Replayed {
    fn snapshot(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.take(stream, lsn, &Event::Snapshot(bytes)).map_err(|why| ReplayError {
            stream,
            lsn,
            why,
        })
    }

    fn record(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.take(stream, lsn, &Event::Record(bytes)).map_err(|why| ReplayError {
            stream,
            lsn,
            why,
        })
    }

    fn retired(&mut self, stream: StreamId, lsn: Lsn) -> Result<(), ReplayError> {
        self.take(stream, lsn, &Event::Retired).map_err(|why| ReplayError { stream, lsn, why })
    }
}
