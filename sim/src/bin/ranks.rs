//! `./x scale`: counts of a simulated cluster under many ranks.

use std::process::ExitCode;

use bb_sim::scale::{Shape, print, run};
use clap::Parser;

/// Simulates a cluster under many ranks, and prints what it had to do: counts, not speeds.
#[derive(Parser)]
struct Arguments {
    /// Client processes with one rank each
    #[arg(long, default_value_t = Shape::default().ranks)]
    ranks: u64,
    /// Servers with two data devices each
    #[arg(long, default_value_t = Shape::default().servers)]
    servers: usize,
    /// Geometry of parity groups
    #[arg(long, default_value = "2+1", value_parser = geometry)]
    pgeom: (u8, u8),
    /// Metadata partitions
    #[arg(long, default_value_t = Shape::default().partitions)]
    partitions: u32,
    /// Size of regions, as a power of two
    #[arg(long, default_value_t = Shape::default().region_log2, value_parser = clap::value_parser!(u32).range(20..=40))]
    region_log2: u32,
    /// Parity groups that each rank writes
    #[arg(long, default_value_t = Shape::default().groups_each)]
    groups: u64,
    /// Small files that each rank makes
    #[arg(long, default_value_t = Shape::default().files_each)]
    files: u64,
}

fn geometry(text: &str) -> Result<(u8, u8), String> {
    let parts = text.split_once('+').and_then(|(n, k)| n.parse().ok().zip(k.parse().ok()));
    parts.ok_or_else(|| "say N+K, such as 2+1".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    bb_sim::complaints::listen(false);
    let shape = Shape {
        ranks: arguments.ranks.max(1),
        servers: arguments.servers.max(1),
        data: arguments.pgeom.0,
        parity: arguments.pgeom.1,
        partitions: arguments.partitions.max(1),
        region_log2: arguments.region_log2,
        groups_each: arguments.groups.max(1),
        files_each: arguments.files,
    };
    match run(&shape) {
        Ok(counted) => {
            print(&shape, &counted);
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
