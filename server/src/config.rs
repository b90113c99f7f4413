//! `bb.conf`: what an administrator says of one node, checked as a whole before anything starts.

use std::fmt;
use std::path::{Path, PathBuf};

use bb_transport::Part;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use toml::Spanned;

/// A size in bytes, written as a number or as text with a unit (`"64MiB"`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Number(bytes)) => Ok(Self(bytes)),
            Ok(Form::Text(text)) => parse_bytes(&text).map_err(D::Error::custom),
            Err(_) => Err(D::Error::custom("expected a size such as 1048576 or \"1MiB\"")),
        }
    }
}

/// Reads a size: digits and an optional binary unit (KiB, MiB, GiB, TiB, or K, M, G, T for the
/// same).
///
/// # Errors
/// A sentence for people.
pub fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| format!("\"{text}\" is not a size"))?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => return Err(format!("unknown unit \"{unit}\" in \"{text}\" (KiB, MiB, GiB, TiB)")),
    };
    number.checked_mul(1 << shift).map(Bytes).ok_or_else(|| format!("\"{text}\" is too large"))
}

/// The whole file.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// The commit log.
    pub log: StoreConfig,
    /// The data devices, in the order of the file.
    pub devices: Vec<StoreConfig>,
    /// The backing file system.
    pub bfs: BfsConfig,
    /// What clients and servers have to prove.
    pub auth: AuthConfig,
    /// What `bbd format` puts into the cluster map.
    pub cluster: ClusterConfig,
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Number of the node, from 1.
    pub id: u32,
    /// Where it listens, `host:port`.
    pub listen: String,
    /// Memory for buffers.
    pub buffer_bytes: u64,
    /// Threads that serve connections, the one that owns devices, log and partitions among them.
    pub reactors: u32,
    /// Take huge pages for buffers where the machine has some free.
    pub huge_pages: bool,
    /// Memory for metadata; beyond it clients are slowed down, then refused (rule 16).
    pub metadata_bytes_max: u64,
    /// Votes, and holds neither data nor partitions.
    pub witness: bool,
    /// A process that the cluster goes on without starts itself anew; else it ends with status 75
    /// and leaves that to its supervisor.
    pub restart: bool,
}

/// `[log]` or `[[device]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// File or block device.
    pub path: PathBuf,
    /// For files: the size that `bbd format` gives it.
    pub size_bytes: Option<u64>,
}

/// `[bfs]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BfsConfig {
    /// Its root directory.
    pub path: PathBuf,
    /// Threads for calls that block.
    pub threads: usize,
}

/// `[auth]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthConfig {
    /// Users are proven by munge; else clients are trusted.
    pub munge: bool,
    /// The cluster's key.
    pub key: PathBuf,
    /// Where munged listens, if it is not Debian's place.
    pub munge_socket: Option<PathBuf>,
}

impl AuthConfig {
    /// What an operator has to know of authentication "none".
    pub const TRUSTED: &str = "clients are trusted (method \"none\" under [auth]): whoever can \
                               connect can act as any user, root included, and as a server";
}

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Data blocks per parity group.
    pub data: u8,
    /// Parity blocks per parity group.
    pub parity: u8,
    /// Number of metadata partitions; fixed when the cluster is formatted.
    pub partitions: u32,
    /// Region size of new files, a power of two.
    pub region_bytes: u64,
    /// Rendezvous placement instead of least loaded.
    pub deterministic: bool,
    /// Nodes of a cluster that exists: `bbd format` joins it. What is above is that cluster's then.
    pub join: Vec<String>,
}

