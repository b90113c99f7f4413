//! sync, prestage, purge, pin: started, asked about, awaited, cancelled.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{
    self, FileOperation, FileStat, FileState, OperationState, OperationStatus, Residency,
};
use bb_proto::{Code, Failure, Kind, OpId};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::file::File;
use crate::link::Ask;
use crate::node::{Node, Opened};

/// Longest time that one request waits at the server for an operation's end.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// An operation that runs at the servers, whether somebody waits for it or not. The primary of the
/// file's partition knows of it, and nobody else: where that role moves, or its process dies,
/// [`Operation::wait`] starts it again, which all operations permit.
#[derive(Clone)]
pub struct Operation {
    client: Client,
    node: Rc<Node>,
    opened: Rc<Opened>,
    wanted: Wanted,
    id: Rc<Cell<OpId>>,
    cancelled: Rc<Cell<bool>>,
}

/// What an operation shall do.
#[derive(Clone, Copy)]
struct Wanted {
    residency: Residency,
    offset: u64,
    len: u64,
    force: u32,
}

/// Starts an operation; its number.
async fn start(client: &Client, node: &Rc<Node>, opened: &Opened, wanted: Wanted) -> Result<OpId> {
    let inner = &client.inner;
    loop {
        let number = inner.session.number();
        let capability = opened.capability.get();
        let body = meta::encode(&FileOperation {
            capability: (&capability).into(),
            residency: wanted.residency as i32,
            offset: wanted.offset,
            len: wanted.len,
            force: wanted.force,
            session: number.id.0,
            sequence: number.sequence,
        });
        let partition = inner.record_partition(node.fid);
        match inner.link.ask(partition, &Ask::new(Kind::FileOperation, body)).await {
            Ok(answer) => {
                let state: OperationState = meta::decode(&answer.body)?;
                // Purge and the like change what maps say.
                node.maps.borrow_mut().forget();
                return Ok(OpId(state.op));
            }
            Err(error) if inner.renewed(&error, node, capability.session).await => {}
            Err(error) => return Err(error),
        }
    }
}

/// True if the operation did not fail by itself: whoever ran it does not any more.
fn is_lost(failure: &Failure) -> bool {
    match failure.kind() {
        Code::Fenced => true,
        Code::Cancelled => failure.value == meta::OPERATION_UNKNOWN,
        _ => false,
    }
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
        self.fsync_if_dirty().await?;
        let (client, node, opened) = (self.client.clone(), self.node.clone(), self.opened.clone());
        let wanted = Wanted { residency, offset, len, force };
        let id = Rc::new(Cell::new(start(&client, &node, &opened, wanted).await?));
        Ok(Operation { client, node, opened, wanted, id, cancelled: Rc::default() })
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
    pub fn id(&self) -> OpId {
        self.id.get()
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
        self.cancelled.set(true);
        self.ask(Duration::ZERO, true).await
    }

    /// Waits for its end, and tells `progress` how far it is every few seconds at the least. One
    /// that was lost with its server is started again, for as long as the command timeout.
    ///
    /// # Errors
    /// [`Error`], also the operation's own.
    pub async fn wait(&self, mut progress: impl FnMut(&OperationState)) -> Result<OperationState> {
        let link = &self.client.inner.link;
        let (mut attempt, mut give_up) = (0, None);
        loop {
            let state = self.ask(WAIT_MAX, false).await?;
            if let Some(failure) = &state.failure
                && is_lost(failure)
                && !self.cancelled.get()
                && link.rt().now() < *give_up.get_or_insert_with(|| link.give_up())
            {
                link.back_off(attempt).await;
                attempt += 1;
                self.id.set(start(&self.client, &self.node, &self.opened, self.wanted).await?);
                continue;
            }
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
        let body = meta::encode(&OperationStatus { op: self.id.get().0, wait_ms, cancel });
        let mut ask = Ask::new(Kind::OperationStatus, body);
        ask.server_wait = wait;
        let inner = &self.client.inner;
        let answer = inner.link.ask(inner.record_partition(self.node.fid), &ask).await?;
        Ok(meta::decode(&answer.body)?)
    }
}
