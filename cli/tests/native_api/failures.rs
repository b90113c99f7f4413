//! With servers that die.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use crate::harness::{Cluster, Shape};
use crate::programs::Programs;
use crate::several::Servers;

#[test]
fn real_programs_go_on_when_a_server_dies_under_them() {
    let mut servers = Servers::started(3, "2+1", None);
    let addresses: Vec<&str> = servers.nodes.iter().map(|node| node.address.as_str()).collect();
    let programs = Programs::new(&addresses.join(","), &servers.directory.join("bfs"), 60);
    let (place, _) = programs.place("survive");
    let mut command = programs.command("survive");
    command.args([&place, "12"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("read");
    assert_eq!(line, "half\n");
    servers.nodes[1].kill();
    let (mut rest, mut errors) = (String::new(), String::new());
    lines.read_to_string(&mut rest).expect("read");
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("read");
    assert!(child.wait().expect("its end").success(), "{errors}");
    println!("{rest}");
    // And everything else with one server away.
    programs.run("functions", &[]);
    let (place, local) = programs.place("behaviour");
    programs.run_in("behaviour", &[&place, local.to_str().expect("UTF-8")]);
    programs.run("aio", &[]);
    programs.run("ring", &[]);
    programs.run("drivers", &[]);
    programs.run("forks", &["2"]);
}

#[test]
fn real_a_write_that_was_lost_is_told_by_fsync_and_by_close() {
    let mut cluster = Cluster::started(&Shape::default());
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 2);
    let (place, _) = programs.place("refused");
    let mut command = programs.command("refused");
    command.arg(&place).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    assert_eq!(line, "now\n");
    cluster.kill();
    child.stdin.take().expect("piped").write_all(b"\n").expect("written");
    let mut errors = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("read");
    assert!(child.wait().expect("its end").success(), "{errors}");
}
