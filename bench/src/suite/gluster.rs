//! GlusterFS, dispersed 2+1 over three bricks, started and stopped by us in directories of ours.
//!
//! It lives in a network namespace of its own, where the congestion control is the one that Burstbay
//! sets on its sockets (cubic on loopback): the system's default stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::clock;
use super::cluster::must;
use super::place::Place;
use super::process::{Guarded, bound, output};

const VOLUME: &str = "bench";
const BRICKS: usize = 3;
/// Of its namespace alone: it refuses to keep bricks at a loopback address.
const HOST: &str = "192.0.2.1";

/// A mounted volume. Everything ends when it is dropped.
pub struct Gluster {
    /// Where it is mounted.
    pub mount: PathBuf,
    folder: PathBuf,
    namespace: String,
    daemon: Option<Guarded>,
}

/// Why there is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Missing {
    /// The packages are not there.
    NotInstalled,
    /// It could not be started.
    Failed(String),
}

impl Gluster {
    /// Starts it, if it is installed.
    ///
    /// # Errors
    /// It is not, or does not work here (it needs root).
    pub fn start(place: &Place) -> Result<Self, Missing> {
        let installed = ["/usr/sbin/glusterd", "/usr/sbin/gluster", "/usr/sbin/glusterfs"];
        if !installed.iter().all(|path| Path::new(path).exists()) {
            return Err(Missing::NotInstalled);
        }
        let namespace = format!("bbbench{}", std::process::id());
        let folder = place.folder("gluster").map_err(Missing::Failed)?;
        let mount = folder.join("mount");
        let mut gluster = Self { mount, folder, namespace, daemon: None };
        gluster.bring_up().map_err(Missing::Failed)?;
        Ok(gluster)
    }

    fn bring_up(&mut self) -> Result<(), String> {
        must("ip", &["netns", "add", &self.namespace])?;
        self.inside("ip", &["link", "set", "lo", "up"])?;
        self.inside("ip", &["addr", "add", &format!("{HOST}/32"), "dev", "lo"])?;
        // Of the routes: a namespace may not choose one that not everybody may.
        for address in [HOST, "127.0.0.1"] {
            let route = format!(
                "route replace table local local {address} dev lo proto kernel scope host src \
                 {address} congctl cubic"
            );
            self.inside("ip", &route.split(' ').collect::<Vec<_>>())?;
        }
        let here = self.folder.display().to_string();
        for name in ["state", "run", "log", "mount", "brick0", "brick1", "brick2"] {
            let path = self.folder.join(name);
            fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let text = format!(
            "volume management\n    type mgmt/glusterd\n    option working-directory {here}/state\n    \
             option run-directory {here}/run\n    option glusterd-sockfile {here}/run/g.sock\n    \
             option transport-type socket\n    option transport.socket.read-fail-log off\n\
             end-volume\n"
        );
        let volfile = self.folder.join("glusterd.vol");
        fs::write(&volfile, text).map_err(|error| error.to_string())?;
        let mut command = self.command("/usr/sbin/glusterd");
        command.arg("-N").arg("-f").arg(&volfile).arg("-p").arg(self.folder.join("run/g.pid"));
        command.arg("-l").arg(self.folder.join("log/glusterd.log"));
        let child = command.spawn().map_err(|error| format!("glusterd: {error}"))?;
        self.daemon = Some(Guarded(child));
        clock::wait("glusterd answers", 30, || Ok(self.gluster(&["pool", "list"]).is_ok()))?;
        let mut words = vec!["volume", "create", VOLUME, "disperse", "3", "redundancy", "1"];
        let bricks: Vec<String> = (0..BRICKS).map(|i| format!("{HOST}:{here}/brick{i}")).collect();
        words.extend(bricks.iter().map(String::as_str));
        words.push("force");
        self.gluster(&words)?;
        self.gluster(&["volume", "start", VOLUME])?;
        let mut command = self.command("/usr/sbin/glusterfs");
        command.args([&format!("--volfile-server={HOST}"), "--volfile-id=/bench", "-p"]);
        command.arg(self.folder.join("run/mount.pid")).arg("-l");
        command.arg(self.folder.join("log/mount.log")).arg(&self.mount);
        output(command)?;
        let mounted = || Ok(is_mounted(&self.mount));
        clock::wait("the volume is mounted", 30, mounted)
    }

    /// A command in the namespace.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        bound(command)
    }

    fn inside(&self, program: &str, words: &[&str]) -> Result<String, String> {
        let mut command = self.command(program);
        command.args(words);
        output(command)
    }

    fn gluster(&self, words: &[&str]) -> Result<String, String> {
        let mut command = self.command("/usr/sbin/gluster");
        command.arg(format!("--glusterd-sock={}", self.folder.join("run/g.sock").display()));
        command.arg(format!("--log-file={}", self.folder.join("log/cli.log").display()));
        command.arg("--mode=script").args(words);
        output(command)
    }

    /// Where it keeps its data.
    pub fn bricks(&self) -> Vec<PathBuf> {
        (0..BRICKS).map(|i| self.folder.join(format!("brick{i}"))).collect()
    }

    /// Its processes: those in our namespace.
    pub fn pids(&self) -> Vec<(String, u32)> {
        let Ok(text) = must("ip", &["netns", "pids", &self.namespace]) else { return Vec::new() };
        let pids = text.lines().filter_map(|line| line.trim().parse::<u32>().ok());
        pids.filter_map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((name.trim().to_owned(), pid))
        })
        .collect()
    }
}

fn is_mounted(path: &Path) -> bool {
    let wanted = format!(" {} fuse.glusterfs ", path.display());
    fs::read_to_string("/proc/self/mounts").is_ok_and(|text| text.contains(&wanted))
}

impl Drop for Gluster {
    fn drop(&mut self) {
        if is_mounted(&self.mount) {
            let path = self.mount.display().to_string();
            if must("umount", &[&path]).is_err() {
                let _ = must("umount", &["-l", &path]);
            }
        }
        // Those that left our process group are in our namespace, and nobody else is.
        for (_, pid) in self.pids() {
            if let Ok(pid) = i32::try_from(pid) {
                // SAFETY: a process of the namespace that we made.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        self.daemon = None;
        let gone = || Ok(self.pids().is_empty());
        let _ = clock::wait("the end of glusterd", 10, gone);
        let _ = must("ip", &["netns", "del", &self.namespace]);
    }
}
