//! Rule 17 at the handshake, with a munge of our own: who lies is refused.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use futures_util::FutureExt;

use super::*;
use crate::auth::KEY_BYTES;

/// The munged of a site: what was encoded, and by whom.
#[derive(Default)]
struct Site {
    made: RefCell<Vec<(Decoded, u64)>>,
    decoded: RefCell<BTreeSet<usize>>,
    now: Cell<u64>,
    nonces: Cell<u8>,
}

/// As munged has it, in seconds.
const TIME_TO_LIVE: u64 = 300;

/// A process of that site.
struct Process {
    site: Rc<Site>,
    uid: u32,
}

impl Munged for Process {
    fn encode(&self, payload: Vec<u8>) -> MungeFuture<Vec<u8>> {
        let mut made = self.site.made.borrow_mut();
        made.push((Decoded { payload, uid: self.uid, gid: 100 + self.uid }, self.site.now.get()));
        Box::pin(std::future::ready(Ok(vec![u8::try_from(made.len() - 1).unwrap()])))
    }

    fn decode(&self, credential: Vec<u8>) -> MungeFuture<Decoded> {
        let decode = || {
            let refused = |why: &str| MungeError::Refused(why.to_owned());
            let [number] = credential.as_slice() else { return Err(refused("forged")) };
            let number = usize::from(*number);
            let made = self.site.made.borrow();
            let (decoded, at) = made.get(number).ok_or_else(|| refused("forged"))?;
            if self.site.now.get() - at > TIME_TO_LIVE {
                return Err(refused("expired"));
            }
            if !self.site.decoded.borrow_mut().insert(number) {
                return Err(refused("replayed"));
            }
            Ok(decoded.clone())
        };
        Box::pin(std::future::ready(decode()))
    }

    fn nonce(&self) -> Result<[u8; NONCE_BYTES], MungeError> {
        self.site.nonces.set(self.site.nonces.get() + 1);
        Ok([self.site.nonces.get(); NONCE_BYTES])
    }
}

const SERVER: u32 = 0;
const USER: u32 = 1000;
const KEY: ClusterKey = ClusterKey::new([7; KEY_BYTES]);

fn client(site: &Rc<Site>, uid: u32) -> Munge {
    Munge::client(Rc::new(Process { site: site.clone(), uid }), vec![SERVER])
}

fn server(site: &Rc<Site>, uid: u32, key: ClusterKey) -> Munge {
    Munge::server(Rc::new(Process { site: site.clone(), uid }), uid, key)
}

/// Who the sides of a connection are, and what is done to their bytes on the way.
struct Connection<'a> {
    connecting: Munge,
    accepting: Munge,
    role: Role,
    /// Clusters that they believe in.
    clusters: [&'a [u8]; 2],
    /// Changes what the connecting side sends last.
    tamper: &'a dyn Fn(Vec<u8>) -> Vec<u8>,
}

type Both = (Box<dyn Exchange>, Box<dyn Exchange>);

impl Connection<'_> {
    fn new(connecting: Munge, accepting: Munge, role: Role) -> Self {
        Self { connecting, accepting, role, clusters: [b"cluster"; 2], tamper: &|bytes| bytes }
    }

    /// As `hello` does it.
    fn make(&self) -> Result<Both, String> {
        let (mut c, mut a) = (self.connecting.initiate(), self.accepting.respond());
        let step = |exchange: &mut Box<dyn Exchange>, bytes: &[u8], cluster| {
            let received = Received { bytes, method: "munge", cluster, role: self.role };
            exchange.step(received).now_or_never().expect("at once").map_err(|e| e.to_string())
        };
        let [cc, ac] = self.clusters;
        assert_eq!(step(&mut c, &[], &[])?, Step::Continue(Vec::new()));
        let Step::Continue(nonce) = step(&mut a, &[], ac)? else { panic!("no nonce") };
        let Step::Continue(proof) = step(&mut c, &nonce, cc)? else { panic!("no credential") };
        let Step::Done(answer) = step(&mut a, &(self.tamper)(proof), ac)? else {
            panic!("not done")
        };
        assert_eq!(step(&mut c, &answer, cc)?, Step::Done(Vec::new()));
        Ok((c, a))
    }

    fn refusal(&self) -> String {
        self.make().err().expect("refused")
    }
}

