//! Sessions: who is there, and for how long; the door to the namespace.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{
    Done, Namespace as Request, SessionOpen, SessionOpenReply, SessionRenew, decode, encode,
};
use bb_proto::{Code, Failure, Kind, PartitionId, ServiceClass, SessionId, partition_of_session};
use bb_runtime::Instant;
use bb_transport::{Incoming, Peer, Response, Role};

use super::Namespace;
use super::session_mutation::{SessionChange, SessionMutation, SessionOutcome};
use super::write_through::no_session;
use crate::files::{FileService, Parts};
use crate::partition::{Mutation, Partition};
use crate::rights;

/// Shortest and longest key: 128 random bits at least, so that no two clients draw the same.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=64;

/// Finds a partition of this node.
pub type FindPartition = Rc<dyn Fn(PartitionId) -> Option<Rc<Partition>>>;

/// The sessions of this node's partitions.
pub struct SessionService {
    parts: Parts,
    find: FindPartition,
    namespace: Rc<dyn Namespace>,
    files: Rc<FileService>,
    lease: Duration,
    heard: RefCell<BTreeMap<SessionId, Instant>>,
}

/// A client's session: XXH3-64 of its key, so that the same key finds the same partition.
pub fn session_of_key(key: &[u8]) -> SessionId {
    SessionId(xxhash_rust::xxh3::xxh3_64(key).max(1))
}

fn is_known(partition: &Partition, session: SessionId) -> bool {
    partition.state().sessions.get(session).is_some()
}

impl SessionService {
    /// A session that is not heard of for `lease` is dead.
    pub fn new(
        parts: Parts,
        find: FindPartition,
        namespace: Rc<dyn Namespace>,
        files: Rc<FileService>,
        lease: Duration,
    ) -> Rc<Self> {
        Rc::new(Self { parts, find, namespace, files, lease, heard: RefCell::default() })
    }

