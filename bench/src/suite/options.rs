//! What the command line says, and what follows from it.

use std::path::PathBuf;

/// Memory that a client keeps for reading: the smallest that there is, and the default.
const READ_CACHE_BYTES: u64 = 32 << 20;

/// Arguments of `bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Fewer rounds and systems: about four minutes
    #[arg(long)]
    pub quick: bool,
    /// A few MiB, one round: whether the instrument works, not what it shows
    #[arg(long, conflicts_with = "quick")]
    pub smoke: bool,
    /// These rows only, and those that they need
    #[arg(long, value_name = "ROW", num_args = 1.., value_delimiter = ',')]
    pub only: Vec<String>,
    /// These systems only: direct, floor-2+1, ext4, burstbay-1+0, burstbay-2+1, burstbay-4+2,
    /// gluster-2+1, three-2+1, slow-2+1, slow-log-2+1
    #[arg(long, value_name = "SYSTEM", num_args = 1.., value_delimiter = ',')]
    pub systems: Vec<String>,
    /// Rounds [5; quick: 2; smoke: 1]
    #[arg(long)]
    pub rounds: Option<u64>,
    /// MiB of a large row, all processes together [1024, or what the disk has room for; quick: 512]
    #[arg(long, value_name = "MIB")]
    pub size: Option<u64>,
    /// Client processes: at least four, unless you know why
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub clients: u64,
    /// Leave so many GiB of the disk free
    #[arg(long, value_name = "GIB", default_value_t = 12)]
    pub reserve: u64,
    /// Write everything that was measured into this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the plot into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// End with an error if a goal is missed
    #[arg(long)]
    pub strict: bool,
    /// Count instructions instead, and compare them with bench/instructions.json (needs valgrind)
    #[arg(long, conflicts_with_all = ["quick", "smoke", "only", "systems", "json", "svg"])]
    pub instructions: bool,
    /// Write a flame graph of this row into the file of --svg instead (needs perf)
    #[arg(long, value_name = "ROW", requires = "svg")]
    #[arg(conflicts_with_all = ["quick", "smoke", "only", "systems", "json", "instructions"])]
    pub profile: Option<String>,
    /// Keep the instructions that are counted as those to compare with
    #[arg(long, requires = "instructions")]
    pub renew: bool,
    /// Where to measure: a directory on the disk [target/, beside the programs]
    #[arg(long, value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
    /// Folder of bbd and bbadm [that of this program]
    #[arg(long, value_name = "DIRECTORY")]
    pub programs: Option<PathBuf>,
    /// The client library [libbb_capi.so in ../library or beside this program]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
}

impl Options {
    /// With `--profile`, that row alone, once, on the system that the goals are about.
    pub fn narrowed(&self) -> Self {
        let Some(row) = self.profile.clone() else { return self.clone() };
        let systems = vec![super::goals::OURS.to_owned()];
        Self { only: vec![row], systems, rounds: self.rounds.or(Some(1)), ..self.clone() }
    }

    /// Rounds.
    pub fn rounds(&self) -> u64 {
        self.rounds.unwrap_or(if self.smoke {
            1
        } else if self.quick {
            2
        } else {
            5
        })
    }

    /// Bytes of a large row that one would like.
    pub fn size_wanted(&self) -> u64 {
        let mib = self.size.unwrap_or(if self.smoke {
            8
        } else if self.quick {
            512
        } else {
            1024
        });
        mib << 20
    }

    /// Bytes below which reads could come from the readers' caches: twice those of twice the clients.
    pub fn size_min(&self) -> u64 {
        2 * 2 * self.clients * READ_CACHE_BYTES
    }

    /// Seconds after which what is counted in operations ends.
    pub fn seconds(&self) -> f64 {
        if self.smoke {
            0.2
        } else if self.quick {
            1.5
        } else {
            3.0
        }
    }

    /// Most operations of a rank.
    pub fn ops(&self) -> u64 {
        if self.smoke { 16 } else { 1 << 20 }
    }

    /// Bytes of each commit log. A twelfth of it is for the bytes of small groups: what the jobs of
    /// `fsync-64` keep overwriting, and the small files of a round, must fit, or the rows of later
    /// rounds would measure something else (blocks on devices) than those of the first.
    pub fn log_bytes(&self) -> u64 {
        if self.smoke { 64 << 20 } else { 512 << 20 }
    }

    /// Whether a system is wanted.
    pub fn wants(&self, system: &str) -> bool {
        if !self.systems.is_empty() {
            return self.systems.iter().any(|name| name == system);
        }
        // What the goals are about, and what it is compared with.
        let leave_out: &[&str] = if self.smoke {
            &["burstbay-1+0", "burstbay-4+2", "gluster-2+1", "slow-log-2+1"]
        } else if self.quick {
            &["burstbay-1+0", "burstbay-4+2", "slow-2+1", "slow-log-2+1", "three-2+1"]
        } else {
            &[]
        };
        !leave_out.contains(&system)
    }
}
