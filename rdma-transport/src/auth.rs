//! How peers prove who they are. "none" is the only method yet; the exchange has room for others.

use std::rc::Rc;

/// What to do next in an exchange.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send these bytes, then wait for the peer's.
    Continue(Vec<u8>),
    /// Satisfied; the bytes (there may be none) still go to the peer.
    Done(Vec<u8>),
}

/// One side of one exchange.
pub trait Exchange {
    /// The next step after the peer's bytes. The initiator's first call is with none.
    ///
    /// # Errors
    /// A sentence, when the peer has failed to prove itself.
    fn step(&mut self, received: &[u8]) -> Result<Step, String>;
}

/// A method of authentication.
pub trait Method {
    /// Its name in a Hello.
    fn name(&self) -> &str;
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
    fn step(&mut self, received: &[u8]) -> Result<Step, String> {
        if received.is_empty() {
            Ok(Step::Done(Vec::new()))
        } else {
            Err("authentication method \"none\" takes no data".into())
        }
    }
}
