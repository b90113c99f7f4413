//! Rule 17 where users are proven: what is forged, somebody else's, or claimed is refused.

use std::cell::Cell;
use std::rc::Rc;

use bb_cluster::ClusterMap;
use bb_proto::{Incarnation, NodeId, PartitionId, SessionId, Tick};
use bb_runtime::Executor;
use bb_transport::Address;
use bb_transport::auth::{ClusterKey, KEY_BYTES, Proven};

use super::*;
use crate::security::{GroupDatabase, GroupsFuture, Secured, UserGroups};

const USER: u32 = 1000;
const OTHER: u32 = 1001;
const FID: Fid = Fid(7);

/// Everybody but root is in group 50 and one of their own number.
struct Fake {
    works: Rc<Cell<bool>>,
}

impl GroupDatabase for Fake {
    fn groups_of(&self, uid: u32) -> GroupsFuture {
        let answer = if self.works.get() {
            Ok(Rc::new(UserGroups { groups: vec![uid, 50] }))
        } else {
            Err("it hangs".to_owned())
        };
        Box::pin(std::future::ready(answer))
    }
}

struct World {
    executor: Executor,
    shared: Shared,
    database_works: Rc<Cell<bool>>,
}

impl World {
    fn new(key: Option<u8>) -> Self {
        let executor = Executor::simulated(1);
        let map = ClusterMap { cluster: vec![3; 16], ..ClusterMap::default() };
        let (node, address) = (NodeId(1), Address::from("node1"));
        let shared = Shared::new(&executor.rt(), node, address, Incarnation(1), map, Tick(1));
        let database_works = Rc::new(Cell::new(true));
        if let Some(byte) = key {
            let groups = Rc::new(Fake { works: database_works.clone() });
            shared.secure(Secured { key: ClusterKey::new([byte; KEY_BYTES]), groups });
        }
        Self { executor, shared, database_works }
    }

    fn act(&self, claimed: &Credentials, peer: &Peer) -> Result<Credentials, Failure> {
        self.executor.block_on(acting(&self.shared, claimed.clone(), peer))
    }
}

fn peer(role: Role, uid: Option<u32>) -> Peer {
    let proven = uid.map(|uid| Proven { uid, gid: 60 });
    Peer { connection: 1, role, host: "host".into(), proven }
}

fn user(uid: u32) -> Peer {
    peer(Role::Client, Some(uid))
}

fn capability() -> Capability {
    Capability { session: SessionId(5), fid: FID, rights: Rights::READ, signature: [0; 16] }
}

fn pg(session: u64) -> PgId {
    PgId { slot: Tick(9), session: SessionId(session), sequence: 3, home: PartitionId(1) }
}

fn is_denied(result: Result<(), Failure>) -> bool {
    result.is_err_and(|failure| failure.kind() == Code::Denied)
}

#[test]
fn rule_17_a_capability_that_was_changed_or_not_signed_or_given_to_another_is_refused() {
    let shared = World::new(Some(1)).shared;
    let given = signed(&shared, capability(), Some(USER));
    let check = |capability: &Capability, peer: &Peer| {
        check_capability(&shared, capability, Rights::READ, peer)
    };
    check(&given, &user(USER)).unwrap();
    assert!(is_denied(check(&capability(), &user(USER))), "no signature");
    for changed in [
        Capability { session: SessionId(6), ..given },
        Capability { fid: Fid(8), ..given },
        Capability { rights: Rights(3), ..given },
        Capability { rights: Rights::SERVER, ..given },
        Capability { signature: [1; 16], ..given },
        signed(&World::new(Some(2)).shared, capability(), Some(USER)),
        signed(&World::new(None).shared, capability(), Some(USER)),
        signed(&shared, capability(), None),
    ] {
        assert!(is_denied(check(&changed, &user(USER))), "{changed:?}");
    }
    assert!(is_denied(check(&given, &user(OTHER))), "stolen");
    assert!(is_denied(check(&given, &user(0))), "root has its own sessions");
    assert!(is_denied(check(&given, &peer(Role::Client, None))), "nobody");
    check(&Capability::server(FID), &peer(Role::Server, Some(0))).unwrap();
    assert!(is_denied(check_capability(&shared, &given, Rights::WRITE, &user(USER))));
}

