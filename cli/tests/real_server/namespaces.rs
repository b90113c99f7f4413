//! A small network of its own: a hub with a bridge, in which the test itself runs, and a namespace
//! for each server. Nothing of the machine's own network is touched.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";

/// The namespaces. Removed when dropped; what a killed test left behind, the next one removes.
pub struct Namespaces {
    prefix: String,
    nodes: u32,
}

fn ip(words: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(words).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", words.join(" "), said.trim()))
}

impl Namespaces {
    /// Makes them, and puts this thread (and what it starts) into the hub.
    pub fn new(nodes: u32) -> Result<Self, String> {
        // SAFETY: no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Err("network namespaces need root".to_owned());
        }
        remove_left_behind();
        let made = Self { prefix: format!("bbt-{}", std::process::id()), nodes };
        let hub = made.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "addr", "add", "10.77.0.254/24", "dev", "br0"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for number in 1..=nodes {
            let (name, port) = (made.node(number), format!("n{number}"));
            let address = format!("10.77.0.{number}/24");
            ip(&["netns", "add", &name])?;
            ip(&[
                "-n", &hub, "link", "add", &port, "type", "veth", "peer", "eth0", "netns", &name,
            ])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        }
        let file = File::open(format!("{NAMES}/{hub}")).map_err(|error| error.to_string())?;
        // SAFETY: a descriptor that is open; the call changes this thread only.
        if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(format!("setns: {}", std::io::Error::last_os_error()));
        }
        Ok(made)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    /// Name of a server's namespace.
    pub fn node(&self, number: u32) -> String {
        format!("{}-{number}", self.prefix)
    }

    /// Where a server listens.
    #[expect(clippy::unused_self, reason = "there is no address without a network")]
    pub fn address(&self, number: u32) -> String {
        format!("10.77.0.{number}:7400")
    }

    /// Takes a server off the net, or puts it back.
    pub fn link(&self, number: u32, up: bool) {
        let (port, state) = (format!("n{number}"), if up { "up" } else { "down" });
        ip(&["-n", &self.hub(), "link", "set", &port, state]).expect("the link is there");
    }

    /// Lets nothing leave `from` for `to`, or lets it again. What `to` sends arrives.
    pub fn blackhole(&self, from: u32, to: u32, on: bool) {
        let (name, route) = (self.node(from), format!("10.77.0.{to}/32"));
        let verb = if on { "add" } else { "del" };
        ip(&["-n", &name, "route", verb, "blackhole", &route]).expect("a route");
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for number in 1..=self.nodes {
            let _ = ip(&["netns", "del", &self.node(number)]);
        }
        // This thread stays in it until it ends; the name is gone.
        let _ = ip(&["netns", "del", &self.hub()]);
    }
}

fn remove_left_behind() {
    let Ok(names) = fs::read_dir(NAMES) else { return };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix("bbt-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}
