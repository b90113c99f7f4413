//! What `[auth]` means for a process.

use std::rc::Rc;

use bb_runtime::Rt;
use bb_transport::auth::{ClusterKey, LibMunge, Method, Munge, NoAuth};

use super::DaemonError;
use crate::config::AuthConfig;
use crate::groups::OsGroups;
use crate::security::Secured;

/// How this process proves itself and has others prove themselves.
pub(super) struct Auth {
    pub method: Rc<dyn Method>,
    key: Option<ClusterKey>,
}

impl Auth {
    /// Looks whether what is configured works here, before anything is served.
    pub fn begin(config: &AuthConfig) -> Result<Self, DaemonError> {
        if !config.munge {
            return Ok(Self { method: NoAuth::shared(), key: None });
        }
        let key = ClusterKey::load(&config.key)?;
        let munged = LibMunge::in_threads(config.munge_socket.clone());
        munged.check()?;
        // SAFETY: cannot fail.
        let uid = unsafe { libc::geteuid() };
        let method = Munge::server(Rc::new(munged), uid, key.clone());
        Ok(Self { method: Rc::new(method), key: Some(key) })
    }

    /// What clients have to prove.
    pub fn secured(&self, rt: &Rt) -> Option<Secured> {
        let key = self.key.clone()?;
        Some(Secured { key, groups: Rc::new(OsGroups::new(rt)) })
    }
}
