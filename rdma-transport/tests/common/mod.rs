//! A service whose answers can be checked, and the processes around it.
#![allow(dead_code, clippy::allow_attributes, reason = "each test uses a part of it")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{Code, Failure, Kind, ServiceClass, Tick};
use bb_runtime::{Buf, BufMut, BufPool, Rt};
use bb_transport::auth::NoAuth;
use bb_transport::relay::{self, Host, Relay};
use bb_transport::{
    HandleFuture, Identity, Incoming, Outgoing, Peer, Response, Role, Service, Vitals,
};

/// What a test asks for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub id: u64,
    pub put_len: u32,
    pub get_len: u32,
    pub delay_ms: u32,
    pub refuse: bool,
}

impl Ask {
    pub fn new(id: u64) -> Self {
        Self { id, put_len: 0, get_len: 0, delay_ms: 0, refuse: false }
    }

    pub fn body(self) -> Vec<u8> {
        let mut body = self.id.to_le_bytes().to_vec();
        body.extend(self.put_len.to_le_bytes());
        body.extend(self.get_len.to_le_bytes());
        body.extend(self.delay_ms.to_le_bytes());
        body.push(u8::from(self.refuse));
        body
    }

    pub fn parse(body: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("4 bytes"));
        Self {
            id: u64::from_le_bytes(body[..8].try_into().expect("8 bytes")),
            put_len: word(8),
            get_len: word(12),
            delay_ms: word(16),
            refuse: body[20] != 0,
        }
    }

    pub fn request(self, pool: &BufPool, deadline: Duration) -> Option<Outgoing> {
        let mut request = Outgoing::new(Kind::Ping, ServiceClass::Client, deadline, self.body());
        if self.put_len > 0 {
            let mut buf = pool.try_alloc(self.put_len as usize)?;
            fill(&mut buf, self.id);
            let buf = buf.freeze();
            let cut = buf.len() / 3;
            request = request.with_payload(vec![buf.slice(..cut), buf.slice(cut..)]);
        }
        if self.get_len > 0 {
            request = request.with_sink(pool.try_alloc(self.get_len as usize)?);
        }
        Some(request)
    }
}

/// Writes a pattern that belongs to `id`.
pub fn fill(bytes: &mut [u8], id: u64) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        word.copy_from_slice(&pattern(id, at)[..word.len()]);
    }
}

/// True if `bytes` are the pattern of `id`.
pub fn holds(bytes: &[u8], id: u64) -> bool {
    bytes.chunks(8).enumerate().all(|(at, word)| *word == pattern(id, at)[..word.len()])
}

fn pattern(id: u64, at: usize) -> [u8; 8] {
    (id ^ at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()
}

/// Echoes; checks every request that reaches it.
pub struct Echo {
    pub rt: Rt,
    pub pool: BufPool,
    pub seen: RefCell<BTreeMap<u64, u32>>,
    pub running: Cell<u64>,
    pub running_max: Cell<u64>,
    pub disconnected: Cell<u64>,
    pub peers: RefCell<Vec<Rc<Peer>>>,
}

impl Echo {
    pub fn new(rt: &Rt, pool: &BufPool) -> Rc<Self> {
        Rc::new(Self {
            rt: rt.clone(),
            pool: pool.clone(),
            seen: RefCell::default(),
            running: Cell::new(0),
            running_max: Cell::new(0),
            disconnected: Cell::new(0),
            peers: RefCell::default(),
        })
    }
}

struct Running(Rc<Echo>);
impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
    }
}

impl Service for Echo {
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture {
        Box::pin(async move {
            let ask = Ask::parse(&request.body);
            self.running.set(self.running.get() + 1);
            self.running_max.set(self.running_max.get().max(self.running.get()));
            let _running = Running(self.clone());
            *self.seen.borrow_mut().entry(ask.id).or_default() += 1;
            self.peers.borrow_mut().push(request.peer.clone());
            let payload: &[u8] = request.payload.as_deref().unwrap_or(&[]);
            assert_eq!(payload.len(), ask.put_len as usize, "the payload arrives whole");
            assert!(holds(payload, ask.id), "no request is delivered corrupted");
            if let Some(payload) = &request.payload {
                assert_eq!(payload.as_ptr().addr() % 4096, 0, "a device can write from it");
            }
            if ask.delay_ms > 0 {
                self.rt.sleep(Duration::from_millis(u64::from(ask.delay_ms))).await;
            }
            if ask.refuse {
                return Err(Failure::new(Code::Stale, "as asked"));
            }
            let mut payload: Vec<Buf> = Vec::new();
            if ask.get_len > 0 {
                let mut buf: BufMut = self.pool.alloc(ask.get_len as usize).await;
                fill(&mut buf, !ask.id);
                payload.push(buf.freeze());
            }
            Ok(Response { body: request.body, payload })
        })
    }

    fn vitals(&self, _kind: Kind, target: u32) -> Vitals {
        Vitals { tick: Tick(7), load: target, free_mib: 9 }
    }

    fn disconnected(&self, _peer: &Peer) {
        self.disconnected.set(self.disconnected.get() + 1);
    }
}

/// The service as another reactor has it: two tasks of one executor stand for the two reactors.
pub fn relayed(rt: &Rt, service: Rc<dyn Service>) -> (Rc<Relay>, Host) {
    let (relay, host) = relay::pair();
    (Relay::start(rt, relay), Host::start(rt, service, host))
}

pub fn identity(role: Role, host: &str) -> Identity {
    Identity {
        role,
        host: host.into(),
        cluster: vec![1; 16],
        incarnation: 0,
        auth: NoAuth::shared(),
    }
}

pub fn pool(mib: usize) -> BufPool {
    BufPool::new(mib << 20, false).expect("memory")
}