/// Everything that is wrong with a file, each with its line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    path: PathBuf,
    /// Line (from 1; 0 = the file as a whole) and sentence.
    pub errors: Vec<(usize, String)>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (line, text)) in self.errors.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            match line {
                0 => write!(f, "{}: {text}", self.path.display())?,
                line => write!(f, "{}:{line}: {text}", self.path.display())?,
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    node: Spanned<RawNode>,
    log: Spanned<RawStore>,
    #[serde(default)]
    device: Vec<Spanned<RawStore>>,
    bfs: Spanned<RawBfs>,
    #[serde(default)]
    auth: RawAuth,
    #[serde(default)]
    cluster: RawCluster,
    /// The client library's, which reads the same file.
    #[serde(default, rename = "client")]
    _client: serde::de::IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    #[serde(default = "default_id")]
    id: Spanned<u32>,
    listen: Spanned<String>,
    #[serde(default = "default_buffers")]
    buffers: Spanned<Bytes>,
    #[serde(default = "default_reactors")]
    reactors: Spanned<u32>,
    #[serde(default = "default_true")]
    huge_pages: bool,
    #[serde(default = "default_metadata")]
    metadata_memory: Spanned<Bytes>,
    #[serde(default)]
    witness: bool,
    #[serde(default = "default_true")]
    restart: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStore {
    path: Spanned<PathBuf>,
    size: Option<Spanned<Bytes>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBfs {
    path: Spanned<PathBuf>,
    #[serde(default = "default_threads")]
    threads: Spanned<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAuth {
    method: Spanned<String>,
    key: Spanned<PathBuf>,
    munge_socket: Option<Spanned<PathBuf>>,
}

impl Default for RawAuth {
    fn default() -> Self {
        Self {
            method: unplaced("none".to_owned()),
            key: unplaced(PathBuf::from("/etc/burstbay/cluster.key")),
            munge_socket: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCluster {
    join: Vec<Spanned<String>>,
    geometry: Spanned<String>,
    partitions: Spanned<u32>,
    region: Spanned<Bytes>,
    placement: Spanned<String>,
}

impl Default for RawCluster {
    fn default() -> Self {
        Self {
            join: Vec::new(),
            geometry: unplaced("2+1".to_owned()),
            partitions: unplaced(64),
            region: unplaced(Bytes(64 << 20)),
            placement: unplaced("least-loaded".to_owned()),
        }
    }
}

fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn default_id() -> Spanned<u32> {
    unplaced(1)
}
fn default_reactors() -> Spanned<u32> {
    unplaced(1)
}
fn default_buffers() -> Spanned<Bytes> {
    unplaced(Bytes(256 << 20))
}
fn default_metadata() -> Spanned<Bytes> {
    unplaced(Bytes(1 << 30))
}
fn default_threads() -> Spanned<usize> {
    unplaced(8)
}
fn default_true() -> bool {
    true
}

/// Smallest commit log: below it checkpoints would follow each other without a pause.
const LOG_BYTES_MIN: u64 = 64 << 20;
/// Smallest data device.
const DEVICE_BYTES_MIN: u64 = 64 << 20;
/// Smallest buffer pool: room for every service class (rule 14).
const BUFFER_BYTES_MIN: u64 = 64 << 20;

/// The first reactor has something to do for each request of all others: more than so many would
/// only wait for it.
const REACTORS_MAX: u32 = 64;
/// Buffers for each reactor: so much that each has room for a payload of every service class
/// (rule 14), half of all buffers being the connections'.
const REACTOR_BUFFER_BYTES_MIN: u64 = 2 * Part::bytes_min(1);

struct Check<'a> {
    text: &'a str,
    errors: Vec<(usize, String)>,
}

impl Check<'_> {
    fn line_of(&self, offset: usize) -> usize {
        self.text[..offset.min(self.text.len())].matches('\n').count() + 1
    }

    fn require<T>(&mut self, at: &Spanned<T>, good: bool, sentence: impl Into<String>) {
        if !good {
            let line = if at.span().is_empty() { 0 } else { self.line_of(at.span().start) };
            self.errors.push((line, sentence.into()));
        }
    }

    fn store(&mut self, store: &RawStore, bytes_min: u64) -> StoreConfig {
        let path = store.path.get_ref();
        self.require(&store.path, path.is_absolute(), "path must be absolute");
        if let Some(size) = &store.size {
            let bytes = size.get_ref().0;
            let text = format!("size must be at least {} MiB", bytes_min >> 20);
            self.require(size, bytes >= bytes_min, text);
            self.require(size, bytes.is_multiple_of(4096), "size must be a multiple of 4 KiB");
        }
        StoreConfig {
            path: path.clone(),
            size_bytes: store.size.as_ref().map(|size| size.get_ref().0),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigErrors {
            path: path.to_owned(),
            errors: vec![(0, format!("cannot be read: {error}"))],
        })?;
        Self::parse(&text).map_err(|errors| ConfigErrors { path: path.to_owned(), errors })
    }

    /// Checks a text.
    ///
    /// # Errors
    /// Lines and sentences.
    pub fn parse(text: &str) -> Result<Self, Vec<(usize, String)>> {
        let mut check = Check { text, errors: Vec::new() };
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| check.line_of(span.start));
            vec![(line, error.message().to_owned())]
        })?;
        let config = check.convert(&raw);
        if check.errors.is_empty() {
            Ok(config)
        } else {
            check.errors.sort();
            Err(check.errors)
        }
    }
}

impl Check<'_> {
    fn convert(&mut self, raw: &RawConfig) -> Config {
        let node = raw.node.get_ref();
        self.require(&node.id, *node.id.get_ref() > 0, "node numbers begin at 1");
        self.require(&node.listen, is_address(node.listen.get_ref()), "listen must be host:port");
        let text = format!("buffers must be at least {} MiB", BUFFER_BYTES_MIN >> 20);
        self.require(&node.buffers, node.buffers.get_ref().0 >= BUFFER_BYTES_MIN, text);
        self.reactors(node);
        let metadata = node.metadata_memory.get_ref().0;
        self.require(
            &node.metadata_memory,
            metadata >= 16 << 20,
            "metadata_memory must be at least 16 MiB",
        );
        let bfs = raw.bfs.get_ref();
        self.require(&bfs.path, bfs.path.get_ref().is_absolute(), "path must be absolute");
        let threads = *bfs.threads.get_ref();
        self.require(&bfs.threads, (1..=256).contains(&threads), "threads must be 1 to 256");
        let log = self.store(raw.log.get_ref(), LOG_BYTES_MIN);
        let devices: Vec<StoreConfig> =
            raw.device.iter().map(|d| self.store(d.get_ref(), DEVICE_BYTES_MIN)).collect();
        self.distinct(raw);
        let auth = self.auth(&raw.auth);
        let cluster = self.cluster(&raw.cluster);
        let joins = !cluster.join.is_empty();
        self.require(&raw.node, joins || !node.witness, "a witness needs a cluster to join");
        let text = "a witness holds no data: it has no devices";
        self.require(&raw.node, !node.witness || devices.is_empty(), text);
        let text = "there are no devices";
        self.require(&raw.node, node.witness || !devices.is_empty(), text);
        Config {
            node: NodeConfig {
                id: *node.id.get_ref(),
                listen: node.listen.get_ref().clone(),
                buffer_bytes: node.buffers.get_ref().0,
                reactors: *node.reactors.get_ref(),
                huge_pages: node.huge_pages,
                metadata_bytes_max: metadata,
                witness: node.witness,
                restart: node.restart,
            },
            log,
            devices,
            bfs: BfsConfig { path: bfs.path.get_ref().clone(), threads },
            auth,
            cluster,
        }
    }

    fn reactors(&mut self, node: &RawNode) {
        let count = *node.reactors.get_ref();
        let good = (1..=REACTORS_MAX).contains(&count);
        self.require(&node.reactors, good, format!("reactors must be 1 to {REACTORS_MAX}"));
        let needed = u64::from(count) * REACTOR_BUFFER_BYTES_MIN;
        let text = format!("{count} reactors need buffers of {} MiB at least", needed >> 20);
        let enough = count < 2 || needed <= node.buffers.get_ref().0;
        self.require(&node.reactors, !good || enough, text);
    }

    fn distinct(&mut self, raw: &RawConfig) {
        let mut seen = vec![raw.log.get_ref().path.get_ref()];
        for device in &raw.device {
            let path = &device.get_ref().path;
            let new = !seen.contains(&path.get_ref());
            self.require(path, new, "this path is used twice");
            seen.push(path.get_ref());
        }
    }

    fn auth(&mut self, raw: &RawAuth) -> AuthConfig {
        let method = raw.method.get_ref().as_str();
        let text = "method must be \"none\" or \"munge\"";
        self.require(&raw.method, ["none", "munge"].contains(&method), text);
        self.require(&raw.key, raw.key.get_ref().is_absolute(), "key must be an absolute path");
        if let Some(socket) = &raw.munge_socket {
            let text = "munge_socket must be an absolute path";
            self.require(socket, socket.get_ref().is_absolute(), text);
        }
        AuthConfig {
            munge: method == "munge",
            key: raw.key.get_ref().clone(),
            munge_socket: raw.munge_socket.as_ref().map(|socket| socket.get_ref().clone()),
        }
    }

    fn cluster(&mut self, raw: &RawCluster) -> ClusterConfig {
        for peer in &raw.join {
            self.require(peer, is_address(peer.get_ref()), "join must list host:port");
        }
        let parts = raw.geometry.get_ref().split_once('+');
        let geometry = parts.and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)));
        let (data, parity): (u8, u8) = geometry.unwrap_or((0, 0));
        let known = (1..=16).contains(&data) && parity <= 4;
        self.require(&raw.geometry, known, "geometry must be N+K from 1+0 to 16+4");
        let partitions = *raw.partitions.get_ref();
        self.require(
            &raw.partitions,
            (1..=65_536).contains(&partitions),
            "partitions must be 1 to 65536",
        );
        let region = raw.region.get_ref().0;
        self.require(
            &raw.region,
            region.is_power_of_two() && (1 << 20..=1 << 40).contains(&region),
            "region must be a power of two from 1 MiB to 1 TiB",
        );
        let placement = raw.placement.get_ref().as_str();
        self.require(
            &raw.placement,
            ["least-loaded", "deterministic"].contains(&placement),
            "placement must be \"least-loaded\" or \"deterministic\"",
        );
        ClusterConfig {
            data,
            parity,
            partitions,
            region_bytes: region,
            deterministic: placement == "deterministic",
            join: raw.join.iter().map(|peer| peer.get_ref().clone()).collect(),
        }
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[node]
listen = "127.0.0.1:7400"

