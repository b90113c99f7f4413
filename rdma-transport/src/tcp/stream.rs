//! Frames over a connected socket.

use std::net::Shutdown;

use bb_proto::Header;
use bb_runtime::BufMut;
use bb_runtime::uring::{Part, RingFd, Uring};

use super::sharing::Counted;
use crate::codec::Decoder;
use crate::link::{Frame, Limits, LinkError, LinkRecv, LinkSend, LocalFuture};

/// Read at a time while heads are looked for. Dozens of small frames fit; of a payload that follows
/// at once, no more than this is copied on its way.
const READ_BYTES: usize = 8 << 10;
/// A longer body is a piece of its own: the kernel takes another piece sooner than it is copied.
const COPIED_BYTES_MAX: usize = 1 << 10;

pub(super) struct TcpRecv {
    uring: Uring,
    fd: RingFd,
    decoder: Decoder,
    /// The connection's reactor has one more for as long as this lives.
    _counted: Option<Counted>,
}

impl TcpRecv {
    pub(super) fn new(uring: &Uring, fd: &RingFd, counted: Option<Counted>) -> Self {
        Self {
            uring: uring.clone(),
            fd: fd.clone(),
            decoder: Decoder::default(),
            _counted: counted,
        }
    }

    /// Feeds the decoder with what comes next.
    async fn read(&mut self) -> Result<(), LinkError> {
        let (memory, room) = self.decoder.lend(READ_BYTES);
        let (result, memory) = self.uring.recv_bytes(&self.fd, memory, room).await;
        let len = result.as_ref().map_or(0, |len| *len);
        self.decoder.received(memory, len);
        match result? {
            0 => Err(LinkError::Closed),
            _ => Ok(()),
        }
    }

    async fn next_head(&mut self, limits: Limits) -> Result<(Header, Vec<u8>), LinkError> {
        loop {
            if let Some(head) = self.decoder.head(limits)? {
                return Ok(head);
            }
            self.read().await?;
        }
    }

    /// What came along with the head is copied; the rest goes from the socket into the slab.
    async fn fill(&mut self, mut buf: BufMut) -> Result<BufMut, LinkError> {
        let len = buf.len();
        let mut at = self.decoder.take_payload(&mut buf);
        while at < len {
            let (result, back) = self.uring.recv(&self.fd, buf, at..len).await;
            buf = back;
            match result? {
                0 => return Err(LinkError::Closed),
                bytes => {
                    at += bytes;
                    self.decoder.payload_came(bytes);
                }
            }
        }
        Ok(buf)
    }

    async fn skip(&mut self) -> Result<(), LinkError> {
        loop {
            self.decoder.drop_payload();
            if self.decoder.payload_left() == 0 {
                return Ok(());
            }
            self.read().await?;
        }
    }
}

impl LinkRecv for TcpRecv {
    fn head(&mut self, limits: Limits) -> LocalFuture<'_, Result<(Header, Vec<u8>), LinkError>> {
        Box::pin(self.next_head(limits))
    }

    fn payload(&mut self, buf: BufMut) -> LocalFuture<'_, Result<BufMut, LinkError>> {
        Box::pin(self.fill(buf))
    }

    fn skip_payload(&mut self) -> LocalFuture<'_, Result<(), LinkError>> {
        Box::pin(self.skip())
    }
}

pub(super) struct TcpSend {
    uring: Uring,
    fd: RingFd,
}

impl TcpSend {
    pub(super) fn new(uring: &Uring, fd: &RingFd) -> Self {
        Self { uring: uring.clone(), fd: fd.clone() }
    }
}

impl LinkSend for TcpSend {
    fn send(&self, frames: Vec<Frame>) -> LocalFuture<'_, Result<(), LinkError>> {
        Box::pin(async move { Ok(self.uring.send(&self.fd, gather(frames)).await?) })
    }

    fn close(&self) {
        // It fails where the peer was faster.
        let _ = self.fd.shutdown(Shutdown::Both);
    }
}

/// Heads and short bodies that follow each other become one piece; long bodies and payloads are sent
/// from where they lie.
fn gather(frames: Vec<Frame>) -> Vec<Part> {
    let mut parts = Vec::with_capacity(2 * frames.len());
    let mut short = Vec::new();
    for frame in frames {
        let (head, body, payload) = frame.into_parts();
        let copied = if body.len() <= COPIED_BYTES_MAX { body.as_slice() } else { &[] };
        short.reserve(head.len() + copied.len());
        short.extend_from_slice(&head);
        short.extend_from_slice(copied);
        let is_long = body.len() > COPIED_BYTES_MAX;
        if is_long || !payload.is_empty() {
            parts.push(Part::Bytes(std::mem::take(&mut short)));
        }
        parts.extend(is_long.then_some(Part::Bytes(body)));
        parts.extend(payload.into_iter().map(Part::Buf));
    }
    parts.extend((!short.is_empty()).then_some(Part::Bytes(short)));
    parts
}

#[cfg(test)]
mod tests {
    use bb_proto::{Kind, ServiceClass};
    use bb_runtime::BufPool;

    use super::*;

    #[test]
    fn frames_of_all_sizes_are_gathered_in_order_and_long_bodies_are_not_copied() {
        let pool = BufPool::new(2 << 20, false).expect("memory");
        let frame = |body_bytes: usize, payload: bool| {
            let header = Header::request(Kind::Ping, ServiceClass::Client);
            let payload = payload.then(|| {
                let mut buf = pool.try_alloc(4096).expect("room");
                buf.fill(7);
                buf.freeze()
            });
            let body = vec![body_bytes.to_le_bytes()[0]; body_bytes];
            Frame::new(header, body, payload.into_iter().collect()).expect("short enough")
        };
        let long = COPIED_BYTES_MAX + 1;
        let sizes =
            [(3, false), (0, false), (long, false), (long, true), (5, true), (9, false), (1, true)];
        let mut expected = Vec::new();
        for (body_bytes, payload) in sizes {
            let (head, payload) = frame(body_bytes, payload).into_wire();
            expected.extend_from_slice(&head);
            payload.iter().for_each(|buf| expected.extend_from_slice(buf));
        }
        let parts = gather(sizes.map(|(body_bytes, payload)| frame(body_bytes, payload)).into());
        let found: Vec<&[u8]> = parts
            .iter()
            .map(|part| match part {
                Part::Bytes(bytes) => bytes.as_slice(),
                Part::Buf(buf) => buf,
            })
            .collect();
        assert!(found.concat() == expected && found.iter().all(|piece| !piece.is_empty()));
        assert_eq!(found.iter().filter(|piece| piece.len() == long).count(), 2);
    }
}