#[test]
fn rule_17_blocks_of_a_group_are_read_with_its_files_permission_or_by_the_session_that_wrote_them()
{
    let shared = World::new(Some(1)).shared;
    let given = signed(&shared, capability(), Some(USER));
    let check =
        |capability: &Capability, pg, uid| check_block_read(&shared, capability, pg, &user(uid));
    check(&given, pg(5), USER).unwrap();
    // Its own file's capability says nothing of the groups of other sessions.
    assert!(is_denied(check(&given, pg(6), USER)));
    let permit = |pg, fid, uid| {
        let signature = group_permission(&shared, pg, fid, &user(uid)).expect("one is needed");
        Capability { signature, ..capability() }
    };
    check(&permit(pg(6), FID, USER), pg(6), USER).unwrap();
    for (other, wanted, uid) in [
        (permit(pg(6), FID, USER), pg(7), USER),
        (permit(pg(6), FID, OTHER), pg(6), USER),
        (permit(pg(6), FID, USER), pg(6), OTHER),
        (permit(pg(6), Fid(8), USER), pg(6), USER),
    ] {
        assert!(is_denied(check(&other, wanted, uid)));
    }
    // And it permits nothing else.
    let reading = check_capability(&shared, &permit(pg(5), FID, USER), Rights::READ, &user(USER));
    assert!(is_denied(reading));
}

#[test]
fn rule_17_a_session_is_its_users_alone() {
    let shared = World::new(Some(1)).shared;
    check_session(&shared, Some(USER), &user(USER)).unwrap();
    for uid in [OTHER, 0] {
        assert!(is_denied(check_session(&shared, Some(USER), &user(uid))));
    }
    let before = check_session(&shared, None, &user(USER)).unwrap_err();
    assert_eq!(before.kind(), Code::NoSession, "the client opens another");
    assert_eq!(owner(&shared, &user(USER)), Ok(Some(USER)));
    assert!(owner(&shared, &peer(Role::Client, None)).is_err());
    check_operation(&shared, Some(USER), &user(USER)).unwrap();
    check_operation(&shared, Some(USER), &user(0)).unwrap();
    assert!(is_denied(check_operation(&shared, Some(USER), &user(OTHER))));
    assert!(is_denied(check_operation(&shared, None, &user(OTHER))));
}

#[test]
fn rule_17_a_claim_to_be_somebody_else_or_in_a_group_of_others_is_refused() {
    let world = World::new(Some(1));
    let claim = |uid, gid| Credentials { uid, gid, groups: vec![0, 7], umask: 0o27 };
    for gid in [USER, 50, 60] {
        let acting = world.act(&claim(USER, gid), &user(USER)).unwrap();
        assert_eq!(acting, Credentials { groups: vec![50, 60, USER], ..claim(USER, gid) });
    }
    // Groups left out do not help against a file that denies them something.
    let fewer = Credentials { groups: vec![], ..claim(USER, 60) };
    assert_eq!(world.act(&fewer, &user(USER)).unwrap().groups, [50, 60, USER]);
    for (uid, gid) in [(0, 0), (OTHER, OTHER), (USER, 0), (USER, 7)] {
        let refused = world.act(&claim(uid, gid), &user(USER)).unwrap_err();
        assert_eq!(refused.errno, libc::EPERM, "{refused}");
    }
    assert_eq!(world.act(&claim(OTHER, 7), &user(0)), Ok(claim(OTHER, 7)), "root acts for others");
    world.database_works.set(false);
    let busy = world.act(&claim(USER, USER), &user(USER)).unwrap_err();
    assert_eq!(busy.kind(), Code::Busy);
}

#[test]
fn without_proofs_clients_are_believed_but_not_that_they_are_servers() {
    let world = World::new(None);
    let trusted = peer(Role::Client, None);
    let claim = Credentials { uid: 0, gid: 0, groups: vec![4], umask: 0 };
    assert_eq!(world.act(&claim, &trusted), Ok(claim.clone()));
    check_session(&world.shared, None, &trusted).unwrap();
    check_capability(&world.shared, &capability(), Rights::READ, &trusted).unwrap();
    assert_eq!(signed(&world.shared, capability(), None), capability());
    assert_eq!(group_permission(&world.shared, pg(1), FID, &trusted), None);
    assert!(is_denied(check_claim(&world.shared, &Capability::server(FID), &trusted)));
}
