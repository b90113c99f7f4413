//! What a client does about authentication.

use std::path::PathBuf;
use std::rc::Rc;

use super::key::own_uid;
use super::{Exchange, LibMunge, Method, Munge, NoAuth, Proven, Received, Step, StepFuture};

/// In a Hello: the accepting side is to choose.
pub const AUTO: &str = "auto";

/// Which method a client takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// What the server names.
    #[default]
    Auto,
    /// `munge`, or no connection: also the server must prove itself.
    Munge,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            AUTO => Ok(Self::Auto),
            "munge" => Ok(Self::Munge),
            _ => Err(format!("\"{text}\" is not a method of authentication: \"auto\", \"munge\"")),
        }
    }
}

/// Settings of a client's authentication.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Choice {
    /// The method.
    pub mode: Mode,
    /// Where munged listens; else what `BB_MUNGE_SOCKET` says, else Debian's place.
    pub socket: Option<PathBuf>,
    /// User that servers run as, besides root and the client's own.
    pub server_uid: Option<u32>,
}

impl Choice {
    /// The method for an [`crate::Identity`].
    pub fn method(&self) -> Rc<dyn Method> {
        let munged = Rc::new(LibMunge::inline(self.socket.clone()));
        let mut servers = vec![0, own_uid()];
        servers.extend(self.server_uid);
        let munge = Munge::client(munged, servers);
        match self.mode {
            Mode::Munge => Rc::new(munge),
            Mode::Auto => Rc::new(Auto { munge: Rc::new(munge) }),
        }
    }
}

/// What the server names.
struct Auto {
    munge: Rc<Munge>,
}

impl Method for Auto {
    fn name(&self) -> &'static str {
        AUTO
    }

    fn accepts(&self, method: &str) -> bool {
        method == NoAuth.name() || method == self.munge.name()
    }

    fn initiate(&self) -> Box<dyn Exchange> {
        Box::new(Chosen { munge: self.munge.clone(), exchange: None })
    }

    fn respond(&self) -> Box<dyn Exchange> {
        // A side that accepts connections has a method.
        NoAuth.respond()
    }
}

struct Chosen {
    munge: Rc<Munge>,
    exchange: Option<Box<dyn Exchange>>,
}

impl Exchange for Chosen {
    fn step<'a>(&'a mut self, received: Received<'a>) -> StepFuture<'a> {
        Box::pin(async move {
            if received.method == AUTO {
                return Ok(Step::Continue(Vec::new()));
            }
            if self.exchange.is_none() {
                let method: &dyn Method =
                    if received.method == NoAuth.name() { &NoAuth } else { &*self.munge };
                let exchange = self.exchange.insert(method.initiate());
                // Both begin with nothing, which is what was sent.
                exchange.step(Received { bytes: &[], cluster: &[], ..received }).await?;
            }
            self.exchange.as_mut().expect("made above").step(received).await
        })
    }

    fn proven(&self) -> Option<Proven> {
        self.exchange.as_ref().and_then(|exchange| exchange.proven())
    }
}
