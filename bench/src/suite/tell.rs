//! What people read. A reader who has gone away (`./x bench | head`) must not end the run before it
//! has cleaned up, as `println!` would.

use std::io::Write;

/// A line of results.
pub fn out(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A line about progress.
pub fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
