//! Who may ask what (rule 17): the one place that believes a peer.
//!
//! With authentication "none" nothing is proven: what a client says of itself is believed, and its
//! capabilities are looked at, not checked. With munge ([`crate::security`]) each request is judged
//! by the user who its connection has proven to be.

use bb_proto::meta::Credentials;
use bb_proto::{Capability, Code, Failure, Fid, PgId, Rights};
use bb_transport::{Peer, Role};

use crate::context::Shared;
use crate::planted::{self, Planted};

/// User number that nobody has: it means "leave it" to the kernel.
const NOBODY: u32 = u32::MAX;

fn denied(why: impl Into<String>) -> Failure {
    Failure::new(Code::Denied, why)
}

/// Only servers may ask this.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_server(peer: &Peer) -> Result<(), Failure> {
    match peer.role {
        Role::Server => Ok(()),
        Role::Client => Err(denied("only servers ask this")),
    }
}

/// The user of a client's connection, where users are proven at all.
fn proven(shared: &Shared, peer: &Peer) -> Result<Option<u32>, Failure> {
    match (shared.security(), peer.role, peer.proven) {
        (None, ..) | (_, Role::Server, _) => Ok(None),
        (Some(_), Role::Client, Some(proven)) => Ok(Some(proven.uid)),
        (Some(_), Role::Client, None) => Err(denied("this connection has proven nobody")),
    }
}

/// The user whom a new session or operation belongs to.
///
/// # Errors
/// [`Code::Denied`] for a connection without proof where one is needed.
pub fn owner(shared: &Shared, peer: &Peer) -> Result<Option<u32>, Failure> {
    proven(shared, peer)
}

/// What belongs to a user is that user's alone. Root has its own.
///
/// # Errors
/// [`Code::Denied`]; [`Code::NoSession`] for what began before users were proven.
pub fn check_session(shared: &Shared, owner: Option<u32>, peer: &Peer) -> Result<(), Failure> {
    let Some(uid) = proven(shared, peer)? else { return Ok(()) };
    match owner {
        Some(owner) if owner == uid => Ok(()),
        Some(_) => Err(denied("the session belongs to another user")),
        None => Err(Failure::new(Code::NoSession, "the session is nobody's")),
    }
}

/// An operation can be looked at and cancelled by who started it, and by root.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_operation(shared: &Shared, owner: Option<u32>, peer: &Peer) -> Result<(), Failure> {
    match proven(shared, peer)? {
        None | Some(0) => Ok(()),
        uid if uid == owner => Ok(()),
        Some(_) => Err(denied("the operation belongs to another user")),
    }
}

/// As whom a request acts on the backing file system. Root acts for others (a mount does) and is
/// believed. Everybody else acts as who it is, in a group that it is in, and in all the groups that
/// this server knows: a claim to be in fewer would get around a file that denies them something.
///
/// # Errors
/// EPERM for a user or group of somebody else's; [`Code::Busy`] where the groups can't be had.
pub async fn acting(
    shared: &Shared,
    claimed: Credentials,
    peer: &Peer,
) -> Result<Credentials, Failure> {
    let uid = match proven(shared, peer)? {
        None | Some(0) => return Ok(claimed),
        Some(uid) => uid,
    };
    if claimed.uid != uid {
        let why = format!("user {uid} asks in the name of user {}", claimed.uid);
        return Err(Failure::errno(libc::EPERM, why));
    }
    let Some(security) = shared.security() else { return Ok(claimed) };
    let known = security.groups().groups_of(uid).await;
    let known = known.map_err(|why| Failure::new(Code::Busy, why))?;
    let mut groups = known.groups.clone();
    groups.extend(peer.proven.map(|proven| proven.gid));
    groups.sort_unstable();
    groups.dedup();
    if !groups.contains(&claimed.gid) {
        let why = format!("user {uid} is not in group {} on this server", claimed.gid);
        return Err(Failure::errno(libc::EPERM, why));
    }
    Ok(Credentials { groups, ..claimed })
}

/// Nobody gives itself the rights of a server: they are believed to servers only. And nobody makes
/// a capability: it has the signature that it got at open, for this bearer.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_claim(shared: &Shared, capability: &Capability, peer: &Peer) -> Result<(), Failure> {
    if capability.rights.allows(Rights::SERVER) {
        return check_server(peer);
    }
    match (proven(shared, peer)?, shared.security()) {
        (Some(uid), Some(security)) if !security.signer().is_given(capability, uid) => {
            Err(denied("the capability was not given to this user"))
        }
        _ => Ok(()),
    }
}

/// Checks that a capability permits what its bearer wants.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_capability(
    shared: &Shared,
    capability: &Capability,
    wanted: Rights,
    peer: &Peer,
) -> Result<(), Failure> {
    check_claim(shared, capability, peer)?;
    if capability.rights.allows(wanted) || planted::is(Planted::IgnoreCapability) {
        Ok(())
    } else {
        Err(denied("the capability does not permit this"))
    }
}

/// Checks that the blocks of a group may be read: by the session that wrote them, with a capability
/// of the file; by everybody else with the permission that came with the file's fragment map, in
/// the place of the signature.
///
/// # Errors
/// [`Code::Denied`].
pub fn check_block_read(
    shared: &Shared,
    capability: &Capability,
    pg: PgId,
    peer: &Peer,
) -> Result<(), Failure> {
    if let (Some(uid), Some(security)) = (proven(shared, peer)?, shared.security())
        && security.signer().is_group_given(pg, capability.fid, uid, &capability.signature)
        && !capability.rights.allows(Rights::SERVER)
    {
        return Ok(());
    }
    check_claim(shared, capability, peer)?;
    match proven(shared, peer)? {
        Some(_) if capability.session != pg.session => {
            Err(denied("the group may hold another file's bytes"))
        }
        _ => Ok(()),
    }
}

/// A capability as it is handed out, to a session of `owner`.
pub fn signed(shared: &Shared, capability: Capability, owner: Option<u32>) -> Capability {
    let Some(security) = shared.security() else { return capability };
    let signature = security.signer().sign(&capability, owner.unwrap_or(NOBODY));
    Capability { signature, ..capability }
}

/// Permission to read a group of a file, for who asks for its fragments; nothing where none is
/// needed.
pub fn group_permission(shared: &Shared, pg: PgId, fid: Fid, peer: &Peer) -> Option<[u8; 16]> {
    let (security, uid) = (shared.security()?, peer.proven?.uid);
    Some(security.signer().sign_group(pg, fid, uid))
}

#[cfg(test)]
#[path = "rights_tests.rs"]
mod tests;
