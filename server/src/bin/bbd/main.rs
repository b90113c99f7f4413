//! `bbd`: the server.

#[cfg(feature = "mimalloc")]
mod allocator;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bb_proto::DeviceId;
use bb_server::config::{AuthConfig, Config};
use bb_server::daemon::{self, DaemonError, Restart, Show, Slower};
use bb_transport::auth::{ClusterKey, KeyError};
use clap::{CommandFactory, Parser, Subcommand};
use sd_notify::NotifyState;

/// Burstbay's server: keeps data on the devices of this node and moves it to and from the backing
/// file system.
#[derive(Parser)]
#[command(name = "bbd", version)]
struct Arguments {
    /// Configuration of the node.
    #[arg(long, short, default_value = "/etc/burstbay/bb.conf", global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT. Where the cluster goes on without this process (it was cut
    /// off, or paused for too long), it starts itself anew, under the same process number. Exit
    /// status: 2 = the configuration is wrong, 3 = a device or the log cannot be used or the cluster
    /// has given this node up, 75 = to be started anew by the supervisor, 1 = anything else.
    Run {
        /// Go on for good without this device of the cluster map; can be given several times. What
        /// it held is reconstructed from the others.
        #[arg(long, value_name = "DEVICE")]
        give_up: Vec<u32>,
        /// End with status 75 instead of starting anew (as `restart = false` under `[node]` does).
        #[arg(long)]
        no_restart: bool,
        /// For tests of placement: each operation of the data devices takes so many times as long.
        #[arg(long, value_name = "TIMES", default_value_t = 1, hide = true)]
        testing_slow_devices: u32,
        /// The same for the commit log.
        #[arg(long, value_name = "TIMES", default_value_t = 1, hide = true)]
        testing_slow_log: u32,
    },
    /// Make the devices, the commit log and the backing file system those of a new cluster.
    Format {
        /// Format what is in use, too. What it holds is lost.
        #[arg(long)]
        force: bool,
        /// Don't write zeros through files first: quicker now, slower at each first write.
        #[arg(long)]
        sparse: bool,
    },
    /// Check the configuration and say what it amounts to.
    Check,
    /// Say what the commit log holds and whether `run` would get through it. Reads only. The
    /// server must be down. Exit status: 0 = it would, 4 = it would not, 2 or 3 = the log could
    /// not be looked at.
    LogInspect {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// List the records, too (with --json a line for each, before the report's).
        #[arg(long)]
        records: bool,
    },
    /// Print the man page.
    #[command(hide = true)]
    Man,
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("BB_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .init();
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                eprintln!("bbd: {line}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn execute(arguments: &Arguments) -> Result<(), DaemonError> {
    match &arguments.command {
        Command::Run { give_up, no_restart, testing_slow_devices, testing_slow_log } => {
            let slower = Slower { devices: *testing_slow_devices, log: *testing_slow_log };
            run(&arguments.config, give_up, slower, *no_restart)
        }
        Command::Format { force, sparse } => format(&arguments.config, *force, *sparse),
        Command::Check => check(&arguments.config),
        Command::LogInspect { json, records } => {
            let config = Config::load(&arguments.config)?;
            let show = Show { json: *json, records: *records };
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            daemon::log_inspect(&config, show, &mut out)
        }
        Command::Man => print_man(),
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Arguments::command(),
                "bbd",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    }
}

fn run(path: &Path, give_up: &[u32], slower: Slower, no_restart: bool) -> Result<(), DaemonError> {
    let restart = Restart::noted()?;
    let config = Config::load(path)?;
    let give_up: Vec<DeviceId> = give_up.iter().copied().map(DeviceId).collect();
    match daemon::run(&config, &give_up, slower, || notify(&[NotifyState::Ready])) {
        Err(error @ DaemonError::MustRestart(_)) if config.node.restart && !no_restart => {
            // To a service manager this is a reload: the same process, ready again in a moment.
            let why = error.to_string();
            match NotifyState::monotonic_usec_now() {
                Ok(time) => notify(&[NotifyState::Reloading, time, NotifyState::Status(&why)]),
                Err(error) => tracing::warn!(%error, "cannot notify the service manager"),
            }
            restart.start_anew()
        }
        outcome => outcome,
    }
}

/// Tells systemd, where it started us.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn format(path: &Path, force: bool, sparse: bool) -> Result<(), DaemonError> {
    let config = Config::load(path)?;
    let mut shown = u64::MAX;
    let terminal = std::io::stderr().is_terminal();
    let report = daemon::format(&config, force, sparse, &mut |what, done, all| {
        let percent = done.saturating_mul(100) / all.max(1);
        if terminal && percent != shown {
            shown = percent;
            eprint!("\r{what}: {percent:3} %\x1b[K");
        }
    })?;
    if terminal {
        eprint!("\r\x1b[K");
    }
    println!(
        "cluster {}: node {} formatted: {} devices, {} MiB",
        report.cluster,
        report.node,
        report.devices,
        report.device_bytes >> 20
    );
    if report.key_made {
        println!(
            "{} was made: every other server of the cluster needs a copy of it before `bbd format`",
            config.auth.key.display()
        );
    }
    if let Some(note) = too_few_devices(&config) {
        println!("{note}");
    }
    Ok(())
}

fn check(path: &Path) -> Result<(), DaemonError> {
    let config = Config::load(path)?;
    println!("{}: good", path.display());
    let reactors = match config.node.reactors {
        1 => "1 reactor".to_owned(),
        count => format!("{count} reactors"),
    };
    println!("node {} on {}, {reactors}", config.node.id, config.node.listen);
    println!(
        "{} data devices, {}+{} parity, {} partitions, backing file system {}",
        config.devices.len(),
        config.cluster.data,
        config.cluster.parity,
        config.cluster.partitions,
        config.bfs.path.display()
    );
    if config.auth.munge {
        println!("users are proven by munge, cluster key {}", config.auth.key.display());
        // The first server's key is made by `bbd format`.
        match ClusterKey::load(&config.auth.key) {
            Ok(_) => {}
            Err(error @ KeyError::Missing { .. }) => println!("note: {error}"),
            Err(error) => return Err(error.into()),
        }
    } else {
        println!("note: {}", AuthConfig::TRUSTED);
    }
    if let Some(note) = too_few_devices(&config) {
        println!("{note}");
    }
    Ok(())
}

/// A node alone that cannot hold a whole parity group.
fn too_few_devices(config: &Config) -> Option<String> {
    let (data, parity) = (config.cluster.data, config.cluster.parity);
    let (has, needs) = (config.devices.len(), usize::from(data) + usize::from(parity));
    (config.cluster.join.is_empty() && has < needs).then(|| {
        format!(
            "note: a parity group of {data}+{parity} has {needs} blocks, this node {has} devices: \
             until others join, groups have fewer data blocks{}",
            if has > usize::from(parity) { "" } else { ", and nothing can be written" }
        )
    })
}

/// The program's page, then a section for each command.
fn print_man() -> Result<(), DaemonError> {
    let failed = |error| DaemonError::Os { doing: "print the man page", error };
    render_man(&Arguments::command(), &mut std::io::stdout().lock()).map_err(failed)
}

fn render_man(command: &clap::Command, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    clap_mangen::Man::new(command.clone()).render(out)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{} {}", command.get_name(), sub.get_name());
        writeln!(out, ".SH \"{}\"", name.to_uppercase())?;
        let man = clap_mangen::Man::new(sub.clone().bin_name(name));
        man.render_synopsis_section(out)?;
        man.render_description_section(out)?;
        man.render_options_section(out)?;
    }
    Ok(())
}
