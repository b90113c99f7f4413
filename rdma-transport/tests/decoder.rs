//! The decoder meets bytes that nobody of ours sent.

use bb_fuzz::{Counting, Target};
use bb_proto::{HEADER_BYTES, Header, Kind, ServiceClass};
use bb_transport::link::{Frame, Limits};
use bb_transport::{Decoder, decode_stream};
use proptest::prelude::*;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn frame(kind: Kind, request: u64, body: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::request(kind, ServiceClass::Client);
    header.request = request;
    header.payload_len = u32::try_from(payload.len()).expect("small");
    header.body_len = u32::try_from(body.len()).expect("small");
    let mut bytes = header.encode(&body, &crc32c::crc32c_append).to_vec();
    bytes.extend(body);
    bytes.extend_from_slice(payload);
    bytes
}

fn frames() -> impl Strategy<Value = Vec<(u64, Vec<u8>, Vec<u8>)>> {
    let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
    prop::collection::vec((any::<u64>(), bytes(300), bytes(500)), 0..6)
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut(list in frames(), step in 1_usize..700) {
        let stream: Vec<u8> = list
            .iter()
            .flat_map(|(id, body, payload)| frame(Kind::PutBlock, *id, body.clone(), payload))
            .collect();
        let mut decoder = Decoder::default();
        let mut came = Vec::new();
        let mut open: Option<(u64, Vec<u8>, Vec<u8>)> = None;
        for piece in stream.chunks(step) {
            decoder.feed(piece);
            loop {
                if let Some((_, _, payload)) = &mut open {
                    let mut part = [0; 77];
                    let taken = decoder.take_payload(&mut part);
                    payload.extend_from_slice(&part[..taken]);
                    if decoder.payload_left() == 0 {
                        came.extend(open.take());
                    } else if taken == 0 {
                        break;
                    }
                } else {
                    match decoder.head(Limits::ESTABLISHED) {
                        Ok(Some((header, body))) => open = Some((header.request, body, Vec::new())),
                        Ok(None) => break,
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                }
            }
        }
        prop_assert_eq!(came, list);
    }

    #[test]
    fn a_flipped_bit_in_header_or_body_is_always_seen(
        body in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let mut bytes = frame(Kind::Commit, 7, body, b"");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (frames, failed) = decode_stream(&bytes, bytes.len(), Limits::ESTABLISHED);
        // A longer length waits for bytes that never come; that is no frame either.
        prop_assert_eq!(frames, 0);
        prop_assert!(failed || (8..16).contains(&at), "damage at {} was not seen", at);
    }

    #[test]
    fn random_bytes_never_panic_and_are_no_frames(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        step in 1_usize..300,
    ) {
        let (frames, _) = decode_stream(&bytes, step, Limits::ESTABLISHED);
        prop_assert_eq!(frames, 0);
        decode_stream(&bytes, step, Limits::HANDSHAKE);
    }

    #[test]
    fn mutated_streams_never_panic(
        list in frames(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        step in 1_usize..300,
    ) {
        let mut stream: Vec<u8> = list
            .iter()
            .flat_map(|(id, body, payload)| frame(Kind::PutBlock, *id, body.clone(), payload))
            .collect();
        prop_assume!(!stream.is_empty());
        for (at, value) in edits {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        let (frames, _) = decode_stream(&stream, step, Limits::ESTABLISHED);
        prop_assert!(frames <= list.len());
    }
}

#[test]
fn a_length_in_a_header_is_judged_before_its_body_comes() {
    for (body, payload) in [(u32::MAX, 0), (0, u32::MAX), (5000, 0), (0, 1)] {
        let mut header = Header::request(Kind::Hello, ServiceClass::Control);
        (header.body_len, header.payload_len) = (body, payload);
        let bytes = header.encode(b"", &crc32c::crc32c_append);
        let (frames, failed) = decode_stream(&bytes, HEADER_BYTES, Limits::HANDSHAKE);
        assert_eq!((frames, failed), (0, true), "{body} {payload}");
    }
}

#[test]
fn frames_that_cannot_be_are_not_made() {
    let header = Header::request(Kind::Ping, ServiceClass::Control);
    assert!(Frame::new(header, vec![0; 1 << 20], Vec::new()).is_some());
    assert!(Frame::new(header, vec![0; (1 << 20) + 1], Vec::new()).is_none());
}

/// Checksum of the first frame; the first byte is the size of the pieces.
fn repair_first(bytes: &mut [u8]) {
    let Some((head, body)) =
        bytes.get_mut(1..).and_then(|rest| rest.split_first_chunk_mut::<HEADER_BYTES>())
    else {
        return;
    };
    let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    let body = body.get(..len).unwrap_or(body);
    let crc = bb_proto::frame_crc(head, body, &crc32c::crc32c_append);
    head[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// What the fuzzer under `fuzz/` runs, over the same inputs.
#[test]
fn fuzz_decode() {
    Target {
        name: "decode",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        seeds: Vec::new(),
        repair: Some(&|bytes| repair_first(bytes)),
        // The decoder may keep what came, once in a buffer that doubles, and a body.
        memory_bytes_max: (64 << 10, 8),
        run: &|bytes| {
            let Some((step, rest)) = bytes.split_first() else { return false };
            let step = usize::from(*step) + 1;
            let (established, _) = decode_stream(rest, step, Limits::ESTABLISHED);
            let (handshake, _) = decode_stream(rest, step, Limits::HANDSHAKE);
            established + handshake > 0
        },
    }
    .check();
}
