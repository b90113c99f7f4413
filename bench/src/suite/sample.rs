//! One measurement: a row, a system, a round.

use serde_json::{Value, json};

use super::load::Work;
use super::process::{Counters, Disk};
use super::rows::{Row, Unit};
use super::stores::{self, Store};

/// What was measured, or why it was not.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Round, from 0.
    pub round: u64,
    /// Name of the row.
    pub row: &'static str,
    /// Name of the system.
    pub system: String,
    /// What the clients did.
    pub work: Work,
    /// What the kernel counted for the system's processes meanwhile.
    pub servers: Vec<(String, Counters)>,
    /// And for the disk.
    pub disk: Disk,
    /// And what they say of each of their devices and logs.
    pub stores: Vec<Store>,
    /// What the cluster said of itself before and after.
    pub placed: Option<Placed>,
    /// Calls on the backing file system by the servers, and the time of these in microseconds, each
    /// by itself.
    pub bfs: Option<(i64, i64)>,
    /// It failed.
    pub error: Option<String>,
    /// Why its figure cannot be believed.
    pub dishonest: Vec<String>,
}

/// What a cluster stored in a row, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placed {
    /// N that new parity groups shall have.
    pub data: u64,
    /// K that they shall have.
    pub parity: u64,
    /// Bytes of devices that were given to blocks.
    pub used_bytes: i64,
    /// Blocks.
    pub blocks: i64,
    /// Memory for metadata, all servers together.
    pub metadata_bytes: i64,
    /// Log in use, all servers together.
    pub log_used_bytes: i64,
    /// Fragments, each counted once.
    pub fragments: i64,
    /// Calls on the backing file system.
    pub bfs_calls: i64,
    /// Time of these, each by itself.
    pub bfs_us: i64,
}

impl Placed {
    /// Sums of what `bbadm cluster status --json` says.
    pub fn of(status: &Value) -> Self {
        let mut sum = Self {
            data: status["data"].as_u64().unwrap_or(0),
            parity: status["parity"].as_u64().unwrap_or(0),
            ..Self::default()
        };
        sum.fragments = status["bytes"]["fragments"].as_i64().unwrap_or(0);
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let number = |value: &Value| value.as_i64().unwrap_or(0);
        for node in list(&status["nodes"]) {
            sum.metadata_bytes += number(&node["metadata_bytes"]);
            sum.log_used_bytes += number(&node["log_used_bytes"]);
            sum.bfs_calls += number(&node["bfs_calls"]);
            sum.bfs_us += number(&node["bfs_us"]);
            for device in list(&node["devices"]) {
                sum.used_bytes += number(&device["used_bytes"]);
                sum.blocks += number(&device["blocks"]);
            }
        }
        sum
    }

    /// What came on top of `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            data: self.data,
            parity: self.parity,
            used_bytes: self.used_bytes - before.used_bytes,
            blocks: self.blocks - before.blocks,
            metadata_bytes: self.metadata_bytes - before.metadata_bytes,
            log_used_bytes: self.log_used_bytes - before.log_used_bytes,
            fragments: self.fragments - before.fragments,
            bfs_calls: self.bfs_calls - before.bfs_calls,
            bfs_us: self.bfs_us - before.bfs_us,
        }
    }
}

impl Sample {
    /// MB/s or operations per second: what the row is about.
    pub fn rate(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Bytes => self.work.bytes as f64 / self.work.seconds / 1e6,
            Unit::Operations => self.work.ops as f64 / self.work.seconds,
        }
    }

    /// Whether there is a figure.
    pub fn good(&self) -> bool {
        self.error.is_none() && self.dishonest.is_empty()
    }

    /// Microseconds below which half of the calls were, where they are timed.
    pub fn p50_us(&self) -> Option<f64> {
        self.work.latencies.percentile_us(0.5)
    }

    /// CPU seconds of the clients.
    pub fn client_cpu(&self) -> f64 {
        self.work.cpu_seconds.iter().fold(0.0, |sum, seconds| sum + seconds)
    }

    /// CPU seconds of the system's processes.
    pub fn server_cpu(&self) -> f64 {
        self.servers.iter().fold(0.0, |sum, (_, counters)| sum + counters.cpu_seconds)
    }

    /// CPU seconds of all, per GB of the user's.
    pub fn cpu_per_gb(&self) -> f64 {
        (self.client_cpu() + self.server_cpu()) / (self.work.bytes as f64 / 1e9)
    }

    /// For the JSON file.
    pub fn json(&self, row: &Row) -> Value {
        let servers: Vec<Value> = self
            .servers
            .iter()
            .map(|(name, c)| {
                json!({
                    "process": name, "cpu_seconds": c.cpu_seconds, "peak_kib": c.peak_kib,
                    "write_bytes": c.write_bytes, "read_bytes": c.read_bytes,
                })
            })
            .collect();
        let percentile = |share| self.work.latencies.percentile_us(share);
        let rate = self.rate(row.unit);
        json!({
            "round": self.round, "row": self.row, "system": self.system,
            "seconds": self.work.seconds, "bytes": self.work.bytes, "operations": self.work.ops,
            "rate": if rate.is_finite() { json!(rate) } else { Value::Null },
            "unit": match row.unit { Unit::Bytes => "MB/s", Unit::Operations => "operations/s" },
            "latency_us": {
                "p50": percentile(0.5), "p99": percentile(0.99), "p99.9": percentile(0.999),
            },
            "clients": { "cpu_seconds": self.work.cpu_seconds, "peak_kib": self.work.peak_kib },
            "servers": servers,
            "stores": stores::json(&self.stores),
            "disk": {
                "write_bytes": self.disk.write_bytes, "read_bytes": self.disk.read_bytes,
                "flushes": self.disk.flushes,
            },
            "placed": self.placed.map(|p| json!({
                "data": p.data, "parity": p.parity, "used_bytes": p.used_bytes, "blocks": p.blocks,
                "metadata_bytes": p.metadata_bytes, "log_used_bytes": p.log_used_bytes,
                "fragments": p.fragments,
            })),
            "bfs": self.bfs.map(|(calls, us)| json!({ "calls": calls, "us": us })),
            "error": self.error, "dishonest": self.dishonest,
        })
    }
}
