//! Connections, requests and bulk transfer.
//!
//! Callers and services see requests with bodies and payloads; how bytes travel is a provider's
//! business. The seam is made for one-sided transfers: a request names the memory that holds its
//! payload and the memory that the answer's payload shall fill; a provider with RDMA lets the
//! server pull and fill these, TCP sends along.

mod seam;

pub use seam::{
    Address, Answer, CallError, CallFuture, Caller, HandleFuture, Incoming, Outgoing, Peer,
    Response, Role, Service, Vitals,
};
