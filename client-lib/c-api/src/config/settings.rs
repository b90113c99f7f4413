//! Settings in their types, and what they make of a client.

use std::time::Duration;

use bb_client::ClientOptions;
use bb_erasure::Geometry;

use super::Values;
use super::definitions::{geometry, server_list};
use crate::paths::Places;

/// Everything, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Servers to ask for the cluster's map.
    pub servers: Vec<String>,
    /// Which paths are ours.
    pub places: Places,
    /// Longest time to connect.
    pub init_timeout: Duration,
    /// Longest time for a call.
    pub command_timeout: Duration,
    /// A request without an answer is repeated after this.
    pub request_timeout: Option<Duration>,
    pub geometry: Option<Geometry>,
    pub deterministic: Option<bool>,
    pub read_ahead: bool,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub track_job: bool,
    pub catch_sigsegv: bool,
    pub log: LogSettings,
    pub monitor_file: String,
}

/// What is logged, and where to.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// From 0, everything, to 5, next to nothing.
    pub level: u8,
    /// Empty: standard error.
    pub file: String,
    /// 0: no limit.
    pub lines_max: u64,
    /// Up to this level, files are not rotated.
    pub no_rotation_level: u8,
}

impl Settings {
    /// From values that were checked.
    ///
    /// # Errors
    /// A sentence.
    pub fn from_values(values: &Values) -> Result<Self, String> {
        let text = |name: &str| values.get(name).map_or("", |value| value.text.trim());
        let number = |name: &str| {
            let text = text(name);
            text.parse::<u64>().map_err(|_| format!("{name}: '{text}' is not a number"))
        };
        let level = |name| number(name).map(|level| u8::try_from(level).unwrap_or(u8::MAX));
        let seconds = |name| number(name).map(Duration::from_secs);
        let is_set = |name| text(name) == "1";
        Ok(Self {
            servers: server_list(text("servers")),
            places: Places::new(text("mount_point"), text("fuse_mount_point")),
            init_timeout: seconds("init_timeout")?,
            command_timeout: seconds("command_timeout")?,
            request_timeout: Some(seconds("rpc_client_timeout")?).filter(|time| !time.is_zero()),
            geometry: geometry(text("pgeom")),
            deterministic: match text("data_placement_type") {
                "" => None,
                kind => Some(kind == "DETERMINISTIC"),
            },
            read_ahead: !is_set("disable_ra"),
            read_bytes: number("rd_buffers")? << 20,
            write_bytes: number("wr_buffers")? << 20,
            track_job: is_set("job_tracking_enabled"),
            catch_sigsegv: is_set("catch_sigsegv"),
            log: LogSettings {
                level: level("debug_level")?,
                file: text("log_file").to_owned(),
                lines_max: number("log_max_lines_per_file")?,
                no_rotation_level: level("log_rotation_disable_level")?,
            },
            monitor_file: text("monitor_file").to_owned(),
        })
    }

    /// Memory for payload: what is written and not acknowledged, and what is kept for reading, may
    /// take a quarter each (`bb_client::Client`).
    pub fn pool_bytes(&self) -> usize {
        let bytes = 4 * self.read_bytes.max(self.write_bytes).max(8 << 20);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// For a client of this process.
    pub fn options(&self) -> ClientOptions {
        let usual = ClientOptions::default();
        let job = if self.track_job { std::env::var("SLURM_JOB_ID").ok() } else { None };
        ClientOptions {
            host: host_name(),
            pid: std::process::id(),
            job: job.and_then(|id| id.trim().parse().ok()).unwrap_or(0),
            credentials: crate::credentials::present(),
            geometry: self.geometry,
            command_timeout: self.command_timeout,
            connect_timeout: Some(self.init_timeout),
            deterministic: self.deterministic,
            request_timeout: self.request_timeout.unwrap_or(usual.request_timeout),
            write_back_bytes: self.write_bytes,
            read_cache_bytes: self.read_bytes,
            read_ahead_bytes: if self.read_ahead { usual.read_ahead_bytes } else { 0 },
            ..usual
        }
    }
}

fn host_name() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: as many writable bytes as the call is told.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    if failed { String::new() } else { String::from_utf8_lossy(&name[..len]).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gather;

    fn options(environment: &[(&str, &str)]) -> ClientOptions {
        let said =
            |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        let (values, errors) = gather(said);
        assert_eq!(errors, Vec::<String>::new());
        Settings::from_values(&values).expect("good").options()
    }

    /// What each does there is shown by client-lib/tests/options.rs and cli/tests/native_api.
    #[test]
    fn variables_become_the_options_of_the_client() {
        let usual = options(&[]);
        assert_eq!(usual.deterministic, None);
        let kind = |kind| options(&[("IM_CLIENT_DATA_PLACEMENT_TYPE", kind)]).deterministic;
        assert_eq!(kind("DETERMINISTIC"), Some(true));
        assert_eq!(kind("NONDETERMINISTIC"), Some(false));
        assert!(usual.read_ahead_bytes > 0);
        assert_eq!(options(&[("IM_CLIENT_DISABLE_RA", "1")]).read_ahead_bytes, 0);
        let buffers = [("IM_CLIENT_RD_BUFFERS", "64"), ("IM_CLIENT_WR_BUFFERS", "128")];
        let buffers = options(&buffers);
        assert_eq!((buffers.read_cache_bytes, buffers.write_back_bytes), (64 << 20, 128 << 20));
        let times = [("IM_CLIENT_COMMAND_TIMEOUT", "7"), ("IM_RPC_CLIENT_TIMEOUT_SECONDS", "3")];
        let times = options(&times);
        assert_eq!(times.command_timeout, Duration::from_secs(7));
        assert_eq!(times.request_timeout, Duration::from_secs(3));
        assert_eq!(usual.request_timeout, ClientOptions::default().request_timeout);
    }
}