[log]
path = "/var/lib/burstbay/log"
size = "256MiB"

[[device]]
path = "/dev/nvme0n1"
[[device]]
path = "/dev/nvme1n1"
[[device]]
path = "/var/lib/burstbay/d2"
size = "1GiB"

[bfs]
path = "/scratch"
"#;

    #[test]
    fn a_short_file_gets_the_defaults() {
        let config = Config::parse(GOOD).expect("good");
        assert_eq!(config.devices.len(), 3);
        assert_eq!(config.devices[2].size_bytes, Some(1 << 30));
        assert_eq!((config.cluster.data, config.cluster.parity), (2, 1));
        assert_eq!(config.bfs.threads, 8);
    }

    #[test]
    fn the_example_is_good_also_with_its_defaults_written_out() {
        let example = include_str!("../../docs/bb.conf");
        let config = Config::parse(example).expect("good");
        assert!(config.cluster.join.is_empty() && config.node.restart);
        // Comments of one `#` and a key are settings.
        let is_setting = |line: &str| line.contains(" = ") && !line.contains("join");
        let all: Vec<&str> = example
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| is_setting(rest)).unwrap_or(line))
            .collect();
        let written = Config::parse(&all.join("\n")).expect("good");
        assert_eq!(written.node, config.node);
        assert_eq!(written.cluster, config.cluster);
        assert_eq!(written.bfs, config.bfs);
        assert_eq!((written.auth.munge, &written.auth.key), (config.auth.munge, &config.auth.key));
    }

    #[test]
    fn clients_are_trusted_unless_the_file_says_munge_and_other_methods_are_errors() {
        assert!(!Config::parse(GOOD).expect("good").auth.munge);
        let with = |auth: &str| Config::parse(&format!("{GOOD}[auth]\n{auth}\n"));
        let munge = with("method = \"munge\"\nkey = \"/k\"").expect("good").auth;
        assert!(munge.munge && munge.key == Path::new("/k"));
        for bad in ["method = \"mung\"", "key = \"k\"", "munge_socket = \"s\""] {
            assert_eq!(with(bad).expect_err(bad)[0].0, 20, "{bad}");
        }
    }

    #[test]
    fn every_error_is_reported_with_its_line() {
        let bad = GOOD
            .replace("127.0.0.1:7400", "nowhere")
            .replace("\"256MiB\"", "\"1MiB\"")
            .replace("/dev/nvme1n1", "/dev/nvme0n1")
            + "[cluster]\ngeometry = \"8+5\"\n";
        let errors = Config::parse(&bad).expect_err("four errors");
        let lines: Vec<usize> = errors.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 7, 12, 20], "{errors:?}");
    }

    #[test]
    fn one_reactor_is_the_default_and_others_need_buffers() {
        assert_eq!(Config::parse(GOOD).expect("good").node.reactors, 1);
        let with = |more: &str| Config::parse(&GOOD.replace("[log]", &format!("{more}\n[log]")));
        assert_eq!(with("reactors = 8").expect("the default is enough").node.reactors, 8);
        let two = with("buffers = \"64MiB\"\nreactors = 2").expect("just enough");
        assert_eq!(two.node.reactors, 2);
        for bad in ["reactors = 0", "reactors = 65", "reactors = 9", "reactors = \"2\""] {
            let errors = with(bad).expect_err(bad);
            assert_eq!((errors.len(), errors[0].0), (1, 5), "{bad}: {errors:?}");
        }
        assert!(with("reactors = 9").expect_err("buffers")[0].1.contains("288 MiB"));
        assert!(with("buffers = \"288MiB\"\nreactors = 9").is_ok());
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let errors = Config::parse(&GOOD.replace("[bfs]", "[bfs]\nthread = 3")).expect_err("typo");
        assert_eq!(errors[0].0, 18, "{errors:?}");
        assert!(errors[0].1.contains("unknown field"), "{errors:?}");
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("12"), Ok(Bytes(12)));
        assert_eq!(parse_bytes("3 MiB"), Ok(Bytes(3 << 20)));
        assert!(parse_bytes("3 parsecs").is_err());
        assert!(parse_bytes("99999999999 TiB").is_err());
    }
}
