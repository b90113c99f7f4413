//! Starting what is measured, in the room that there is.

use std::path::Path;

use super::cluster::{ALIKE, Cluster, Geometry, Shape, Slower};
use super::gluster::{Gluster, Missing};
use super::options::Options;
use super::place::{Place, free_bytes};
use super::system::{Kind, System};

/// Burstbay's columns: name, servers, geometry.
const CLUSTERS: [(&str, u64, Geometry); 3] = [
    ("burstbay-1+0", 1, Geometry { data: 1, parity: 0 }),
    ("burstbay-2+1", 4, Geometry { data: 2, parity: 1 }),
    ("burstbay-4+2", 6, Geometry { data: 4, parity: 2 }),
];
/// Name of the skeleton's column.
pub const FLOOR: &str = "floor-2+1";
/// Of the machine's.
pub const DIRECT: &str = "direct";
/// Of the disk's own file system.
pub const EXT4: &str = "ext4";
/// Of GlusterFS.
pub const GLUSTER: &str = "gluster-2+1";

/// Four servers, of which one has devices that are ten times slower, ...
pub const SLOW: &str = "slow-2+1";
/// ... or devices and log, ...
pub const SLOW_LOG: &str = "slow-log-2+1";
/// ... and what three servers give, which the other three of those are.
pub const THREE: &str = "three-2+1";
/// All of them: measured after the others, by themselves.
pub const SLOW_SYSTEMS: [&str; 3] = [THREE, SLOW, SLOW_LOG];
/// How many times slower.
const TIMES: u64 = 10;

/// Beside the large rows: random writes, small files, small clusters' lower bounds.
const EXTRA_BYTES: u64 = 128 << 20;

/// What was started, and what was not.
pub struct Systems {
    /// Those that run.
    pub all: Vec<System>,
    /// Names and reasons of those that do not.
    pub missing: Vec<(String, String)>,
}

fn shape(options: &Options, servers: u64, geometry: Geometry, size: u64) -> Shape {
    let (user_bytes, log_bytes) = (size + EXTRA_BYTES, options.log_bytes());
    Shape { servers, geometry, user_bytes, log_bytes, slower: ALIKE }
}

fn slow_shape(options: &Options, name: &str, size: u64) -> Shape {
    let geometry = Geometry { data: 2, parity: 1 };
    let servers = if name == THREE { 3 } else { 4 };
    let slower = match name {
        THREE => ALIKE,
        SLOW => Slower { devices: TIMES, log: 1 },
        _ => Slower { devices: TIMES, log: TIMES },
    };
    Shape { slower, ..shape(options, servers, geometry, size) }
}

/// On the disk, for large rows of that size.
fn disk_bytes(options: &Options, size: u64) -> u64 {
    let mut sum = EXTRA_BYTES;
    for (name, servers, geometry) in CLUSTERS {
        if options.wants(name) {
            sum += shape(options, servers, geometry, size).disk_bytes();
        }
    }
    for (name, halves) in [(DIRECT, 2), (EXT4, 2), (FLOOR, 3), (GLUSTER, 3)] {
        sum += u64::from(options.wants(name)) * (halves * size / 2 + EXTRA_BYTES);
    }
    // When these come, the others' clusters are gone.
    let slow = SLOW_SYSTEMS.iter().filter(|name| options.wants(name));
    sum.max(slow.map(|name| slow_shape(options, name, size).disk_bytes()).sum())
}

/// Bytes of a large row: what is wanted, or the most that leaves the reserve.
///
/// # Errors
/// There is no room for anything worth measuring.
pub fn size(options: &Options, directory: &Path) -> Result<u64, String> {
    let free = free_bytes(directory)?.saturating_sub(options.reserve << 30);
    let mut size = options.size_wanted();
    while disk_bytes(options, size) > free {
        size = size / 2 - (size / 2) % (1 << 20);
        if size < 8 << 20 {
            return Err(format!(
                "no room: {} MiB are free beside a reserve of {} GiB; see --reserve, --systems, \
                 --directory",
                free >> 20,
                options.reserve
            ));
        }
    }
    Ok(size)
}

/// Starts all that are wanted.
///
/// # Errors
/// One of ours does not start.
pub fn start(
    options: &Options,
    place: &Place,
    programs: &Path,
    size: u64,
) -> Result<Systems, String> {
    let mut systems = Systems { all: Vec::new(), missing: Vec::new() };
    for (name, kind) in [(DIRECT, Kind::Direct), (EXT4, Kind::Plain)] {
        if options.wants(name) {
            let path = place.folder(name)?.display().to_string();
            systems.all.push(System { name: name.to_owned(), path, kind });
        }
    }
    for (name, servers, geometry) in CLUSTERS {
        if options.wants(name) {
            let shape = shape(options, servers, geometry, size);
            systems.all.push(start_cluster(place, programs, name, shape)?);
        }
    }
    if options.wants(GLUSTER) {
        match Gluster::start(place) {
            Ok(gluster) => {
                let path = gluster.mount.display().to_string();
                let kind = Kind::Gluster(Box::new(gluster));
                systems.all.push(System { name: GLUSTER.to_owned(), path, kind });
            }
            Err(missing) => {
                let why = match missing {
                    Missing::NotInstalled => "not installed".to_owned(),
                    Missing::Failed(why) => why,
                };
                super::tell::progress(&format!("bench: {GLUSTER}: {why}"));
                systems.missing.push((GLUSTER.to_owned(), why));
            }
        }
    }
    Ok(systems)
}

fn start_cluster(
    place: &Place,
    programs: &Path,
    name: &str,
    shape: Shape,
) -> Result<System, String> {
    let servers = shape.servers;
    super::tell::progress(&format!("bench: {name}: format and start {servers} servers"));
    let cluster =
        Cluster::start(place, programs, name, shape).map_err(|error| format!("{name}: {error}"))?;
    let path = cluster.work.clone();
    let kind = Kind::Burstbay(Box::new(cluster));
    Ok(System { name: name.to_owned(), path, kind })
}

/// Starts those of [`SLOW_SYSTEMS`] that are wanted.
///
/// # Errors
/// One does not start.
pub fn start_slow(
    options: &Options,
    place: &Place,
    programs: &Path,
    size: u64,
) -> Result<Systems, String> {
    let wanted = SLOW_SYSTEMS.into_iter().filter(|name| options.wants(name));
    let start = |name| start_cluster(place, programs, name, slow_shape(options, name, size));
    Ok(Systems { all: wanted.map(start).collect::<Result<_, _>>()?, missing: Vec::new() })
}
