//! Counts what servers are asked, between the network and the unchanged server.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bb_proto::{HEADER_BYTES, Kind};
use bb_transport::{HandleFuture, Incoming, Peer, Role, Service, Vitals};

/// Requests of one kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Requests.
    pub requests: u64,
    /// Those among them that were refused.
    pub refused: u64,
    /// Bytes of requests and replies, with headers.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.bytes += other.bytes;
    }

    const fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            refused: self.refused - before.refused,
            bytes: self.bytes - before.bytes,
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum From {
    /// A client.
    Client,
    /// Another server.
    Server,
    /// The server itself: nothing goes over the network.
    Itself,
}

/// What requests are told apart by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Class {
    /// Number of the server that is asked.
    pub server: usize,
    /// Who asks.
    pub from: From,
    /// What for.
    pub kind: Kind,
    /// The partition or device.
    pub target: u32,
}

/// All that was asked.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Traffic {
    tallies: BTreeMap<Class, Tally>,
    /// Refusals by what was asked, and why not.
    refusals: BTreeMap<(Kind, String), u64>,
}

impl Traffic {
    /// What came on top of `before`.
    pub fn since(&self, before: &Self) -> Self {
        let tally = |(class, tally): (&Class, &Tally)| {
            let before = before.tallies.get(class).copied().unwrap_or_default();
            (*class, tally.since(&before))
        };
        let refusal = |(what, count): (&(Kind, String), &u64)| {
            (what.clone(), count - before.refusals.get(what).copied().unwrap_or(0))
        };
        Self {
            tallies: self.tallies.iter().map(tally).filter(|(_, t)| t.requests > 0).collect(),
            refusals: self.refusals.iter().map(refusal).filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Refusals by what was asked, and why not.
    pub fn refusals(&self) -> impl Iterator<Item = (Kind, &str, u64)> {
        self.refusals.iter().map(|((kind, why), count)| (*kind, why.as_str(), *count))
    }

    /// Sum of the classes that `wanted` says.
    pub fn sum(&self, wanted: impl Fn(&Class) -> bool) -> Tally {
        let mut sum = Tally::default();
        self.tallies
            .iter()
            .filter(|(class, _)| wanted(class))
            .for_each(|(_, tally)| sum.add(tally));
        sum
    }

    /// Sums by what `key` says, where it says something.
    pub fn by<K: Ord>(&self, key: impl Fn(&Class) -> Option<K>) -> BTreeMap<K, Tally> {
        let mut sums: BTreeMap<K, Tally> = BTreeMap::new();
        for (class, tally) in &self.tallies {
            if let Some(key) = key(class) {
                sums.entry(key).or_default().add(tally);
            }
        }
        sums
    }
}

/// A server, and who counts what it is asked.
pub struct Tap {
    /// The server.
    pub service: Rc<dyn Service>,
    /// Its number.
    pub server: usize,
    /// True where it asks itself.
    pub local: bool,
    /// The counts.
    pub traffic: Rc<RefCell<Traffic>>,
}

fn len(bytes: usize) -> u64 {
    bytes as u64
}

impl Service for Tap {
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture {
        let from = match (self.local, request.peer.role) {
            (true, _) => From::Itself,
            (false, Role::Client) => From::Client,
            (false, Role::Server) => From::Server,
        };
        let header = &request.header;
        let class = Class { server: self.server, from, kind: header.kind, target: header.target };
        let asked = len(2 * HEADER_BYTES) + u64::from(header.body_len + header.payload_len);
        let answer = self.service.clone().handle(request);
        let traffic = self.traffic.clone();
        Box::pin(async move {
            let answer = answer.await;
            let mut tally = Tally { requests: 1, refused: 0, bytes: asked };
            match &answer {
                Ok(response) => {
                    let payload: usize = response.payload.iter().map(|part| part.len()).sum();
                    tally.bytes += len(response.body.len() + payload);
                }
                Err(failure) => {
                    tally.refused = 1;
                    let why = (class.kind, format!("{:?}", failure.kind()));
                    *traffic.borrow_mut().refusals.entry(why).or_default() += 1;
                }
            }
            traffic.borrow_mut().tallies.entry(class).or_default().add(&tally);
            answer
        })
    }

    fn vitals(&self, kind: Kind, target: u32) -> Vitals {
        self.service.vitals(kind, target)
    }

    fn disconnected(&self, peer: &Peer) {
        self.service.disconnected(peer);
    }
}