    /// Answers `SessionOpen`, which addresses nobody.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a key that cannot be used; [`Code::Busy`] where nobody serves its
    /// partition yet; what the log says.
    pub async fn open(&self, request: &Incoming) -> Result<Response, Failure> {
        let mut open: SessionOpen = decode(&request.body)?;
        // Passed on by a server, it says whose it is.
        if request.peer.role == Role::Client {
            open.owner = rights::owner(&self.parts.shared, &request.peer)?;
        }
        if !KEY_BYTES.contains(&open.key.len()) {
            return Err(Failure::new(Code::Invalid, "a session's key has 16 to 64 bytes"));
        }
        let session = session_of_key(&open.key);
        let id = partition_of_session(session, self.parts.shared.map().partition_count());
        let Some(partition) = (self.find)(id) else {
            // Passed on once: the map may name this very process, which is still taking over, and two
            // with different maps would send it to and fro.
            if request.peer.role == Role::Server {
                return Err(Failure::new(Code::Busy, "the session's partition is not served yet"));
            }
            let reply: SessionOpenReply = self.parts.ask(Kind::SessionOpen, id, &open).await?;
            return Ok(Response::body(encode(&reply)));
        };
        match self.log(&partition, session, SessionChange::Open(open)).await? {
            SessionOutcome::Done => {}
            _ => return Err(Failure::new(Code::Invalid, "that key was used: draw another")),
        }
        self.hear(session);
        let reply = SessionOpenReply {
            session: session.0,
            tick: self.parts.shared.tick().0,
            lease_ms: u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX),
        };
        Ok(Response::body(encode(&reply)))
    }

    /// Answers a request that was addressed to `partition`.
    ///
    /// # Errors
    /// What the request's handler says.
    pub async fn handle(
        self: Rc<Self>,
        partition: Rc<Partition>,
        request: Incoming,
    ) -> Result<Response, Failure> {
        match request.header.kind {
            Kind::Namespace => {
                let mut ask: Request = decode(&request.body)?;
                let session = SessionId(ask.session);
                ask.owner = self.known(&partition, session, &request.peer)?;
                self.hear(session);
                let shared = &self.parts.shared;
                ask.credentials = rights::acting(shared, ask.credentials, &request.peer).await?;
                let reply = self.namespace.clone().perform(partition, ask).await?;
                Ok(Response::body(encode(&reply)))
            }
            Kind::SessionRenew => {
                let ask: SessionRenew = decode(&request.body)?;
                let session = SessionId(ask.session);
                self.known(&partition, session, &request.peer)?;
                self.hear(session);
                Ok(Response::body(encode(&Done {})))
            }
            // From a server: the end of a session, for the opens of one partition.
            Kind::SessionClose if request.peer.role == Role::Server => {
                self.files.clone().handle(partition, request).await
            }
            Kind::SessionClose => {
                let ask: SessionRenew = decode(&request.body)?;
                let session = SessionId(ask.session);
                if is_known(&partition, session) {
                    self.known(&partition, session, &request.peer)?;
                }
                self.close(&partition, session).await?;
                Ok(Response::body(encode(&Done {})))
            }
            kind => {
                let detail = format!("{kind:?} is not for sessions");
                Err(Failure::new(Code::Unsupported, detail))
            }
        }
    }

    /// The user whom a session belongs to, if that is the peer's.
    fn known(
        &self,
        partition: &Partition,
        session: SessionId,
        peer: &Peer,
    ) -> Result<Option<u32>, Failure> {
        let state = partition.state();
        let owner = state.sessions.get(session).ok_or_else(no_session)?.open.owner;
        rights::check_session(&self.parts.shared, owner, peer)?;
        Ok(owner)
    }

    fn hear(&self, session: SessionId) {
        self.heard.borrow_mut().insert(session, self.parts.rt.now());
    }

    async fn log(
        &self,
        partition: &Rc<Partition>,
        session: SessionId,
        change: SessionChange,
    ) -> Result<SessionOutcome, Failure> {
        let mutation = Mutation::Session(SessionMutation { session, change });
        partition.submit(ServiceClass::Client, mutation).await?.session()
    }

    /// Ends a session: its opens first, so that a crash in between leaves a session to end again.
    async fn close(&self, partition: &Rc<Partition>, session: SessionId) -> Result<(), Failure> {
        if !is_known(partition, session) {
            return Ok(());
        }
        let end = SessionRenew { session: session.0, acknowledged: 0 };
        self.parts.tell_nodes(Kind::SessionClose, &end).await?;
        self.log(partition, session, SessionChange::Close).await?;
        self.heard.borrow_mut().remove(&session);
        self.namespace.session_ended(session);
        Ok(())
    }

    /// A partition is served from now on: each of its sessions has a whole lease to be heard.
    pub fn begin_lease(&self, partition: &Partition) {
        let now = self.parts.rt.now();
        let ids: Vec<SessionId> = partition.state().sessions.iter().map(|(id, _)| id).collect();
        self.heard.borrow_mut().extend(ids.into_iter().map(|id| (id, now)));
    }

    /// Ends sessions of the partitions that are served whose clients are not heard of, for ever. After a
    /// restart each has a whole lease to be heard.
    pub async fn expire(self: Rc<Self>, served: impl Fn() -> Vec<Rc<Partition>>) {
        loop {
            self.parts.rt.sleep(self.lease / 4).await;
            let now = self.parts.rt.now();
            for partition in &served() {
                let dead: Vec<SessionId> = {
                    let state = partition.state();
                    let mut heard = self.heard.borrow_mut();
                    let open = state.sessions.iter().filter(|(_, session)| !session.closed);
                    open.map(|(id, _)| id)
                        .filter(|id| now.since(*heard.entry(*id).or_insert(now)) > self.lease)
                        .collect()
                };
                for session in dead {
                    tracing::info!(session = session.0, "a session's lease is over");
                    if let Err(failure) = self.close(partition, session).await {
                        tracing::warn!(session = session.0, %failure, "it is ended later");
                    }
                }
            }
        }
    }
}
