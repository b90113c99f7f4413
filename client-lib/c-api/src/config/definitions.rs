//! The table of settings. docs/c-api.md has a row for each.

use std::str::FromStr;

use bb_erasure::Geometry;

/// Whether anything depends on a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what the Guide says.
    Works,
    /// It is kept and shown; what it controls is not there yet.
    NotYet,
    /// It is kept and shown; what it controlled does not exist in this design.
    None,
}

/// One setting.
pub struct Definition {
    /// In `[client]` of bb.conf, in the section `client` of ime.conf, and with `bb_set`.
    pub name: &'static str,
    /// Environment variables, the first one that is set wins.
    pub variables: &'static [&'static str],
    /// Its other names in ime.conf and bb.conf, as section.key.
    pub keys: &'static [&'static str],
    pub default: &'static str,
    pub effect: Effect,
    pub check: fn(&str) -> Result<(), &'static str>,
    /// Three good values, for the test of precedence.
    #[cfg(test)]
    pub examples: (&'static str, &'static str, &'static str),
}

fn any(_: &str) -> Result<(), &'static str> {
    Ok(())
}

fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.trim().parse().map_err(|_| "is not a number (0 or more)")
}

fn integer(text: &str) -> Result<(), &'static str> {
    number::<u64>(text).map(drop)
}

fn flag(text: &str) -> Result<(), &'static str> {
    if ["0", "1"].contains(&text.trim()) { Ok(()) } else { Err("is neither 0 nor 1") }
}

fn seconds(text: &str) -> Result<(), &'static str> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if (0.0..1e9).contains(&seconds) => Ok(()),
        _ => Err("is not a number of seconds"),
    }
}

fn percent(text: &str) -> Result<(), &'static str> {
    match number::<u32>(text) {
        Ok(0..=100) => Ok(()),
        _ => Err("is not a percentage from 0 to 100"),
    }
}

fn buffers(text: &str) -> Result<(), &'static str> {
    match number::<u64>(text) {
        Ok(32..=8_192) => Ok(()),
        _ => Err("is not a number of MiB from 32 to 8192"),
    }
}

fn level(text: &str) -> Result<(), &'static str> {
    match number::<u8>(text) {
        Ok(0..=5) => Ok(()),
        _ => Err("is not a level from 0 (trace) to 5 (fatal)"),
    }
}

fn absolute(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.starts_with('/') { Ok(()) } else { Err("is not an absolute path") }
}

/// N+K.
pub fn geometry(text: &str) -> Option<Geometry> {
    let (data, parity) = text.trim().split_once('+')?;
    Geometry::new(data.parse().ok()?, parity.parse().ok()?).ok()
}

fn geometry_or_none(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || geometry(text).is_some() {
        Ok(())
    } else {
        Err("is not a geometry N+K from 1+0 to 16+4")
    }
}

fn placement(text: &str) -> Result<(), &'static str> {
    match text {
        "" | "DETERMINISTIC" | "NONDETERMINISTIC" => Ok(()),
        _ => Err("is neither DETERMINISTIC nor NONDETERMINISTIC"),
    }
}

/// `host:port`, with commas between.
pub fn server_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

fn servers(text: &str) -> Result<(), &'static str> {
    let good = |server: &String| {
        server.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
    };
    let list = server_list(text);
    if !list.is_empty() && list.iter().all(good) { Ok(()) } else { Err("is not HOST:PORT,...") }
}

/// Networks as in the Guide: `ib0-verbs,ib1-verbs`.
fn interfaces(text: &str) -> Result<(), &'static str> {
    let good = |one: &str| {
        one.trim().rsplit_once('-').is_some_and(|(device, protocol)| {
            !device.is_empty() && ["verbs", "tcp"].contains(&protocol)
        })
    };
    if text.is_empty() || text.split(',').all(good) {
        Ok(())
    } else {
        Err("is not DEVICE-PROTOCOL,... with the protocols verbs and tcp")
    }
}

fn stack(text: &str) -> Result<(), &'static str> {
    match text {
        "" | "CCI" | "OFI" => Ok(()),
        _ => Err("is neither CCI nor OFI"),
    }
}

