//! From bytes to frames. One decoder for every provider, and for the fuzzer.

use bb_proto::{HEADER_BYTES, Header, Kind};

use crate::link::{Limits, LinkError};

/// The checksum of frames.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, bytes)
}

/// Takes bytes as they come, gives heads of frames as they are complete. It never holds more than
/// was fed to it: a length in a header reserves nothing.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes before this are used up.
    start: usize,
    /// Payload of the last head that has not been taken yet.
    payload_left: usize,
}

impl Decoder {
    /// Adds what came from the wire.
    pub fn feed(&mut self, more: &[u8]) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(more);
    }

    /// Header and body of the next frame, once both are here and match their checksum. What is
    /// wrong with a header is told before its body has come.
    ///
    /// # Errors
    /// [`LinkError::Frame`] or [`LinkError::Protocol`]; the connection is out of step then.
    pub fn head(&mut self, limits: Limits) -> Result<Option<(Header, Vec<u8>)>, LinkError> {
        if self.payload_left > 0 {
            return Err(LinkError::Protocol("payload was left lying"));
        }
        let rest = &self.bytes[self.start..];
        let Some((head, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::decode(head)?;
        check(&header, limits)?;
        let Some(body) = rest.get(..header.body_len as usize) else { return Ok(None) };
        Header::verify(head, body, &crc)?;
        let body = body.to_vec();
        self.start += HEADER_BYTES + body.len();
        self.payload_left = header.payload_len as usize;
        Ok(Some((header, body)))
    }

    /// Bytes of payload of the last head that have not been taken.
    pub const fn payload_left(&self) -> usize {
        self.payload_left
    }

    /// Moves payload that came along with a head into `into`; says how many bytes.
    pub fn take_payload(&mut self, into: &mut [u8]) -> usize {
        let here = (self.bytes.len() - self.start).min(self.payload_left).min(into.len());
        into[..here].copy_from_slice(&self.bytes[self.start..self.start + here]);
        self.advance(here);
        here
    }

    /// Drops payload that came along with a head.
    pub fn drop_payload(&mut self) {
        self.advance((self.bytes.len() - self.start).min(self.payload_left));
    }

    /// `bytes` of payload came another way: straight into their buffer.
    pub fn payload_came(&mut self, bytes: usize) {
        self.payload_left = self.payload_left.saturating_sub(bytes);
    }

    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.payload_left -= bytes;
    }
}

fn check(header: &Header, limits: Limits) -> Result<(), LinkError> {
    let introduction = matches!(header.kind, Kind::Hello | Kind::Auth);
    if introduction != limits.handshake {
        return Err(LinkError::Protocol("frame out of place: handshake"));
    }
    if header.body_len > limits.body_bytes || header.payload_len > limits.payload_bytes {
        return Err(LinkError::Protocol("frame too long for this moment"));
    }
    Ok(())
}

/// Decodes `data` as a stream that comes in pieces of `step` bytes: the target of the fuzzer.
/// Returns how many frames it held and whether it ended in an error.
pub fn decode_stream(data: &[u8], step: usize, limits: Limits) -> (usize, bool) {
    let mut decoder = Decoder::default();
    let mut frames = 0;
    for piece in data.chunks(step.max(1)) {
        decoder.feed(piece);
        loop {
            decoder.drop_payload();
            if decoder.payload_left() > 0 {
                break;
            }
            match decoder.head(limits) {
                Ok(Some((header, body))) => {
                    assert_eq!(header.body_len as usize, body.len());
                    frames += 1;
                }
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}
