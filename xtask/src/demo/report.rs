//! The table at the end.

use std::time::Duration;

/// One step.
pub struct Row {
    /// What was done.
    pub name: &'static str,
    /// Bytes moved.
    pub bytes: u64,
    /// Files.
    pub files: u64,
    /// Time it took.
    pub took: Duration,
}

/// Everything that the table says.
#[derive(Default)]
pub struct Report {
    /// Steps in their order.
    pub rows: Vec<Row>,
    /// Blocks rebuilt from others while reading back.
    pub reconstructed_blocks: u64,
    /// The longest call that wrote, of the copy in which a server died.
    pub longest_call: Duration,
    /// The longest time in which none of its calls was completed.
    pub longest_gap: Duration,
    /// From the dead server's new start until everything had its full redundancy.
    pub until_full: Duration,
    /// Bytes that any comparison missed.
    pub lost_bytes: u64,
}

impl Report {
    /// Prints it.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub fn print(&self) {
        println!("\n{:<34} {:>14} {:>8} {:>9} {:>9}", "step", "bytes", "files", "seconds", "MB/s");
        for row in &self.rows {
            let seconds = row.took.as_secs_f64();
            let rate = match row.bytes {
                0 => "-".to_owned(),
                bytes => format!("{:.1}", bytes as f64 / seconds / 1e6),
            };
            let (name, bytes, files) = (row.name, row.bytes, row.files);
            println!("{name:<34} {bytes:>14} {files:>8} {seconds:>9.2} {rate:>9}");
        }
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        println!("\nlongest pause that a writer saw:     {}", seconds(self.longest_call));
        println!("longest time without any completion: {}", seconds(self.longest_gap));
        println!("full redundancy after the restart:   {}", seconds(self.until_full));
        println!("blocks reconstructed:                {}", self.reconstructed_blocks);
        println!("bytes lost:                          {}", self.lost_bytes);
    }
}
