//! Progress for people at a terminal; nothing elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over bytes on standard error.
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar that counts bytes, quiet unless standard error is a terminal.
    pub fn bytes(what: &'static str) -> Self {
        let bar = ProgressBar::new(0);
        let template = "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} \
                        {binary_bytes_per_sec}, {eta} left {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(what);
        Self(bar)
    }

    /// More is to be done than known before.
    pub fn more(&self, bytes: u64) {
        self.0.inc_length(bytes);
    }

    /// More is done.
    pub fn done(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Says something beside the bar.
    pub fn say(&self, text: String) {
        self.0.set_message(text);
    }

    /// Prints above the bar.
    pub fn above(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
