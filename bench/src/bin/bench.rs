//! Burstbay against what users have and what the machine can do: see docs/performance.md.
//!
//! `./x bench` builds what this needs and starts it.

use std::path::PathBuf;
use std::process::ExitCode;

use bb_bench::floor;
use bb_bench::suite::{self, Options};
use bb_erasure::Geometry;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Measure Burstbay, what users have, and the machine")]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

/// Processes of the skeleton, which this program starts.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    FloorServer {
        /// Its blocks
        file: PathBuf,
    },
    #[command(hide = true)]
    FloorClient(FloorClient),
}

#[derive(Args)]
struct FloorClient {
    #[arg(long)]
    geometry: Geometry,
    #[arg(long)]
    rank: u64,
    #[arg(long)]
    bytes: u64,
    #[arg(long)]
    read: bool,
    servers: Vec<String>,
}

/// Of the skeleton, which has 2+1.
const BLOCK_BYTES: usize = 1 << 20;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.part {
        Some(Part::FloorServer { file }) => {
            floor::server(&file, BLOCK_BYTES).map_err(|error| error.to_string())
        }
        Some(Part::FloorClient(client)) => {
            let FloorClient { geometry, rank, bytes, read, servers } = client;
            floor::client(floor::Task { geometry, rank, bytes, servers, read })
                .map_err(|error| error.to_string())
        }
        None => suite::run(&arguments.options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}
