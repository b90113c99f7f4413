//! What each server says that its devices and its log have done.

use serde_json::{Value, json};

/// A data device or a commit log, counted by its server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// The process, as [`Cluster::pids`](super::cluster::Cluster::pids) names it.
    pub process: String,
    /// `log`, or `device` and its number in the map.
    pub name: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flushes, durable writes among them.
    pub flushes: u64,
}

/// All of them, of what `bbadm cluster status --json` says. `process` names that of an address.
pub fn stores(status: &Value, process: impl Fn(&str) -> Option<String>) -> Vec<Store> {
    let mut all = Vec::new();
    for node in status["nodes"].as_array().into_iter().flatten() {
        let Some(process) = node["address"].as_str().and_then(&process) else { continue };
        let mut add = |name: String, [read, written, flushes]: [&Value; 3]| {
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            all.push(Store {
                process: process.clone(),
                name,
                read_bytes: number(read),
                write_bytes: number(written),
                flushes: number(flushes),
            });
        };
        let names = ["log_read_bytes", "log_written_bytes", "log_flushes"];
        add("log".to_owned(), names.map(|name| &node[name]));
        for device in node["devices"].as_array().into_iter().flatten() {
            let names = ["read_bytes", "written_bytes", "flushes"];
            add(format!("device {}", device["device"]), names.map(|name| &device[name]));
        }
    }
    all
}

/// What came on top of `before`. A process that was not there before has begun at nothing.
pub fn since(after: Vec<Store>, before: &[Store]) -> Vec<Store> {
    let same = |store: &Store| {
        before.iter().find(|b| b.process == store.process && b.name == store.name).cloned()
    };
    let change = |store: Store| {
        let before = same(&store).unwrap_or_default();
        Store {
            read_bytes: store.read_bytes.saturating_sub(before.read_bytes),
            write_bytes: store.write_bytes.saturating_sub(before.write_bytes),
            flushes: store.flushes.saturating_sub(before.flushes),
            ..store
        }
    };
    after.into_iter().map(change).collect()
}

/// For the JSON file.
pub fn json(stores: &[Store]) -> Vec<Value> {
    let one = |store: &Store| {
        json!({
            "process": store.process, "store": store.name, "read_bytes": store.read_bytes,
            "write_bytes": store.write_bytes, "flushes": store.flushes,
        })
    };
    stores.iter().map(one).collect()
}

/// Bytes written of a process's devices and log together.
pub fn written(stores: &[Store], process: &str) -> u64 {
    stores.iter().filter(|store| store.process == process).map(|store| store.write_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_and_log_has_its_own_count() {
        let status = |written: u64| {
            json!({ "nodes": [
                { "address": "a:1", "log_written_bytes": 5, "log_flushes": 2, "devices": [
                    { "device": 7, "written_bytes": written, "flushes": 1, "read_bytes": 3 },
                ] },
                { "address": "b:1" },
            ] })
        };
        let of = |written| {
            stores(&status(written), |address| (address == "a:1").then(|| "bbd1".to_owned()))
        };
        let change = since(of(100), &of(60));
        let names: Vec<&str> = change.iter().map(|store| store.name.as_str()).collect();
        assert_eq!(names, ["log", "device 7"]);
        let counts: Vec<(u64, u64)> = change.iter().map(|s| (s.write_bytes, s.flushes)).collect();
        assert_eq!(counts, [(0, 0), (40, 0)]);
        assert_eq!(written(&of(100), "bbd1"), 105);
        assert_eq!(written(&of(100), "bbd2"), 0);
        // A server that was started meanwhile.
        assert_eq!(since(of(100), &[]), of(100));
    }
}
