//! Starting cargo, and what `cargo metadata` says about the workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Outcome;

/// The workspace's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask lies in the workspace").to_path_buf()
}

/// A program that runs in the workspace's folder.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that built this program.
pub fn cargo() -> Command {
    command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
}

/// Shows the command, runs it with our output, and turns a failure into a sentence.
pub fn run(command: &mut Command) -> Outcome {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    let program = Path::new(&words[0]).file_name().unwrap_or_default();
    let shown = format!("{} {}", program.to_string_lossy(), words[1..].join(" "));
    println!("$ {shown}");
    let status = command.status().map_err(|error| format!("{shown}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{shown}` failed ({status})")) }
}

/// Runs quietly and returns what it printed.
pub fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{program} printed no UTF-8"))
}

/// Where cargo builds.
pub fn target_directory() -> Result<PathBuf, String> {
    let words = ["metadata", "--format-version=1", "--no-deps", "--locked"];
    let metadata: Value =
        serde_json::from_str(&output(cargo().args(words))?).map_err(|error| error.to_string())?;
    let path = metadata["target_directory"].as_str();
    path.map(PathBuf::from).ok_or_else(|| "cargo metadata names no target directory".to_owned())
}

/// Whether a cargo subcommand is installed.
pub fn has(subcommand: &str) -> bool {
    let mut probe = cargo();
    probe.args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// One package of the dependency graph.
pub struct Package {
    /// Cargo's id.
    pub id: String,
    /// Name of the crate.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SPDX expression, or None.
    pub licence: Option<String>,
    /// Folder below the workspace root, for our own crates.
    pub folder: Option<String>,
    /// Names of its binaries.
    pub binaries: Vec<String>,
    /// Names of its features.
    pub features: Vec<String>,
    /// Ids of the packages that its library or binaries are linked with (not build or dev).
    pub links: Vec<String>,
}

/// The packages that a build for this machine uses, with all features. Fails when Cargo.lock
/// doesn't fit the manifests.
pub fn packages() -> Result<Vec<Package>, String> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let words = ["metadata", "--format-version=1", "--locked", "--all-features"];
    let text = output(cargo().args(words).args(["--filter-platform", &target]))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let root = root();
    let nodes = list(&metadata["resolve"]["nodes"]);
    Ok(list(&metadata["packages"])
        .iter()
        .filter_map(|package| {
            let node = nodes.iter().find(|node| node["id"] == package["id"])?;
            Some(read_package(package, node, &root))
        })
        .collect())
}

fn read_package(package: &Value, node: &Value, root: &Path) -> Package {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let manifest = PathBuf::from(text(&package["manifest_path"]));
    let ours = package["source"].is_null();
    let folder = manifest.parent().and_then(|folder| folder.strip_prefix(root).ok());
    let is_binary = |target: &&Value| list(&target["kind"]).iter().any(|kind| kind == "bin");
    let is_link = |dep: &&Value| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"].is_null());
    let features = package["features"].as_object();
    Package {
        id: text(&package["id"]),
        name: text(&package["name"]),
        version: text(&package["version"]),
        licence: package["license"].as_str().map(str::to_owned),
        folder: folder.filter(|_| ours).map(|folder| folder.to_string_lossy().into_owned()),
        binaries: list(&package["targets"])
            .iter()
            .filter(is_binary)
            .map(|target| text(&target["name"]))
            .collect(),
        features: features.map(|map| map.keys().cloned().collect()).unwrap_or_default(),
        links: list(&node["deps"]).iter().filter(is_link).map(|dep| text(&dep["pkg"])).collect(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
