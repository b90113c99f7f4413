//! The handshake: versions, cluster, who is who, authentication, the first payload window.
//!
//! The connecting side sends Hello. The accepting side answers with Hello; while its method of
//! authentication wants more, its answers lack the reply flag, and each is followed by an Auth from
//! the connecting side. The answer with the reply flag ends the handshake; one with the error flag
//! refuses the connection and says why.

use std::rc::Rc;

use bb_proto::meta::Hello;
use bb_proto::{Code, FLAG_ERROR, FLAG_REPLY, Failure, Header, Kind, meta};

use crate::Role;
use crate::auth::{self, AuthError, Method, Proven, Received, Step};
use crate::link::{Frame, Lane, Limits, Link, LinkError};

/// Oldest version of the protocol that this program speaks.
pub const VERSION_MIN: u32 = 1;
/// Newest one.
pub const VERSION_MAX: u32 = 1;

/// An exchange that has taken so many steps goes in circles.
const AUTH_STEPS_MAX: usize = 16;

/// What a process says of itself.
#[derive(Clone)]
pub struct Identity {
    /// What it is.
    pub role: Role,
    /// Its name, for people.
    pub host: Rc<str>,
    /// UUID of its cluster; empty for a client that has not learned it yet.
    pub cluster: Vec<u8>,
    /// Incarnation of a server's process, else 0.
    pub incarnation: u64,
    /// How it proves itself and has others prove themselves.
    pub auth: Rc<dyn Method>,
}

/// What the other side said.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) role: Role,
    pub(crate) host: Rc<str>,
    pub(crate) lane: Lane,
    /// Who it is, where the method of authentication says so.
    pub(crate) proven: Option<Proven>,
    /// Window granted to the connecting side.
    pub(crate) credit_bytes: u32,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error(transparent)]
    Link(#[from] LinkError),
    /// One side does not want the other. Trying again does not help.
    #[error("{0}")]
    Rejected(String),
    /// The accepting side cannot judge now. Trying again may help.
    #[error("{0}")]
    NotNow(String),
}

impl From<AuthError> for HelloError {
    fn from(error: AuthError) -> Self {
        // What is missing on our own machine stays missing for whoever waits for this connection.
        let (AuthError::Refused(why) | AuthError::NotNow(why)) = error;
        Self::Rejected(why)
    }
}

fn rejected(why: impl Into<String>) -> HelloError {
    HelloError::Rejected(why.into())
}

fn frame(kind: Kind, flags: u8, lane: Lane, body: Vec<u8>) -> Result<Frame, LinkError> {
    let mut header = Header::request(kind, lane.class());
    header.flags = flags;
    if body.len() > Limits::HANDSHAKE.body_bytes as usize {
        return Err(LinkError::Protocol("authentication step is too long"));
    }
    Frame::new(header, body, Vec::new()).ok_or(LinkError::Protocol("impossible frame"))
}

fn hello(identity: &Identity, version: (u32, u32), auth: Vec<u8>, credit_bytes: u32) -> Vec<u8> {
    let mut host: String = identity.host.to_string();
    let end = (0..=host.len().min(255)).rev().find(|at| host.is_char_boundary(*at)).unwrap_or(0);
    host.truncate(end);
    meta::encode(&Hello {
        version_min: version.0,
        version_max: version.1,
        role: match identity.role {
            Role::Client => 1,
            Role::Server => 2,
        },
        cluster: identity.cluster.clone(),
        host,
        auth_method: identity.auth.name().to_owned(),
        auth,
        credit_bytes,
        incarnation: identity.incarnation,
    })
}

fn read_hello(body: &[u8]) -> Result<(Hello, Role), LinkError> {
    let hello: Hello =
        meta::decode(body).map_err(|_| LinkError::Protocol("Hello does not decode"))?;
    let role = match hello.role {
        1 => Role::Client,
        2 => Role::Server,
        _ => return Err(LinkError::Protocol("Hello with an unknown role")),
    };
    Ok((hello, role))
}

/// The connecting side.
pub(crate) async fn initiate(
    link: &mut Link,
    lane: Lane,
    identity: &Identity,
) -> Result<Agreed, HelloError> {
    let mut exchange = identity.auth.initiate();
    let role = identity.role;
    let mut method = identity.auth.name().to_owned();
    let mut cluster = Vec::new();
    let none = Received { bytes: &[], method: &method, cluster: &cluster, role };
    let (Step::Continue(first) | Step::Done(first)) = exchange.step(none).await?;
    let body = hello(identity, (VERSION_MIN, VERSION_MAX), first, 0);
    link.send.send(vec![frame(Kind::Hello, 0, lane, body)?]).await?;
    let mut agreed = None;
    for _ in 0..AUTH_STEPS_MAX {
        let (header, body) = link.recv.head(Limits::HANDSHAKE).await?;
        if header.flags & FLAG_ERROR != 0 {
            let failure: Failure =
                meta::decode(&body).map_err(|_| LinkError::Protocol("refusal does not decode"))?;
            return Err(match failure.kind() {
                Code::Busy => HelloError::NotNow(failure.to_string()),
                _ => rejected(failure.to_string()),
            });
        }
        let bytes = match (header.kind, &agreed) {
            (Kind::Hello, None) => {
                let (answer, role) = read_hello(&body)?;
                check_answer(&answer, identity)?;
                (method, cluster) = (answer.auth_method, answer.cluster);
                agreed = Some(Agreed {
                    role,
                    host: answer.host.into(),
                    lane,
                    proven: None,
                    credit_bytes: answer.credit_bytes,
                });
                answer.auth
            }
            (Kind::Auth, Some(_)) => body,
            _ => return Err(LinkError::Protocol("handshake out of order").into()),
        };
        let received = Received { bytes: &bytes, method: &method, cluster: &cluster, role };
        let step = exchange.step(received).await?;
        match (header.is_reply(), step) {
            (true, Step::Done(rest)) if rest.is_empty() => {
                let agreed = agreed.ok_or_else(|| rejected("no Hello"))?;
                return Ok(Agreed { proven: exchange.proven(), ..agreed });
            }
            (true, _) => return Err(rejected("the server ended authentication early")),
            (false, Step::Continue(bytes) | Step::Done(bytes)) => {
                link.send.send(vec![frame(Kind::Auth, 0, lane, bytes)?]).await?;
            }
        }
    }
    Err(rejected("authentication does not end"))
}

