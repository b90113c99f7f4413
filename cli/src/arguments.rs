//! The command lines.

use clap::{Args, Parser, Subcommand};

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Servers to ask for the cluster's map; one that answers is enough
    #[arg(
        long = "server",
        global = true,
        value_name = "HOST:PORT",
        env = "BB_SERVERS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub servers: Vec<String>,
    /// Seconds to wait for servers that don't answer, and for space
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// Burstbay's commands for users: copy to and from the buffer, look at what it holds, move it to
/// and from the backing file system.
///
/// Paths in the buffer are absolute; "/" is the root of the backing file system. `cp` tells them
/// from local ones by the prefix "bb:", which the other commands accept, too.
#[derive(Parser, Debug)]
#[command(name = "bbctl", version)]
pub struct Bbctl {
    /// Where the cluster is.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of `bbctl`.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Copy files between the buffer (bb:/path) and local file systems
    Cp(Cp),
    /// Print files
    Cat(Paths),
    /// List directories
    Ls(Ls),
    /// Print attributes
    Stat(Paths),
    /// Print how many bytes of files are dirty, pending, clean and deletable
    FragStat(Trees),
    /// Write dirty data to the backing file system
    Sync(Residence),
    /// Bring data from the backing file system into the buffer
    Prestage(Residence),
    /// Drop clean data from the buffer
    Purge(Purge),
    /// Exempt files from automatic sync and purge
    Pin(Residence),
    /// End the exemption
    Unpin(Residence),
    /// Remove files
    Rm(Rm),
    /// Make directories
    Mkdir(Mkdir),
    /// Rename
    Mv(Mv),
    /// Print the man page
    #[command(hide = true)]
    Man,
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `cp`
#[derive(Args, Debug)]
pub struct Cp {
    /// Copy directories with everything in them; symbolic links and special files are skipped
    #[arg(short, long)]
    pub recursive: bool,
    /// Follow symbolic links of the local file system
    #[arg(short = 'L', long)]
    pub dereference: bool,
    /// Keep permissions and times
    #[arg(short, long)]
    pub preserve: bool,
    /// Use the whole source path below the destination, and make the directories on the way
    #[arg(long)]
    pub parents: bool,
    /// Make each file durable, with its name, before it counts as copied
    #[arg(long)]
    pub fsync: bool,
    /// Files under way at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,
    /// What to copy, then where to
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"])]
    pub paths: Vec<String>,
}

/// Paths in the buffer.
#[derive(Args, Debug)]
pub struct Paths {
    /// Paths in the buffer
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<String>,
}

/// Files, or trees of them.
#[derive(Args, Debug)]
pub struct Trees {
    /// Everything below directories
    #[arg(short, long)]
    pub recursive: bool,
    /// Print the sums only
    #[arg(short, long)]
    pub summarize: bool,
    /// Paths in the buffer
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<String>,
}

/// `ls`
#[derive(Args, Debug)]
pub struct Ls {
    /// With attributes
    #[arg(short)]
    pub long: bool,
    /// With names that begin with a dot
    #[arg(short, long)]
    pub all: bool,
    /// With everything below
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Paths in the buffer
    #[arg(value_name = "PATH", default_value = "/")]
    pub paths: Vec<String>,
}

/// `sync`, `prestage`, `pin`, `unpin`
#[derive(Args, Debug)]
pub struct Residence {
    /// Everything below directories
    #[arg(short, long)]
    pub recursive: bool,
    /// Start it and don't wait for its end
    #[arg(long)]
    pub no_wait: bool,
    /// After a change on the backing file system: whose bytes win
    #[arg(long, value_name = "WHOSE", value_enum)]
    pub force: Option<Winner>,
    /// Paths in the buffer
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<String>,
}

/// Who wins a conflict.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// The buffer's bytes.
    Buffer,
    /// The backing file system's bytes.
    Backing,
}

/// `purge`
#[derive(Args, Debug)]
pub struct Purge {
    /// Dirty data, too: what the backing file system does not have is lost
    #[arg(long)]
    pub dirty: bool,
    /// The rest is as with sync.
    #[command(flatten)]
    pub residence: Residence,
}

/// `rm`
#[derive(Args, Debug)]
pub struct Rm {
    /// Directories with everything in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Don't complain about what isn't there
    #[arg(short, long)]
    pub force: bool,
    /// Paths in the buffer
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<String>,
}

/// `mkdir`
#[derive(Args, Debug)]
pub struct Mkdir {
    /// Parents, too; what exists is no error
    #[arg(short, long)]
    pub parents: bool,
    /// Paths in the buffer
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<String>,
}

