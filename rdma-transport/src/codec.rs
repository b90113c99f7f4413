//! From bytes to frames. One decoder for every provider, and for the fuzzer.

use std::ops::Range;

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
    /// What came lies in `start .. end`; behind it is room.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Payload of the last head that has not been taken yet.
    payload_left: usize,
}

impl Decoder {
    /// Adds what came from the wire.
    pub fn feed(&mut self, more: &[u8]) {
        let room = self.make_room(more.len());
        self.bytes[room].copy_from_slice(more);
        self.end += more.len();
    }

    /// Lends its memory, to receive up to `len` bytes into the range. Nothing can be decoded until
    /// it is given back ([`Decoder::received`]).
    pub fn lend(&mut self, len: usize) -> (Vec<u8>, Range<usize>) {
        let room = self.make_room(len);
        (std::mem::take(&mut self.bytes), room)
    }

    /// Takes its memory back, with `len` more bytes from the wire.
    pub fn received(&mut self, bytes: Vec<u8>, len: usize) {
        self.bytes = bytes;
        self.end += len;
    }

    /// Room for `len` bytes behind what is here.
    fn make_room(&mut self, len: usize) -> Range<usize> {
        // Memory that was lent and never came back went with a receive that was dropped: such a
        // connection is closed, and what it had is lost.
        if self.start == self.end || self.bytes.len() < self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > self.end / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.end..self.end + len;
        if self.bytes.len() < room.end {
            self.bytes.resize(room.end, 0);
        }
        room
    }

    fn here(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
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
        let Some((head, rest)) = self.here().split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
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
        let here = self.here().len().min(self.payload_left).min(into.len());
        into[..here].copy_from_slice(&self.here()[..here]);
        self.advance(here);
        here
    }

    /// Drops payload that came along with a head.
    pub fn drop_payload(&mut self) {
        self.advance(self.here().len().min(self.payload_left));
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

#[cfg(test)]
mod tests {
    use bb_proto::ServiceClass;

    use super::*;
    use crate::link::Frame;

    #[test]
    fn what_is_received_in_place_decodes_like_what_is_fed() {
        let body_of = |number: u8| vec![number; usize::from(number) * 700];
        let mut wire = Vec::new();
        for number in 0..20 {
            let header = Header::request(Kind::Ping, ServiceClass::Client);
            let frame = Frame::new(header, body_of(number), Vec::new()).expect("short enough");
            wire.extend_from_slice(&frame.into_wire().0);
        }
        for step in [1, 63, 64, 1000, 8192, wire.len()] {
            let mut decoder = Decoder::default();
            let mut bodies = Vec::new();
            for piece in wire.chunks(step) {
                // More room than comes, as a socket is asked for more than it has.
                let (mut memory, room) = decoder.lend(step + 100);
                memory[room][..piece.len()].copy_from_slice(piece);
                decoder.received(memory, piece.len());
                while let Some((_, body)) = decoder.head(Limits::ESTABLISHED).expect("frames") {
                    bodies.push(body);
                }
            }
            assert_eq!(bodies, (0..20).map(body_of).collect::<Vec<_>>(), "pieces of {step}");
        }
    }
}