fn check_answer(answer: &Hello, identity: &Identity) -> Result<(), HelloError> {
    if !(VERSION_MIN..=VERSION_MAX).contains(&answer.version_max) {
        return Err(rejected(format!(
            "the server chose protocol version {}; this program speaks {VERSION_MIN} to \
             {VERSION_MAX}",
            answer.version_max
        )));
    }
    if !identity.cluster.is_empty() && identity.cluster != answer.cluster {
        return Err(rejected("the server belongs to another cluster"));
    }
    if !identity.auth.accepts(&answer.auth_method) {
        let (theirs, ours) = (&answer.auth_method, identity.auth.name());
        return Err(rejected(format!("the server authenticates with {theirs:?}, not {ours:?}")));
    }
    Ok(())
}

/// The accepting side. `window` says how much payload to grant on a lane.
pub(crate) async fn respond(
    link: &mut Link,
    identity: &Identity,
    window: impl Fn(Lane) -> u32,
) -> Result<Agreed, HelloError> {
    let (header, body) = link.recv.head(Limits::HANDSHAKE).await?;
    if header.kind != Kind::Hello || header.flags != 0 {
        return Err(LinkError::Protocol("connection does not begin with Hello").into());
    }
    let lane = Lane::of(header.class);
    let (asked, role) = read_hello(&body)?;
    let version = match check_request(&asked, role, identity) {
        Ok(version) => version,
        Err(why) => return refuse(link, lane, why).await,
    };
    let mut exchange = identity.auth.respond();
    let credit_bytes = window(lane);
    let agreed = Agreed { role, host: asked.host.into(), lane, proven: None, credit_bytes };
    let mut bytes = asked.auth;
    let mut kind = Kind::Hello;
    for _ in 0..AUTH_STEPS_MAX {
        let (method, cluster) = (identity.auth.name(), identity.cluster.as_slice());
        let step = exchange.step(Received { bytes: &bytes, method, cluster, role }).await;
        let (done, step) = match step {
            Ok(Step::Done(bytes)) => (true, bytes),
            Ok(Step::Continue(bytes)) => (false, bytes),
            Err(AuthError::Refused(why)) => return refuse(link, lane, why).await,
            Err(AuthError::NotNow(why)) => return refuse_as(link, lane, Code::Busy, why).await,
        };
        let body = match kind {
            Kind::Hello => hello(identity, (VERSION_MIN, version), step, credit_bytes),
            _ => step,
        };
        let flags = if done { FLAG_REPLY } else { 0 };
        link.send.send(vec![frame(kind, flags, lane, body)?]).await?;
        if done {
            return Ok(Agreed { proven: exchange.proven(), ..agreed });
        }
        let (header, body) = link.recv.head(Limits::HANDSHAKE).await?;
        if header.kind != Kind::Auth || header.flags != 0 {
            return Err(LinkError::Protocol("handshake out of order").into());
        }
        bytes = body;
        kind = Kind::Auth;
    }
    refuse(link, lane, "authentication does not end".into()).await
}

fn check_request(asked: &Hello, role: Role, identity: &Identity) -> Result<u32, String> {
    let version = asked.version_max.min(VERSION_MAX);
    if version < VERSION_MIN || version < asked.version_min {
        return Err(format!(
            "protocol versions {} to {} are not spoken here, only {VERSION_MIN} to {VERSION_MAX}",
            asked.version_min, asked.version_max
        ));
    }
    let stranger = asked.cluster != identity.cluster;
    if stranger && (role == Role::Server || !asked.cluster.is_empty()) {
        return Err("this server belongs to another cluster".into());
    }
    let chosen_here = role == Role::Client && asked.auth_method == auth::AUTO;
    if asked.auth_method != identity.auth.name() && !chosen_here {
        return Err(format!("authentication method {:?} is wanted", identity.auth.name()));
    }
    Ok(version)
}

async fn refuse<T>(link: &Link, lane: Lane, why: String) -> Result<T, HelloError> {
    refuse_as(link, lane, Code::Unsupported, why).await
}

async fn refuse_as<T>(link: &Link, lane: Lane, code: Code, why: String) -> Result<T, HelloError> {
    let body = meta::encode(&Failure::new(code, why.clone()));
    link.send.send(vec![frame(Kind::Hello, FLAG_REPLY | FLAG_ERROR, lane, body)?]).await?;
    Err(HelloError::Rejected(why))
}
