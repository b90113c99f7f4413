//! How peers prove who they are: `none` (everybody is believed) and `munge`.

mod choice;
mod key;
mod libmunge;
mod munge;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::Role;

pub use choice::{AUTO, Choice, Mode};
pub use key::{ClusterKey, KEY_BYTES, KeyError, SubKey};
pub use libmunge::LibMunge;
pub use munge::{Decoded, Munge, MungeError, MungeFuture, Munged};

/// What to do next in an exchange.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes, then wait for the peer's.
    Continue(Vec<u8>),
    /// Satisfied; the bytes (there may be none) still go to the peer.
    Done(Vec<u8>),
}

/// Who the peer is, as the method has it from somebody who knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proven {
    /// User.
    pub uid: u32,
    /// Its group when it connected.
    pub gid: u32,
}

/// What an exchange goes by.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The peer's bytes; none at the initiator's first step.
    pub bytes: &'a [u8],
    /// The method that the accepting side named; the initiator's own at its first step.
    pub method: &'a str,
    /// The accepting side's cluster; empty at the initiator's first step.
    pub cluster: &'a [u8],
    /// What the connecting side says it is.
    pub role: Role,
}

/// Why an exchange ends without success.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    /// The peer has failed to prove itself, for good.
    #[error("{0}")]
    Refused(String),
    /// What proofs are checked with does not work here now.
    #[error("{0}")]
    NotNow(String),
}

/// The future of a step: a proof may come from another process.
pub type StepFuture<'a> = Pin<Box<dyn Future<Output = Result<Step, AuthError>> + 'a>>;

/// One side of one exchange.
pub trait Exchange {
    /// The next step after the peer's bytes. Fails when the peer has failed to prove itself.
    fn step<'a>(&'a mut self, received: Received<'a>) -> StepFuture<'a>;

    /// Once the exchange is over: who the peer is, where the method proves that.
    fn proven(&self) -> Option<Proven> {
        None
    }
}

/// A method of authentication.
pub trait Method {
    /// Its name in a Hello.
    fn name(&self) -> &str;

    /// True if the connecting side goes on with what the accepting side names.
    fn accepts(&self, method: &str) -> bool {
        method == self.name()
    }

    /// The connecting side.
    fn initiate(&self) -> Box<dyn Exchange>;

    /// The accepting side.
    fn respond(&self) -> Box<dyn Exchange>;
}

/// Everybody is believed.
pub struct NoAuth;

impl NoAuth {
    /// As configurations hold it.
    pub fn shared() -> Rc<dyn Method> {
        Rc::new(Self)
    }
}

impl Method for NoAuth {
    fn name(&self) -> &'static str {
        "none"
    }
    fn initiate(&self) -> Box<dyn Exchange> {
        Box::new(Believe)
    }
    fn respond(&self) -> Box<dyn Exchange> {
        Box::new(Believe)
    }
}

struct Believe;

impl Exchange for Believe {
    fn step<'a>(&'a mut self, received: Received<'a>) -> StepFuture<'a> {
        let step = if received.bytes.is_empty() {
            Ok(Step::Done(Vec::new()))
        } else {
            let why = "authentication method \"none\" takes no data";
            Err(AuthError::Refused(why.to_owned()))
        };
        Box::pin(std::future::ready(step))
    }
}
