//! Calls to a service of the same process: no network, no copy of payload.

use std::rc::Rc;

use bb_proto::{Code, Failure, Header};
use bb_runtime::{Buf, BufMut, BufPool, Rt, SLAB_BYTES_MIN};

use crate::client::{Account, ClientConfig, too_long};
use crate::link::Frame;
use crate::{Answer, CallError, Incoming, Outgoing, Peer, Response, Role, Service};

#[derive(Clone)]
pub(crate) struct Local {
    rt: Rt,
    service: Rc<dyn Service>,
    peer: Rc<Peer>,
    account: Account,
    pool: BufPool,
}

impl Local {
    pub(crate) fn new(rt: &Rt, service: Rc<dyn Service>, config: &ClientConfig) -> Self {
        let host = config.identity.host.as_ref().into();
        Self {
            rt: rt.clone(),
            service,
            // No connection of the network has this number.
            peer: Rc::new(Peer { connection: 0, role: Role::Server, host, proven: None }),
            account: config.account,
            pool: config.pool.clone(),
        }
    }

    /// As over a network: the request goes on when its caller stops waiting. The sink can be
    /// dropped then, because nobody but this future ever writes to it.
    pub(crate) async fn call(self, request: Outgoing) -> Result<Answer, CallError> {
        let Outgoing { kind, class, target, fence, deadline, body, payload, sink } = request;
        let header = Header {
            fence,
            target,
            deadline_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX).max(1),
            node: self.account.node,
            uid: self.account.uid,
            job: self.account.job,
            ..Header::request(kind, class)
        };
        let Some(header) =
            Frame::new(header, body.clone(), payload.clone()).map(|frame| *frame.header())
        else {
            return Err(too_long());
        };
        let this = self.clone();
        let work = self.rt.spawn(async move {
            let payload = this.gather(payload).await;
            let peer = this.peer.clone();
            this.service.answer(Incoming { header, body, payload, peer }).await
        });
        let (outcome, vitals) = match self.rt.timeout(deadline, work).await {
            Err(_) => return Err(CallError::TimedOut),
            // The domain is being killed.
            Ok(Err(_)) => return Err(CallError::Disconnected { maybe_sent: true }),
            Ok(Ok(done)) => done,
        };
        let Response { body, payload } =
            outcome.map_err(|failure| CallError::Refused(failure, vitals))?;
        match fill(sink, payload) {
            Ok(payload) => Ok(Answer { body, payload, vitals }),
            Err(failure) => Err(CallError::Refused(failure, vitals)),
        }
    }

    /// One buffer from which a device can write: the caller's own where it is one and aligned.
    async fn gather(&self, mut parts: Vec<Buf>) -> Option<Buf> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len == 0 {
            return None;
        }
        if parts.len() == 1 && parts[0].as_ptr().addr().is_multiple_of(SLAB_BYTES_MIN) {
            return parts.pop();
        }
        let mut whole = self.pool.alloc(len).await;
        copy(&parts, &mut whole);
        Some(whole.freeze())
    }
}

/// Puts an answer's payload into the sink, or another buffer in its place where that saves the
/// copy.
fn fill(sink: Option<BufMut>, mut parts: Vec<Buf>) -> Result<Option<BufMut>, Failure> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let too_long = || Failure::new(Code::Invalid, "the answer's payload exceeds its sink");
    let Some(mut sink) = sink else {
        return if len == 0 { Ok(None) } else { Err(too_long()) };
    };
    if len > sink.len() {
        return Err(too_long());
    }
    sink.set_len(len);
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        match only.try_into_mut() {
            Ok(whole) => return Ok(Some(whole)),
            Err(shared) => parts.push(shared),
        }
    }
    copy(&parts, &mut sink);
    Ok(Some(sink))
}

fn copy(parts: &[Buf], into: &mut [u8]) {
    let mut at = 0;
    for part in parts {
        into[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}