fn minimum_maximum(text: &str) -> Result<(), &'static str> {
    let numbers = || text.split([',', ':', '-', ' ']).filter(|part| !part.is_empty());
    if numbers().all(|part| part.parse::<u64>().is_ok()) && numbers().count() <= 2 {
        Ok(())
    } else {
        Err("is not a quantity")
    }
}

macro_rules! settings {
    ($($name:literal [$($variable:literal),*] [$($key:literal),*] = $default:literal, $effect:ident, $check:ident,
       ($file:literal, $environment:literal, $call:literal);)*) => {
        &[$(Definition {
            name: $name,
            variables: &[$($variable),*],
            keys: &[$($key),*],
            default: $default,
            effect: Effect::$effect,
            check: $check,
            #[cfg(test)]
            examples: ($file, $environment, $call),
        }),*]
    };
}

/// All of them: where and who, then in the order of the Guide's Appendix C.
pub const DEFINITIONS: &[Definition] = settings! {
    "config_file" ["IM_CLIENT_CFG_FILE"] [] = "", Works, absolute, ("/a", "/b", "/c");
    "servers" ["BB_SERVERS"] [] = "127.0.0.1:7400", Works, servers, ("a:1", "b:2,c:3", "d:4");
    "mount_point" ["IM_CLIENT_BFS_PATH"] ["ime_bfs.mount_point"] = "", Works, absolute,
        ("/p/scratch", "/fsmnt/bfs", "/c");
    "fuse_mount_point" ["BB_FUSE_MOUNT"] ["ime_fuse.mount_point"] = "", Works, absolute,
        ("/p/cscratch", "/imefusemnt", "/c");
    "bulkdata_pool_large" ["IM_BULKDATA_POOL_LARGE_MIN_MAX"] [] = "", None, minimum_maximum, ("1", "2", "3");
    "bulkdata_pool_medium" ["IM_BULKDATA_POOL_MEDIUM_MIN_MAX"] [] = "", None, minimum_maximum, ("1", "2", "3");
    "bulkdata_pool_small" ["IM_BULKDATA_POOL_SMALL_MIN_MAX"] [] = "", None, minimum_maximum, ("1", "2", "3");
    "bulkdata_pool_stage" ["IM_BULKDATA_POOL_STAGE_MIN_MAX"] [] = "", None, minimum_maximum, ("1", "2", "3");
    "bulkdata_pool_tiny" ["IM_BULKDATA_POOL_TINY_MIN_MAX"] [] = "", None, minimum_maximum, ("1", "2", "3");
    "bulkdata_pool_typical" ["IM_BULKDATA_POOL_TYPICAL_MIN_MAX"] [] = "", None, minimum_maximum, ("1", "2", "3");
    "catch_sigsegv" ["IM_CLIENT_CATCH_SIGSEGV"] [] = "0", Works, flag, ("1", "0", "1");
    "command_timeout" ["IM_CLIENT_COMMAND_TIMEOUT"] [] = "1800", Works, integer, ("7", "8", "9");
    "data_placement_type" ["IM_CLIENT_DATA_PLACEMENT_TYPE"] [] = "", Works, placement,
        ("DETERMINISTIC", "NONDETERMINISTIC", "DETERMINISTIC");
    "debug_level" ["IM_CLIENT_DEBUG_LEVEL"] [] = "3", Works, level, ("0", "1", "5");
    "disable_ra" ["IM_CLIENT_DISABLE_RA"] [] = "0", Works, flag, ("1", "0", "1");
    "enable_sgl" ["IM_CLIENT_ENABLE_SGL"] [] = "1", None, flag, ("1", "0", "1");
    "entry_timeout" ["IM_CLIENT_ENTRY_TIMEOUT"] [] = "0.0", None, seconds, ("1.5", "2", "0");
    "handshake_enabled" ["IM_CLIENT_HANDSHAKE_ENABLED"] [] = "1", None, flag, ("1", "0", "1");
    "init_timeout" ["IM_CLIENT_INIT_TIMEOUT"] [] = "3600", Works, integer, ("7", "8", "9");
    "job_tracking_enabled" ["IM_CLIENT_JOB_TRACKING_ENABLED"] [] = "0", NotYet, flag, ("1", "0", "1");
    "log_file" ["IM_CLIENT_LOG_FILE"] [] = "", Works, absolute, ("/a", "/b", "/c");
    "net_if" ["IM_CLIENT_NET_IF"] [] = "", NotYet, interfaces,
        ("ib0-verbs", "ib0-verbs,ib1-verbs", "eth0-tcp");
    "min_connections" ["IM_CLIENT_MIN_CONNECTIONS"] [] = "0", None, flag, ("1", "0", "1");
    "no_bfs_mount" ["IM_CLIENT_NO_BFS_MOUNT"] [] = "0", None, flag, ("1", "0", "1");
    "pgeom" ["IM_CLIENT_PGEOM"] ["def_pgeom", "ime_bfs.def_pgeom"] = "", Works, geometry_or_none,
        ("1+0", "8+2", "2+1");
    "rd_buffers" ["IM_CLIENT_RD_BUFFERS"] [] = "32", Works, buffers, ("33", "64", "8192");
    "wr_buffers" ["IM_CLIENT_WR_BUFFERS"] [] = "32", Works, buffers, ("33", "64", "8192");
    "coredump_dir" ["IM_COREDUMP_DIR"] [] = "", None, any, ("/a", "/b", "/c");
    "log_max_lines_per_file" ["IM_LOG_MAX_LINES_PER_FILE"] [] = "0", Works, integer, ("7", "8", "9");
    "log_rotation_disable_level" ["IM_LOG_ROTATION_DISABLE_LEVEL"] [] = "1", Works, level, ("0", "1", "2");
    "monitor_file" ["IM_MONITOR_FILE"] [] = "", Works, absolute, ("/a", "/b", "/c");
    "network_stack" ["IM_NETWORK_STACK"] ["network_stack"] = "", None, stack, ("CCI", "OFI", "CCI");
    "rpc_client_timeout" ["IM_RPC_CLIENT_TIMEOUT_SECONDS"] [] = "0", Works, integer, ("7", "8", "9");
    "rpc_cm_min_retry" ["IM_RPC_CM_MIN_RETRY_SECONDS"] [] = "5", None, integer, ("7", "8", "9");
    "rpc_cm_max_retry" ["IM_RPC_CM_MAX_RETRY_SECONDS"] [] = "640", None, integer, ("7", "8", "9");
    "rpc_cm_timeout" ["IM_RPC_CM_TIMEOUT_SECONDS"] [] = "120", None, integer, ("7", "8", "9");
    "rpc_conn_no_activity_timeout" ["IM_RPC_CONN_NO_ACTIVITY_TIMEOUT_SECONDS"] [] = "360", None, integer, ("7", "8", "9");
    "rpc_conns_checker" ["IM_RPC_CONNS_CHECKER_SECONDS"] [] = "360", None, integer, ("7", "8", "9");
    "rpc_keepalive_timeout" ["IM_RPC_KEEPALIVE_TIMEOUT_SECONDS"] [] = "120", None, integer, ("7", "8", "9");
    "rpc_server_timeout" ["IM_RPC_SERVER_TIMEOUT_SECONDS"] [] = "300", None, integer, ("7", "8", "9");
    "eject_node_on_net_dev_failure" ["IM_SERVER_EJECT_NODE_ON_NET_DEV_FAILURE"] [] = "1", None, flag, ("1", "0", "1");
    "spatial_read_obj_pool_size" ["IM_SPATIAL_READ_OBJ_POOL_SIZE"] [] = "0", None, integer, ("7", "8", "9");
    "stop_on_ejected" ["IM_STOP_ON_EJECTED"] [] = "", None, any, ("yes", "NO", "no");
    "sync_threshold" [] ["sync_threshold", "flush_threshold_ratio"] = "", NotYet, percent_or_none, ("10", "20", "30");
    "min_free_space_ratio" [] ["min_free_space_ratio"] = "", NotYet, percent_or_none, ("10", "20", "30");
};

fn percent_or_none(text: &str) -> Result<(), &'static str> {
    if text.is_empty() { Ok(()) } else { percent(text) }
}
