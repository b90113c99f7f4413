//! What the engine needs of the commit log.

use std::future::Future;
use std::pin::Pin;

use bb_commitlog::{Class, Log, LogError, LogErrorKind, Reservation};
use bb_proto::{Code, Failure, PartitionId, ServiceClass};

use crate::context::Stream;

/// A future of the journal.
pub type JournalFuture<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// Room for one record. What is not used goes back when it is dropped.
pub trait Ticket {
    /// Gives `record` its place behind everything appended before, at once. The result resolves
    /// when it, and everything before it, is durable.
    ///
    /// # Errors
    /// The log's failure; nothing was appended.
    fn append(self: Box<Self>, record: &[u8]) -> Result<JournalFuture<()>, Failure>;
}

/// Room for several records.
pub trait FrameTicket {
    /// Gives `record` its place, as [`Ticket::append`].
    ///
    /// # Errors
    /// The log's failure, or more than was admitted; nothing was appended.
    fn append(
        &mut self,
        partition: PartitionId,
        record: &[u8],
    ) -> Result<JournalFuture<()>, Failure>;
}

/// The durable end of a partition: a stream of the commit log.
pub trait Journal {
    /// Waits for room for a record of so many bytes (rule 14: space is given by class).
    fn admit(
        &self,
        partition: PartitionId,
        class: ServiceClass,
        bytes: usize,
    ) -> JournalFuture<Box<dyn Ticket>>;

    /// Waits for room for records of these sizes, all of it.
    fn admit_frame(
        &self,
        class: ServiceClass,
        bytes: Vec<usize>,
    ) -> JournalFuture<Box<dyn FrameTicket>>;

    /// The partition's stream ends: it is not here any more.
    ///
    /// # Errors
    /// The log's failure.
    fn retire(&self, partition: PartitionId) -> Result<JournalFuture<()>, Failure>;

    /// Has the stream start at `snapshot`, which stands for everything appended so far.
    ///
    /// # Errors
    /// The log's failure.
    fn checkpoint(
        &self,
        partition: PartitionId,
        snapshot: Vec<u8>,
    ) -> Result<JournalFuture<()>, Failure>;
}

struct LogTicket {
    log: Log,
    partition: PartitionId,
    reservation: Reservation,
}

impl Ticket for LogTicket {
    fn append(mut self: Box<Self>, record: &[u8]) -> Result<JournalFuture<()>, Failure> {
        let stream = Stream::Partition(self.partition).id();
        let append =
            self.log.append(stream, &mut self.reservation, record).map_err(|e| refusal(&e))?;
        Ok(Box::pin(async move { append.durable.await.map_err(|e| refusal(&e)) }))
    }
}

struct LogFrame {
    log: Log,
    reservation: Reservation,
}

impl FrameTicket for LogFrame {
    fn append(
        &mut self,
        partition: PartitionId,
        record: &[u8],
    ) -> Result<JournalFuture<()>, Failure> {
        let stream = Stream::Partition(partition).id();
        let append =
            self.log.append(stream, &mut self.reservation, record).map_err(|e| refusal(&e))?;
        Ok(Box::pin(async move { append.durable.await.map_err(|e| refusal(&e)) }))
    }
}

impl Journal for Log {
    fn admit(
        &self,
        partition: PartitionId,
        class: ServiceClass,
        bytes: usize,
    ) -> JournalFuture<Box<dyn Ticket>> {
        let log = self.clone();
        Box::pin(async move {
            let reservation = log.admit(log_class(class), bytes).await.map_err(|e| refusal(&e))?;
            Ok(Box::new(LogTicket { log, partition, reservation }) as Box<dyn Ticket>)
        })
    }

    fn admit_frame(
        &self,
        class: ServiceClass,
        bytes: Vec<usize>,
    ) -> JournalFuture<Box<dyn FrameTicket>> {
        let log = self.clone();
        Box::pin(async move {
            let admitted = log.admit_all(log_class(class), bytes).await;
            let reservation = admitted.map_err(|e| refusal(&e))?;
            Ok(Box::new(LogFrame { log, reservation }) as Box<dyn FrameTicket>)
        })
    }

    fn retire(&self, partition: PartitionId) -> Result<JournalFuture<()>, Failure> {
        let append = Self::retire(self, Stream::Partition(partition).id());
        let append = append.map_err(|e| refusal(&e))?;
        Ok(Box::pin(async move { append.durable.await.map_err(|e| refusal(&e)) }))
    }

    fn checkpoint(
        &self,
        partition: PartitionId,
        snapshot: Vec<u8>,
    ) -> Result<JournalFuture<()>, Failure> {
        let stream = Stream::Partition(partition).id();
        let append = Self::checkpoint(self, stream, snapshot).map_err(|e| refusal(&e))?;
        Ok(Box::pin(async move { append.durable.await.map_err(|e| refusal(&e)) }))
    }
}

const fn log_class(class: ServiceClass) -> Class {
    match class {
        ServiceClass::Control => Class::Control,
        ServiceClass::Replication => Class::Replication,
        ServiceClass::Reclaim => Class::Reclaim,
        ServiceClass::Client => Class::Client,
        ServiceClass::Background => Class::Rebuild,
    }
}

fn refusal(error: &LogError) -> Failure {
    let code = match error.kind() {
        LogErrorKind::Caller => Code::Invalid,
        _ => Code::Busy,
    };
    Failure::new(code, format!("commit log: {error}"))
}
