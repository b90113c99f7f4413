//! What `[auth]` means for a process.

use std::path::PathBuf;
use std::rc::Rc;

use bb_runtime::Rt;
use bb_transport::auth::{ClusterKey, LibMunge, Method, Munge, NoAuth};

use super::DaemonError;
use crate::config::AuthConfig;
use crate::groups::OsGroups;
use crate::security::Secured;

/// How this process proves itself and has others prove themselves. Each of its reactors makes a
/// method of its own of it.
#[derive(Clone)]
pub(super) struct Auth {
    key: Option<ClusterKey>,
    munge_socket: Option<PathBuf>,
}

impl Auth {
    /// Looks whether what is configured works here, before anything is served.
    pub fn begin(config: &AuthConfig) -> Result<Self, DaemonError> {
        let munge_socket = config.munge_socket.clone();
        if !config.munge {
            return Ok(Self { key: None, munge_socket });
        }
        let key = Some(ClusterKey::load(&config.key)?);
        LibMunge::inline(munge_socket.clone()).check()?;
        Ok(Self { key, munge_socket })
    }

    /// For the connections of one reactor.
    pub fn method(&self) -> Rc<dyn Method> {
        let Some(key) = &self.key else { return NoAuth::shared() };
        let munged = LibMunge::in_threads(self.munge_socket.clone());
        // SAFETY: cannot fail.
        let uid = unsafe { libc::geteuid() };
        Rc::new(Munge::server(Rc::new(munged), uid, key.clone()))
    }

    /// What clients have to prove.
    pub fn secured(&self, rt: &Rt) -> Option<Secured> {
        let key = self.key.clone()?;
        Some(Secured { key, groups: Rc::new(OsGroups::new(rt)) })
    }
}