/// `mv`
#[derive(Args, Debug)]
pub struct Mv {
    /// Don't replace what is there
    #[arg(short, long)]
    pub no_clobber: bool,
    /// Path in the buffer
    pub from: String,
    /// New path in the buffer, or a directory there
    pub to: String,
}

/// Burstbay's commands for administrators.
#[derive(Parser, Debug)]
#[command(name = "bbadm", version)]
pub struct Bbadm {
    /// Where the cluster is.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: AdminCommand,
}

/// Commands of `bbadm`.
#[derive(Subcommand, Debug)]
pub enum AdminCommand {
    /// The cluster as a whole
    Cluster {
        /// What about it
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Print the man page
    #[command(hide = true)]
    Man,
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Commands of `bbadm cluster`.
#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Nodes, devices, bytes by state, copies of the metadata, Raft.
    ///
    /// Exit status: 0 = everything has its full redundancy and every node is active and reachable;
    /// 3 = everything is served, but a node is missing, a copy is being filled, a parity group misses a
    /// block or has two on one node, or the cluster is too small for what it shall survive; 4 =
    /// something is not served now, or a group misses more blocks than its parity makes up for; 1 = no
    /// server answers (for 5 s, or --timeout where that is shorter); 2 = a mistake on the command line.
    /// Any server of the list will do, also where the first ones are dead. (Groups are counted every
    /// few seconds.)
    ///
    /// State of a node: active; joining (formatted, never started); restarting; no lease (must not
    /// serve now); unreachable (the cluster counts on it, this command cannot reach it); down (others
    /// have its roles; its devices are away); damaged (its log lost something: format it); left.
    ///
    /// Columns: start = number of the process start; prim = partitions that it serves; copies =
    /// partitions that it keeps; fill = copies being filled there; dev, used, size = devices; dirty,
    /// pend, clean = bytes that it serves; log = share of the commit log in use; clients = sessions.
    Status(Status),
    /// Follow a node that joins, until it has its part.
    ///
    /// To join a cluster, a node needs a bb.conf with `join = ["HOST:PORT", ...]` under `[cluster]`,
    /// naming nodes that exist, and the cluster's backing file system mounted. `bbd format` asks the
    /// cluster for numbers and formats log and devices; `bbd run` (or the service) starts it. This
    /// command, wherever it runs, then says how far the node is, and ends when it is active and has
    /// been filled with its share of the copies (a witness: when it votes). It changes nothing, may
    /// be interrupted, and may be used after any restart.
    ///
    /// Exit status: 0 = done, 3 = not done within --timeout, 1 = no server answers.
    Join(Join),
}

/// `status`
#[derive(Args, Debug)]
pub struct Status {
    /// Look again and again, every so many seconds (2 where none are given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = pause_seconds)]
    pub watch: Option<f64>,
    /// List the devices, too
    #[arg(long)]
    pub devices: bool,
}

fn pause_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if (0.1..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("from 0.1 to 86400 seconds".to_owned())
    }
}

/// `join`
#[derive(Args, Debug)]
pub struct Join {
    /// Where the node listens: `listen` of its bb.conf
    #[arg(value_name = "HOST:PORT")]
    pub address: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Bbctl::command().debug_assert();
        Bbadm::command().debug_assert();
    }

    #[test]
    fn connection_options_may_follow_the_command() {
        let line = ["bbctl", "cp", "-rp", "a", "b", "bb:/c", "--server", "h:1,h:2", "--json"];
        let parsed = Bbctl::try_parse_from(line).expect("good");
        assert_eq!(parsed.connection.servers, ["h:1", "h:2"]);
        let Command::Cp(cp) = parsed.command else { panic!("cp") };
        assert!(cp.recursive && cp.preserve && cp.paths.len() == 3);
    }

    #[test]
    fn watch_takes_seconds_and_does_without() {
        let watch = |words: &[&str]| {
            let line = ["bbadm", "cluster", "status"].iter().chain(words);
            let parsed = Bbadm::try_parse_from(line).map_err(|error| error.to_string())?;
            let AdminCommand::Cluster { command: ClusterCommand::Status(status) } = parsed.command
            else {
                return Err("not status".to_owned());
            };
            Ok(status.watch)
        };
        assert_eq!(watch(&[]), Ok(None));
        assert_eq!(watch(&["--watch", "--json"]), Ok(Some(2.0)));
        assert_eq!(watch(&["--watch", "0.5"]), Ok(Some(0.5)));
        for bad in ["0", "-1", "nan", "inf", "x"] {
            assert!(watch(&[&format!("--watch={bad}")]).is_err(), "{bad}");
        }
    }
}
