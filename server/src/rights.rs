//! Who may ask what (rule 17): the one place that believes a peer.

use bb_proto::{Capability, Code, Failure, Rights};
use bb_transport::{Peer, Role};

use crate::planted::{self, Planted};

/// Only servers may ask this.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_server(peer: &Peer) -> Result<(), Failure> {
    match peer.role {
        Role::Server => Ok(()),
        Role::Client => Err(Failure::new(Code::Denied, "only servers ask this")),
    }
}

/// Nobody gives itself the rights of a server: they are believed to servers only.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_claim(capability: &Capability, peer: &Peer) -> Result<(), Failure> {
    if capability.rights.allows(Rights::SERVER) { check_server(peer) } else { Ok(()) }
}

/// Checks that a capability permits what its bearer wants.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_capability(
    capability: &Capability,
    wanted: Rights,
    peer: &Peer,
) -> Result<(), Failure> {
    check_claim(capability, peer)?;
    if capability.rights.allows(wanted) || planted::is(Planted::IgnoreCapability) {
        Ok(())
    } else {
        Err(Failure::new(Code::Denied, "the capability does not permit this"))
    }
}