#[test]
fn rule_17_uid_and_gid_are_proven_to_the_server_and_the_servers_to_the_client() {
    let site = Rc::new(Site::default());
    let server = server(&site, SERVER, KEY);
    let (c, a) = Connection::new(client(&site, USER), server, Role::Client).make().unwrap();
    assert_eq!(a.proven(), Some(Proven { uid: USER, gid: 100 + USER }));
    assert_eq!(c.proven(), Some(Proven { uid: SERVER, gid: 100 }));
}

#[test]
fn rule_17_forged_replayed_and_old_credentials_are_refused() {
    let site = Rc::new(Site::default());
    let connect = || Connection::new(client(&site, USER), server(&site, SERVER, KEY), Role::Client);
    let forged =
        Connection { tamper: &|bytes| [&bytes[..NONCE_BYTES], b"xyz"].concat(), ..connect() };
    assert_eq!(forged.refusal(), "forged");
    // One that was seen on the network, on another connection.
    let seen = RefCell::new(Vec::new());
    let see = |bytes: Vec<u8>| {
        seen.replace(bytes.clone());
        bytes
    };
    Connection { tamper: &see, ..connect() }.make().unwrap();
    let again = |_| seen.borrow().clone();
    assert_eq!(Connection { tamper: &again, ..connect() }.refusal(), "replayed");
    // The same, towards a machine whose munged has not seen it: it is over another nonce.
    site.decoded.borrow_mut().clear();
    let refusal = Connection { tamper: &again, ..connect() }.refusal();
    assert!(refusal.contains("another connection"), "{refusal}");
    let old = |bytes| {
        site.now.set(site.now.get() + TIME_TO_LIVE + 1);
        bytes
    };
    assert_eq!(Connection { tamper: &old, ..connect() }.refusal(), "expired");
    for len in [0, 1, NONCE_BYTES] {
        let cut = |bytes: Vec<u8>| bytes[..len].to_vec();
        Connection { tamper: &cut, ..connect() }.refusal();
    }
    // The server's own words, sent back to it.
    let mirrored = |bytes: Vec<u8>| {
        let mut mirrored = bytes[..NONCE_BYTES].to_vec();
        let payload = site.made.borrow().last().unwrap().0.payload.clone();
        let mirror = Process { site: site.clone(), uid: SERVER };
        let mut payload = payload;
        payload[8] = ACCEPTING;
        mirrored.extend(mirror.encode(payload).now_or_never().unwrap().unwrap());
        mirrored
    };
    let refusal = Connection { tamper: &mirrored, ..connect() }.refusal();
    assert!(refusal.contains("something else"), "{refusal}");
}

#[test]
fn rule_17_a_credential_for_another_cluster_is_refused() {
    let site = Rc::new(Site::default());
    let connection = Connection {
        clusters: [b"another", b"cluster"],
        ..Connection::new(client(&site, USER), server(&site, SERVER, KEY), Role::Client)
    };
    assert!(connection.refusal().contains("something else"));
}

#[test]
fn rule_17_nobody_but_the_servers_user_with_the_clusters_key_is_believed_to_be_a_server() {
    let site = Rc::new(Site::default());
    let other_key = ClusterKey::new([8; KEY_BYTES]);
    let connect =
        |connecting| Connection::new(connecting, server(&site, SERVER, KEY), Role::Server);
    let (c, a) = connect(server(&site, SERVER, KEY)).make().unwrap();
    assert_eq!(a.proven().map(|p| p.uid), Some(SERVER));
    assert_eq!(c.proven().map(|p| p.uid), Some(SERVER));
    // A user who has got hold of the key; root without it, as on any node of the cluster.
    let refusal = connect(server(&site, USER, KEY)).refusal();
    assert!(refusal.contains("user 1000"), "{refusal}");
    for without in [client(&site, SERVER), server(&site, SERVER, other_key)] {
        let refusal = connect(without).refusal();
        assert!(refusal.contains("cluster keys differ"), "{refusal}");
    }
}

#[test]
fn rule_17_a_client_goes_away_from_what_is_not_run_by_a_servers_user() {
    let site = Rc::new(Site::default());
    let impostor = server(&site, 2000, KEY);
    let refusal = Connection::new(client(&site, USER), impostor, Role::Client).refusal();
    assert!(refusal.contains("user 2000"), "{refusal}");
}
