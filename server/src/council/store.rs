//! A voter's log: one stream of the commit log.
//!
//! The commit log asks a stream for a snapshot when it keeps the ring's tail. So the snapshot of
//! this stream is a bundle: the voter's last checkpoint, and the records behind it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;

use bb_commitlog::{Class, Log, LogError};
use bb_consensus::{Durable, RecoverError, Recovered, Store, StoreFailed};
use bb_proto::{Reader, Writer};
use bb_runtime::Rt;
use futures_channel::oneshot;

use crate::context::Stream;
use crate::partition::table::{put_bytes, put_len, put_u32, take_bytes, take_len, take_u32};

const MAGIC: u32 = u32::from_le_bytes(*b"BBVB");
const VERSION: u32 = 1;

/// What replay brings of a voter's stream.
#[derive(Default)]
pub struct Ballots {
    recovered: Recovered,
    checkpoint: Vec<u8>,
    records: Vec<Vec<u8>>,
}

impl Ballots {
    /// Takes in a snapshot of the stream.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn snapshot(&mut self, bytes: &[u8]) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| format!("the voter's snapshot: {error}");
        let mut reader = Reader::new(bytes);
        if take_u32(&mut reader).map_err(|e| text(&e))? != MAGIC {
            return Err(text(&"magic"));
        }
        let version = take_u32(&mut reader).map_err(|e| text(&e))?;
        if version > VERSION {
            return Err(text(&format!("version {version} is newer than this program")));
        }
        *self = Self::default();
        let checkpoint = take_bytes(&mut reader).map_err(|e| text(&e))?;
        if !checkpoint.is_empty() {
            self.recovered.snapshot(checkpoint).map_err(|e| text(&e))?;
        }
        self.checkpoint = checkpoint.to_vec();
        for _ in 0..take_len(&mut reader).map_err(|e| text(&e))? {
            let record = take_bytes(&mut reader).map_err(|e| text(&e))?;
            self.record(record)?;
        }
        reader.finish().map_err(|e| text(&e))
    }

    /// Takes in a record.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), String> {
        let text = |error: RecoverError| format!("the voter's record: {error}");
        self.recovered.record(bytes).map_err(text)?;
        self.records.push(bytes.to_vec());
        Ok(())
    }

    /// What the voter had.
    pub const fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    pub(super) fn take(self) -> (Recovered, Mirror) {
        (self.recovered, Mirror { checkpoint: self.checkpoint, records: self.records })
    }
}

/// What the stream holds, for a snapshot at any time.
#[derive(Default)]
pub(super) struct Mirror {
    checkpoint: Vec<u8>,
    records: Vec<Vec<u8>>,
}

impl Mirror {
    fn bundle(&self) -> Vec<u8> {
        let mut out = Writer::default();
        put_u32(&mut out, MAGIC);
        put_u32(&mut out, VERSION);
        put_bytes(&mut out, &self.checkpoint);
        put_len(&mut out, self.records.len());
        self.records.iter().for_each(|record| put_bytes(&mut out, record));
        out.finish()
    }
}

/// Resolves when it is in the log.
pub type Written = Pin<Box<dyn Future<Output = Result<(), LogError>>>>;

enum Step {
    Append(Vec<Vec<u8>>),
    Checkpoint(Vec<u8>),
    /// The commit log wants the stream to begin anew.
    Again,
}

/// A step, and who waits for it.
type Queued = (Step, oneshot::Sender<Result<(), LogError>>);

/// The stream, written in the order of calls.
pub struct LogStore {
    rt: Rt,
    log: Rc<Log>,
    mirror: RefCell<Mirror>,
    queue: RefCell<VecDeque<Queued>>,
    busy: Cell<bool>,
}

impl LogStore {
    /// Goes on with what the stream holds.
    pub(super) fn new(rt: Rt, log: Rc<Log>, mirror: Mirror) -> Rc<Self> {
        let (queue, busy) = (RefCell::default(), Cell::new(false));
        Rc::new(Self { rt, log, mirror: RefCell::new(mirror), queue, busy })
    }

    /// Has the stream begin anew, for the ring's sake.
    pub(super) fn checkpoint_now(self: &Rc<Self>) -> Written {
        self.enqueue(Step::Again)
    }

    fn enqueue(self: &Rc<Self>, step: Step) -> Written {
        let (sender, receiver) = oneshot::channel();
        self.queue.borrow_mut().push_back((step, sender));
        if !self.busy.replace(true) {
            let this = self.clone();
            self.rt.spawn(async move { this.drain().await });
        }
        Box::pin(async move {
            let gone = || Err(LogError::Failed("the voter's store has ended".to_owned()));
            receiver.await.unwrap_or_else(|_| gone())
        })
    }

    async fn drain(self: Rc<Self>) {
        loop {
            let next = self.queue.borrow_mut().pop_front();
            let Some((step, done)) = next else { break };
            match self.write(step).await {
                Ok(written) => {
                    // The next one may go before this is durable: the log keeps the order.
                    self.rt.spawn(async move {
                        let _ = done.send(written.await);
                    });
                }
                Err(error) => {
                    let _ = done.send(Err(error));
                }
            }
        }
        self.busy.set(false);
    }

    async fn write(&self, step: Step) -> Result<Written, LogError> {
        let stream = Stream::Map.id();
        match step {
            Step::Append(records) => {
                let sizes: Vec<usize> = records.iter().map(Vec::len).collect();
                let mut room = self.log.admit_all(Class::Control, sizes).await?;
                let mut last = None;
                for record in records {
                    last = Some(self.log.append(stream, &mut room, &record)?.durable);
                    self.mirror.borrow_mut().records.push(record);
                }
                Ok(match last {
                    Some(durable) => Box::pin(durable),
                    None => Box::pin(std::future::ready(Ok(()))),
                })
            }
            Step::Checkpoint(checkpoint) => {
                *self.mirror.borrow_mut() = Mirror { checkpoint, records: Vec::new() };
                let bundle = self.mirror.borrow().bundle();
                Ok(Box::pin(self.log.checkpoint(stream, bundle)?.durable))
            }
            Step::Again => {
                let bundle = self.mirror.borrow().bundle();
                Ok(Box::pin(self.log.checkpoint(stream, bundle)?.durable))
            }
        }
    }
}

/// The store as a voter sees it.
pub(super) struct Handle(pub(super) Rc<LogStore>);

impl Store for Handle {
    fn append(&self, records: Vec<Vec<u8>>) -> Durable {
        let written = self.0.enqueue(Step::Append(records));
        Box::pin(async move { written.await.map_err(|error| failed(&error)) })
    }

    fn checkpoint(&self, snapshot: Vec<u8>) -> Durable {
        let written = self.0.enqueue(Step::Checkpoint(snapshot));
        Box::pin(async move { written.await.map_err(|error| failed(&error)) })
    }
}

fn failed(error: &LogError) -> StoreFailed {
    StoreFailed { reason: error.to_string() }
}
