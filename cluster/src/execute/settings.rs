//! Settings of the cluster: all that are given, or none.

use super::{Effect, Outcome};
use crate::command::Settings;
use crate::limits::{BACKUPS_MAX, DRIFT_MS, LEASE_MS, PAUSE_MS};
use crate::map::ClusterMap;

fn ensure(holds: bool, why: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why.into()) }
}

pub(super) fn settings(map: &mut ClusterMap, new: Settings) -> Outcome {
    let data = new.data.unwrap_or(map.data);
    let parity = new.parity.unwrap_or(map.parity);
    let backups = new.backups.unwrap_or(map.backups);
    let lease_ms = new.lease_ms.unwrap_or(map.lease_ms);
    let drift_ms = new.drift_ms.unwrap_or(map.drift_ms);
    let heartbeat_ms = new.heartbeat_ms.unwrap_or(map.heartbeat_ms);
    let suspect_ms = new.suspect_ms.unwrap_or(map.suspect_ms);
    let deterministic = new.deterministic.unwrap_or(map.deterministic);
    ensure((1..=16).contains(&data) && parity <= 4, "geometry outside of 1+0 to 16+4")?;
    ensure(backups <= BACKUPS_MAX, "more copies of the metadata than are possible")?;
    ensure(parity <= backups, "no geometry may survive more than the metadata does")?;
    // Only what is given is judged: a map from before the cluster may have no times at all.
    let times = [new.lease_ms, new.drift_ms, new.heartbeat_ms, new.suspect_ms];
    if times.iter().any(Option::is_some) {
        ensure(LEASE_MS.contains(&lease_ms), "a lease takes 100 ms to 20 s")?;
        ensure(DRIFT_MS.contains(&drift_ms), "drift takes 1 ms to 20 s")?;
        let pauses = [heartbeat_ms, suspect_ms];
        ensure(pauses.iter().all(|ms| PAUSE_MS.contains(ms)), "a time takes 1 ms to 10 minutes")?;
        ensure(drift_ms >= lease_ms / 100, "drift is at least 1 % of the lease")?;
        ensure(suspect_ms > heartbeat_ms, "suspicion needs more than one heartbeat")?;
    }
    let before = values(map);
    map.data = data;
    map.parity = parity;
    map.backups = backups;
    map.lease_ms = lease_ms;
    map.drift_ms = drift_ms;
    map.heartbeat_ms = heartbeat_ms;
    map.suspect_ms = suspect_ms;
    map.deterministic = deterministic;
    Ok(if values(map) == before { Effect::Nothing } else { Effect::Changed })
}

const fn values(map: &ClusterMap) -> ([u32; 7], bool) {
    let times = [map.lease_ms, map.drift_ms, map.heartbeat_ms, map.suspect_ms];
    let [lease, drift, heartbeat, suspect] = times;
    ([map.data, map.parity, map.backups, lease, drift, heartbeat, suspect], map.deterministic)
}
