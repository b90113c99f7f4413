//! What a server needs so that it need not believe clients: the cluster's key, and who is in which
//! group. Without it (authentication "none") every claim of a client is believed.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bb_proto::{Capability, Fid, PgId};
use bb_transport::auth::{ClusterKey, SubKey};

/// Groups of a user.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UserGroups {
    /// All of them, the primary one among them.
    pub groups: Vec<u32>,
}

/// The future of a question about a user.
pub type GroupsFuture = Pin<Box<dyn Future<Output = Result<Rc<UserGroups>, String>>>>;

/// The server's own knowledge of users. A user that it does not know has no groups.
pub trait GroupDatabase {
    /// The groups of a user. Fails when nobody can say.
    fn groups_of(&self, uid: u32) -> GroupsFuture;
}

/// What `bb.conf` brings with authentication by munge.
#[derive(Clone)]
pub struct Secured {
    /// The cluster's key.
    pub key: ClusterKey,
    /// Who is in which group.
    pub groups: Rc<dyn GroupDatabase>,
}

/// The same, in use.
pub struct Security {
    signer: Signer,
    groups: Rc<dyn GroupDatabase>,
}

impl Security {
    /// For a server of this cluster.
    pub fn new(secured: Secured, cluster: &[u8]) -> Self {
        Self { signer: Signer::new(&secured.key, cluster), groups: secured.groups }
    }

    /// Signs and checks.
    pub const fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Who is in which group.
    pub fn groups(&self) -> &dyn GroupDatabase {
        &*self.groups
    }
}

/// Signs what clients carry between servers. The user is signed too, and not carried: it is the
/// one who the bearer's connection has proven to be, so what was stolen is of no use to others.
#[derive(Clone, Copy, Debug)]
pub struct Signer {
    capability: SubKey,
    group: SubKey,
}

impl Signer {
    /// With keys made from the cluster's.
    pub fn new(key: &ClusterKey, cluster: &[u8]) -> Self {
        let capability = key.sub_key("capability", cluster);
        Self { capability, group: key.sub_key("parity group", cluster) }
    }

    /// The signature of a capability in the hand of `uid`.
    pub fn sign(&self, capability: &Capability, uid: u32) -> [u8; 16] {
        self.capability.sign(&capability_message(capability, uid))
    }

    /// True if this capability was given to `uid`.
    pub fn is_given(&self, capability: &Capability, uid: u32) -> bool {
        self.capability.verify(&capability_message(capability, uid), &capability.signature)
    }

    /// Permission for `uid` to read the blocks of a group, which holds bytes of the file `fid`.
    /// Devices know groups, not files: without it, whoever may read one file could ask for the
    /// blocks of any.
    pub fn sign_group(&self, pg: PgId, fid: Fid, uid: u32) -> [u8; 16] {
        self.group.sign(&group_message(pg, fid, uid))
    }

    /// True if `signature` is such a permission.
    pub fn is_group_given(&self, pg: PgId, fid: Fid, uid: u32, signature: &[u8; 16]) -> bool {
        self.group.verify(&group_message(pg, fid, uid), signature)
    }
}

fn capability_message(capability: &Capability, uid: u32) -> [u8; 32] {
    let mut message = [0; 32];
    message[..8].copy_from_slice(&capability.session.0.to_le_bytes());
    message[8..24].copy_from_slice(&capability.fid.0.to_le_bytes());
    message[24..28].copy_from_slice(&capability.rights.0.to_le_bytes());
    message[28..].copy_from_slice(&uid.to_le_bytes());
    message
}

fn group_message(pg: PgId, fid: Fid, uid: u32) -> [u8; 44] {
    let mut message = [0; 44];
    message[..8].copy_from_slice(&pg.slot.0.to_le_bytes());
    message[8..16].copy_from_slice(&pg.session.0.to_le_bytes());
    message[16..20].copy_from_slice(&pg.sequence.to_le_bytes());
    message[20..24].copy_from_slice(&pg.home.0.to_le_bytes());
    message[24..40].copy_from_slice(&fid.0.to_le_bytes());
    message[40..].copy_from_slice(&uid.to_le_bytes());
    message
}
