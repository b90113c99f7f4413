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

pub(super) struct TcpRecv {
    uring: Uring,
    fd: RingFd,
    decoder: Decoder,
    /// Between reads the buffer lies here.
    buffer: Vec<u8>,
    /// The connection's reactor has one more for as long as this lives.
    _counted: Option<Counted>,
}

impl TcpRecv {
    pub(super) fn new(uring: &Uring, fd: &RingFd, counted: Option<Counted>) -> Self {
        Self {
            uring: uring.clone(),
            fd: fd.clone(),
            decoder: Decoder::default(),
            buffer: Vec::new(),
            _counted: counted,
        }
    }

    /// Feeds the decoder with what comes next.
    async fn read(&mut self) -> Result<(), LinkError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(READ_BYTES, 0);
        let (result, buffer) = self.uring.recv_bytes(&self.fd, buffer, 0..READ_BYTES).await;
        self.buffer = buffer;
        match result? {
            0 => Err(LinkError::Closed),
            bytes => {
                self.decoder.feed(&self.buffer[..bytes]);
                Ok(())
            }
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

/// Heads that follow each other become one piece; payloads are sent from where they lie.
fn gather(frames: Vec<Frame>) -> Vec<Part> {
    let mut parts = Vec::with_capacity(2 * frames.len());
    for frame in frames {
        let (head, payload) = frame.into_wire();
        match parts.last_mut() {
            Some(Part::Bytes(bytes)) => bytes.extend_from_slice(&head),
            _ => parts.push(Part::Bytes(head)),
        }
        parts.extend(payload.into_iter().map(Part::Buf));
    }
    parts
}
