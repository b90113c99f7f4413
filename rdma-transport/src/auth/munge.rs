//! Method `munge`: each side has the munged of its machine vouch for it.
//!
//! ```text
//! connecting                                      accepting
//! Hello (nothing)                            ->
//!                                            <-   Hello: nonce A, 32 bytes
//! Auth: nonce C, credential over (C, A, ...) ->   uid and gid of the connecting process
//!                                            <-   Auth, the last: credential over (A, C, ...)
//! uid of the server
//! ```
//!
//! A credential is encrypted and signed with the key that all munged of a site share, and says
//! which process made it. It holds both nonces, the cluster, the side and the role, so that it is
//! good for one connection only. munged refuses what is too old, or was decoded before.
//!
//! Between servers it also holds a proof that its maker has the cluster's key: another key is
//! noticed here, and not as signatures that nobody accepts.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use super::key::ClusterKey;
use super::{AuthError, Exchange, Method, Proven, Received, Step, StepFuture};
use crate::Role;

/// Begins what a credential holds: the purpose and its version.
const MAGIC: [u8; 8] = *b"BBMUNGE1";
const CONNECTING: u8 = b'C';
const ACCEPTING: u8 = b'A';
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 16;

/// Why munge did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MungeError {
    /// The credential is not good.
    #[error("{0}")]
    Refused(String),
    /// It does not work here, or not now.
    #[error("{0}")]
    NotNow(String),
}

impl From<MungeError> for AuthError {
    fn from(error: MungeError) -> Self {
        match error {
            MungeError::Refused(why) => Self::Refused(why),
            MungeError::NotNow(why) => Self::NotNow(why),
        }
    }
}

/// What a credential says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// What it was made over.
    pub payload: Vec<u8>,
    /// User of the process that had it made.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// The future of a call.
pub type MungeFuture<T> = Pin<Box<dyn Future<Output = Result<T, MungeError>>>>;

/// The munged of this machine. Tests have one of their own.
pub trait Munged {
    /// A credential over `payload`, in the name of this process.
    fn encode(&self, payload: Vec<u8>) -> MungeFuture<Vec<u8>>;

    /// Who made a credential, and over what; once for each credential.
    fn decode(&self, credential: Vec<u8>) -> MungeFuture<Decoded>;

    /// Bytes that nobody can guess and that never come again.
    ///
    /// # Errors
    /// [`MungeError::NotNow`].
    fn nonce(&self) -> Result<[u8; NONCE_BYTES], MungeError>;
}

/// The method.
pub struct Munge {
    inner: Rc<Inner>,
}

struct Inner {
    munged: Rc<dyn Munged>,
    /// Users that servers run as.
    server_uids: Vec<u32>,
    /// Servers have it.
    key: Option<ClusterKey>,
}

impl Munge {
    /// For a client: servers run as one of `server_uids`.
    pub fn client(munged: Rc<dyn Munged>, server_uids: Vec<u32>) -> Self {
        Self { inner: Rc::new(Inner { munged, server_uids, key: None }) }
    }

    /// For a server: the others run as the same user, and have the same key.
    pub fn server(munged: Rc<dyn Munged>, own_uid: u32, key: ClusterKey) -> Self {
        Self { inner: Rc::new(Inner { munged, server_uids: vec![own_uid], key: Some(key) }) }
    }

    fn exchange(&self, accepts: bool) -> Box<dyn Exchange> {
        let inner = self.inner.clone();
        Box::new(Exchanging { inner, accepts, own: None, peer: None, proven: None })
    }
}

impl Method for Munge {
    fn name(&self) -> &'static str {
        "munge"
    }
    fn initiate(&self) -> Box<dyn Exchange> {
        self.exchange(false)
    }
    fn respond(&self) -> Box<dyn Exchange> {
        self.exchange(true)
    }
}

type Nonce = [u8; NONCE_BYTES];

struct Exchanging {
    inner: Rc<Inner>,
    accepts: bool,
    own: Option<Nonce>,
    peer: Option<Nonce>,
    proven: Option<Proven>,
}

impl Exchange for Exchanging {
    fn step<'a>(&'a mut self, received: Received<'a>) -> StepFuture<'a> {
        Box::pin(async move {
            if self.accepts { self.accept(received).await } else { self.connect(received).await }
        })
    }

    fn proven(&self) -> Option<Proven> {
        self.proven
    }
}

