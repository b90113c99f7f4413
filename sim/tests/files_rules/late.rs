//! What comes late, and what a look misses.

use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{Credentials, Namespace, NamespaceOp, encode};
use bb_proto::{ClientSequence, Kind};
use bb_sim::bfs::BfsFaults;

use super::world::{Client, World, at, open, rename, simulate};
use super::{NEW, SEEDS};

/// A request with which everything up to `acknowledged` is known to have arrived.
fn request(client: &Client<'_>, acknowledged: ClientSequence, op: NamespaceOp) -> Vec<u8> {
    let uid = client.uid;
    encode(&Namespace {
        session: client.session.0,
        sequence: client.number(),
        acknowledged: acknowledged.0,
        credentials: Credentials { uid, gid: uid, groups: vec![], umask: 0 },
        owner: None,
        op: Some(op),
    })
}

#[test]
fn rule_8_a_late_copy_of_what_was_acknowledged_is_not_carried_out() {
    simulate(12, |world: Rc<World>| async move {
        let client = world.session(1).await;
        client.open("/other", NEW).await.expect("create");
        let number = client.number();
        let unlink = client.request(number, NamespaceOp::Unlink(at("/f")));
        let ask = |body: &Vec<u8>| world.ask(Kind::Namespace, client.home(), body.clone());
        assert_eq!(ask(&unlink).await.expect_err("is not there").errno, libc::ENOENT);
        // Neither is logged: what forgets the answer, and the answer that is forgotten.
        let open_other = request(&client, ClientSequence(number), open("/other", libc::O_RDWR));
        ask(&open_other).await.expect("opens");
        world.session(2).await.open("/f", NEW).await.expect("create");
        ask(&unlink).await.expect_err("late");
        assert!(world.bfs.files().contains_key(&b"/f"[..]), "a late copy has removed it");
    });
}

#[test]
fn rule_8_a_file_that_a_rename_replaces_is_dropped_also_where_the_look_before_missed_it() {
    for seed in 0..SEEDS {
        simulate(seed, |world: Rc<World>| async move {
            world.rt.sleep(world.grace.get()).await;
            let client = world.session(1).await;
            client.open("/a", NEW).await.expect("create");
            let (fid, handle) = client.open("/b", NEW).await.expect("create");
            client.write(fid, &handle, 1_000).await.expect("write");
            client.tell(fid, &handle, 1_000, Kind::FileClose).await.expect("close");
            // Rarely enough that several looks in a row do not all miss it: then the operation stays in
            // doubt, and is settled by a look, too.
            world.bfs.set_faults(BfsFaults { race_ppm: 150_000, ..BfsFaults::default() });
            // Its look for the old name may miss that one, too.
            while let Err(failure) = client.op(rename("/a", "/b")).await {
                assert_eq!(failure.errno, libc::ENOENT);
            }
            world.bfs.set_faults(BfsFaults::default());
            world.rt.sleep(Duration::from_secs(5)).await;
            assert!(!world.file(fid).await.known, "seed {seed}: its data stays for ever");
        });
    }
}
