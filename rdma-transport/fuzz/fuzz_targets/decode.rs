//! Bytes from an unknown peer, in pieces whose size the first byte gives.
#![no_main]

use bb_transport::decode_stream;
use bb_transport::link::Limits;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((step, rest)) = data.split_first() else { return };
    let step = usize::from(*step) + 1;
    decode_stream(rest, step, Limits::ESTABLISHED);
    decode_stream(rest, step, Limits::HANDSHAKE);
});
