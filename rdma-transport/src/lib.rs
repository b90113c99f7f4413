//! Connections, requests and bulk transfer.
//!
//! Callers and services see requests with bodies and payloads; how bytes travel is a provider's
//! business. The seam is made for one-sided transfers: a request names the memory that holds its
//! payload and the memory that the answer's payload shall fill; a provider with RDMA lets the
//! server pull and fill these, TCP sends along.

pub mod auth;
mod budget;
mod client;
mod codec;
mod complaints;
mod conn;
mod flag;
mod hello;
pub mod link;
mod local;
mod outbox;
#[cfg(feature = "planted")]
pub mod planted;
pub mod relay;
mod seam;
mod server;
mod serving;
pub mod sim;
mod tcp;

pub use budget::Part;
pub use client::{Account, Client, ClientConfig, ClientStats};
pub use codec::{Decoder, decode_stream};
pub use complaints::Complaints;
pub use hello::{Identity, VERSION_MAX, VERSION_MIN};
pub use server::{Server, ServerConfig, ServerStats};
pub use tcp::{Handed, Taker, Tcp, hand_over};

pub use seam::{
    Address, Answer, AnswerFuture, Answered, CallError, CallFuture, Caller, HandleFuture, Incoming,
    Outgoing, Peer, Response, Role, Service, Vitals,
};
