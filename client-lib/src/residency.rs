//! sync, prestage, purge, pin: started, asked about, awaited, cancelled.

use std::time::Duration;

use bb_proto::meta::{
    self, FileOperation, FileStat, FileState, OperationState, OperationStatus, Residency,
};
use bb_proto::{Kind, OpId, PartitionId};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::file::File;
use crate::link::Ask;

/// Longest time that one request waits at the server for an operation's end.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// An operation that runs at the servers, whether somebody waits for it or not.
#[derive(Clone)]
pub struct Operation {
    client: Client,
    partition: PartitionId,
    id: OpId,
}

impl File {
    /// Starts an operation on a range of the file (`len` 0: to the end). What this client wrote is
    /// written back first. `force` says how to go on after a conflict with a change on the backing
    /// file system: 0 stop, 1 ours wins, 2 the other's wins.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn start(
        &self,
        residency: Residency,
        offset: u64,
        len: u64,
        force: u32,
    ) -> Result<Operation> {
        let inner = &self.client.inner;
        self.fsync_if_dirty().await?;
        loop {
            let number = inner.session.number();
            let capability = self.opened.capability.get();
            let body = meta::encode(&FileOperation {
                capability: (&capability).into(),
                residency: residency as i32,
                offset,
                len,
                force,
                session: number.id.0,
                sequence: number.sequence,
            });
            let partition = inner.record_partition(self.node.fid);
            match inner.link.ask(partition, &Ask::new(Kind::FileOperation, body)).await {
                Ok(answer) => {
                    let state: OperationState = meta::decode(&answer.body)?;
                    // Purge and the like change what maps say.
                    self.node.maps.borrow_mut().forget();
                    let client = self.client.clone();
                    return Ok(Operation { client, partition, id: OpId(state.op) });
                }
                Err(error) if inner.renewed(&error, &self.node, capability.session).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn fsync_if_dirty(&self) -> Result<()> {
        if self.node.is_dirty() { self.fsync().await } else { Ok(()) }
    }

    /// State of the file in the buffer, with bytes by state.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn fragment_statistics(&self) -> Result<FileState> {
        let inner = &self.client.inner;
        let body = FileStat { fid: self.node.fid.into(), counts: true, truncates_after: None };
        let ask = Ask::new(Kind::FileStat, meta::encode(&body));
        let answer = inner.link.ask(inner.record_partition(self.node.fid), &ask).await?;
        Ok(meta::decode(&answer.body)?)
    }
}

impl Operation {
    /// Its number.
    pub const fn id(&self) -> OpId {
        self.id
    }

    /// How far it is.
    ///
    /// # Errors
    /// [`Error`] of the question, not of the operation.
    pub async fn state(&self) -> Result<OperationState> {
        self.ask(Duration::ZERO, false).await
    }

    /// Stops it, as far as it has not happened yet.
    ///
    /// # Errors
    /// [`Error`] of the request.
    pub async fn cancel(&self) -> Result<OperationState> {
        self.ask(Duration::ZERO, true).await
    }

    /// Waits for its end, and tells `progress` how far it is every few seconds at the least.
    ///
    /// # Errors
    /// [`Error`], also the operation's own.
    pub async fn wait(&self, mut progress: impl FnMut(&OperationState)) -> Result<OperationState> {
        loop {
            let state = self.ask(WAIT_MAX, false).await?;
            progress(&state);
            if let Some(failure) = state.failure {
                return Err(Error::from(failure));
            }
            if state.ended {
                return Ok(state);
            }
        }
    }

    async fn ask(&self, wait: Duration, cancel: bool) -> Result<OperationState> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let body = meta::encode(&OperationStatus { op: self.id.0, wait_ms, cancel });
        let mut ask = Ask::new(Kind::OperationStatus, body);
        ask.server_wait = wait;
        let answer = self.client.inner.link.ask(self.partition, &ask).await?;
        Ok(meta::decode(&answer.body)?)
    }
}