fn refused(why: impl Into<String>) -> AuthError {
    AuthError::Refused(why.into())
}

impl Exchanging {
    async fn accept(&mut self, received: Received<'_>) -> Result<Step, AuthError> {
        let Some(own) = self.own else {
            if !received.bytes.is_empty() {
                return Err(refused("munge begins with nothing"));
            }
            let own = self.inner.munged.nonce()?;
            self.own = Some(own);
            return Ok(Step::Continue(own.to_vec()));
        };
        let Some((peer, credential)) = received.bytes.split_first_chunk::<NONCE_BYTES>() else {
            return Err(refused("a credential is missing"));
        };
        let terms = Terms { accepting: own, connecting: *peer, received };
        let decoded = self.inner.munged.decode(credential.to_vec()).await?;
        self.inner.check(&terms, CONNECTING, &decoded)?;
        if received.role == Role::Server && !self.inner.server_uids.contains(&decoded.uid) {
            let why = format!("user {} is not the one that servers run as", decoded.uid);
            return Err(refused(why));
        }
        self.proven = Some(Proven { uid: decoded.uid, gid: decoded.gid });
        let statement = self.inner.statement(&terms, ACCEPTING);
        Ok(Step::Done(self.inner.munged.encode(statement).await?))
    }

    async fn connect(&mut self, received: Received<'_>) -> Result<Step, AuthError> {
        if let (Some(own), Some(peer)) = (self.own, self.peer) {
            let terms = Terms { accepting: peer, connecting: own, received };
            let decoded = self.inner.munged.decode(received.bytes.to_vec()).await?;
            self.inner.check(&terms, ACCEPTING, &decoded)?;
            if !self.inner.server_uids.contains(&decoded.uid) {
                let why = format!(
                    "what answers there runs as user {}, which is not a server's",
                    decoded.uid
                );
                return Err(refused(why));
            }
            self.proven = Some(Proven { uid: decoded.uid, gid: decoded.gid });
            return Ok(Step::Done(Vec::new()));
        }
        if received.bytes.is_empty() {
            return Ok(Step::Continue(Vec::new()));
        }
        let peer = Nonce::try_from(received.bytes).map_err(|_| refused("not a nonce"))?;
        let own = self.inner.munged.nonce()?;
        (self.own, self.peer) = (Some(own), Some(peer));
        let terms = Terms { accepting: peer, connecting: own, received };
        let credential = self.inner.munged.encode(self.inner.statement(&terms, CONNECTING)).await?;
        let mut bytes = own.to_vec();
        bytes.extend(credential);
        Ok(Step::Continue(bytes))
    }
}

/// What both sides of a connection have seen.
struct Terms<'a> {
    accepting: Nonce,
    connecting: Nonce,
    received: Received<'a>,
}

impl Terms<'_> {
    /// What a side's credential is made over, but for the proof.
    fn statement(&self, side: u8) -> Vec<u8> {
        let role = match self.received.role {
            Role::Client => 1,
            Role::Server => 2,
        };
        let mut out = MAGIC.to_vec();
        out.extend([side, role]);
        out.extend(self.accepting);
        out.extend(self.connecting);
        out.extend(self.received.cluster);
        out
    }
}

impl Inner {
    /// What a side's credential is made over.
    fn statement(&self, terms: &Terms<'_>, side: u8) -> Vec<u8> {
        let mut out = terms.statement(side);
        let proof = self.proof(terms, &out);
        out.extend(proof);
        out
    }

    /// Servers prove to each other that they have the cluster's key.
    fn proof(&self, terms: &Terms<'_>, statement: &[u8]) -> [u8; PROOF_BYTES] {
        match &self.key {
            Some(key) if terms.received.role == Role::Server => {
                key.sub_key("connection", terms.received.cluster).sign(statement)
            }
            _ => [0; PROOF_BYTES],
        }
    }

    fn check(&self, terms: &Terms<'_>, side: u8, decoded: &Decoded) -> Result<(), AuthError> {
        let expected = terms.statement(side);
        let Some((said, proof)) = decoded.payload.split_last_chunk::<PROOF_BYTES>() else {
            return Err(refused("a credential over something else"));
        };
        if said != expected {
            return Err(refused("a credential over something else, or of another connection"));
        }
        if *proof != self.proof(terms, &expected) {
            return Err(refused(
                "the servers' cluster keys differ: `key` under [auth] must name a copy of the \
                 same file on each",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "munge_tests.rs"]
mod tests;
