//! Settings: which file, who comes first, and what each of them does.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Cluster, Shape, now};
use crate::programs::Programs;

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    format!("{out}{err}")
}

/// The line of a setting.
fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let start = format!("{name} = ");
    text.lines().find(|line| line.starts_with(&start)).expect("a setting")
}

#[test]
fn real_settings_do_what_they_say() {
    let cluster = Cluster::started(&Shape::default());
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 60);
    let (place, _) = programs.place("settings");
    let file = format!("{place}/f");
    let settings = || programs.command("settings");

    // The program comes before the environment, that before the file.
    let text = output(settings().env("IM_CLIENT_PGEOM", "1+1").args(["IM_CLIENT_PGEOM=1+0"]));
    assert_eq!(line(&text, "pgeom"), "pgeom = 1+0 (set by the program)");
    let text = output(settings().env("IM_CLIENT_PGEOM", "1+1"));
    assert_eq!(line(&text, "pgeom"), "pgeom = 1+1 (environment IM_CLIENT_PGEOM)");
    let config = programs.path("ime.conf").display().to_string();
    assert_eq!(line(&text, "command_timeout"), format!("command_timeout = 60 (file {config})"));
    assert_eq!(line(&text, "sync_threshold"), "sync_threshold =  (default; not yet in use)");

    // The file: the program's before IM_CLIENT_CFG_FILE's; TOML as well.
    let other = programs.path("other.conf");
    fs::write(&other, "[client]\nservers = [\"127.0.0.1:1\"]\nrd_buffers = 64\n").expect("written");
    let named = format!("config_file={}", other.display());
    let text = output(settings().arg(&named));
    assert!(line(&text, "rd_buffers").starts_with("rd_buffers = 64 (file "), "{text}");
    assert!(line(&text, "servers").starts_with("servers = 127.0.0.1:1 (file "));

    // A mistake is named, and only what is ours fails of it.
    let text = output(settings().env("IM_CLIENT_PGEOM", "17+9").args(["--", &file]));
    assert!(text.contains("IM_CLIENT_PGEOM: '17+9' is not a geometry"), "{text}");
    assert!(text.contains("open: Invalid argument"), "{text}");
    let text = output(settings().env("IM_CLIENT_PGEOM", "17+9").args(["--", "/dev/null"]));
    assert!(text.contains("open: good"), "{text}");

    // IM_CLIENT_INIT_TIMEOUT: nobody listens there.
    let start = now();
    let mut command = settings();
    command.env("BB_SERVERS", "127.0.0.1:1").env("IM_CLIENT_INIT_TIMEOUT", "1");
    let text = output(command.args(["--", &file]));
    assert!(text.contains("text: cannot connect to 127.0.0.1:1"), "{text}");
    assert!(start.elapsed().as_secs() < 20);

    // IM_CLIENT_DEBUG_LEVEL and IM_CLIENT_LOG_FILE, with rotation.
    let log = programs.path("client.log");
    let mut command = settings();
    command.env("IM_CLIENT_LOG_FILE", &log).env("IM_CLIENT_DEBUG_LEVEL", "2");
    assert!(!output(command.args(["--", &file])).contains("INFO"));
    assert!(fs::read_to_string(&log).expect("a log").contains("INFO settings:"));
    fs::remove_file(&log).expect("removed");
    command.env("IM_LOG_MAX_LINES_PER_FILE", "1");
    output(&mut command);
    assert!(programs.path("client.log.1").exists(), "a full file was put away");
    fs::remove_file(programs.path("client.log.1")).expect("removed");
    command.env("IM_LOG_ROTATION_DISABLE_LEVEL", "2");
    output(&mut command);
    assert!(!programs.path("client.log.1").exists(), "not at this level");

    // IM_MONITOR_FILE.
    let mut command = programs.command("samples");
    let (place, _) = programs.place("monitored");
    output(command.arg(&place).env("IM_MONITOR_FILE", programs.path("counts.%p")));
    let found = fs::read_dir(programs.path("")).expect("there").filter_map(|entry| {
        let path = entry.expect("an entry").path();
        let name = path.file_name()?.to_str()?.to_owned();
        name.starts_with("counts.").then(|| fs::read_to_string(path).expect("counters"))
    });
    let found: Vec<String> = found.collect();
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("opens 2\n") && found[0].contains("write_bytes 2040\n"), "{found:?}");
}

/// All numbers of this name, wherever they stand.
fn sum_of(value: &Value, name: &str) -> u64 {
    match value {
        Value::Array(all) => all.iter().map(|one| sum_of(one, name)).sum(),
        Value::Object(all) => {
            let here = all.get(name).and_then(Value::as_u64).unwrap_or(0);
            here + all.values().map(|one| sum_of(one, name)).sum::<u64>()
        }
        _ => 0,
    }
}

#[test]
fn real_the_geometry_of_a_job_is_its_own() {
    let cluster = Cluster::started(&Shape { geometry: "2+1", ..Shape::default() });
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 60);
    let used = || sum_of(&cluster.status(), "used_bytes");
    let write = |name: &str, geometry: &str| {
        let before = used();
        let (place, _) = programs.place(name);
        // Once, and nothing over it: what is replaced gives back its space at a time of its own.
        let mut command = programs.command("write");
        output(command.args([&place, "8"]).env("IM_CLIENT_PGEOM", geometry));
        used() - before
    };
    let (plain, mirrored) = (write("plain", "1+0"), write("mirrored", "1+1"));
    assert!(mirrored > plain * 3 / 2, "{plain} {mirrored}");
}

/// A crash is described only where that was asked for, and ends the program all the same.
#[test]
fn real_a_crash_is_described_where_that_is_asked_for() {
    let cluster = Cluster::started(&Shape::default());
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 60);
    for (value, described) in [("0", false), ("1", true)] {
        let mut command = programs.command("crash");
        let output = command.env("IM_CLIENT_CATCH_SIGSEGV", value).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
        let text = "burstbay: SIGSEGV at address 0x0000000000000010";
        assert_eq!(errors.contains(text), described, "{errors}");
    }
}
