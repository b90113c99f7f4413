//! `./x headers`: the header that is generated. That it is current, a test checks
//! (cli/tests/native_api/headers.rs).

use crate::Outcome;
use crate::cargo::{command, root, run as start};

/// Writes include/bb_client.h.
pub fn run() -> Outcome {
    let words = ["--quiet", "--config", "cbindgen.toml", "--output", "include/bb_client.h"];
    let mut cbindgen = command("cbindgen");
    cbindgen.current_dir(root().join("client-lib/c-api")).args(words).arg("src/own.rs");
    start(&mut cbindgen).map_err(|error| {
        format!(
            "{error}\ncbindgen 0.29.4 is needed: cargo install cbindgen --version 0.29.4 --locked"
        )
    })
}
