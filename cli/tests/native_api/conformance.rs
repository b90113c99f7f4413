//! A program for each section of what IME's programs expect.

use std::os::unix::fs::symlink;

use crate::harness::{Cluster, Shape, not_run};
use crate::programs::Programs;

fn one_server() -> (Cluster, Programs) {
    let shape = Shape { devices: 4, device_mib: 512, ..Shape::default() };
    let cluster = Cluster::started(&shape);
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 60);
    (cluster, programs)
}

#[test]
fn real_every_function_works_under_both_names() {
    let (_cluster, programs) = one_server();
    programs.run("functions", &[]);
}

#[test]
fn real_behaviours_that_programs_rely_on_hold() {
    let (_cluster, programs) = one_server();
    let (place, local) = programs.place("behaviour");
    programs.run_in("behaviour", &[&place, local.to_str().expect("UTF-8")]);
}

#[test]
fn real_all_forms_of_a_path_lead_to_the_same_file() {
    let (_cluster, programs) = one_server();
    let (_, _) = programs.place("dir");
    let (mount, link) = (programs.path("mount"), programs.path("link"));
    std::fs::create_dir(&mount).expect("a directory");
    symlink(&mount, &link).expect("a link");
    let text = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let mut command = programs.command("paths");
    command.args([&text(&programs.backing), "dir", &text(&mount), &text(&link)]);
    let output = command.env("BB_FUSE_MOUNT", &mount).output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        std::fs::read_dir(&mount).expect("there").count(),
        0,
        "nothing went past the library"
    );
}

#[test]
fn real_a_callback_comes_once_for_each_of_thousands_of_requests() {
    let (_cluster, programs) = one_server();
    programs.run("aio", &[]);
}

#[test]
fn real_a_ring_moves_what_it_is_told() {
    let (_cluster, programs) = one_server();
    programs.run("ring", &[]);
}

#[test]
fn real_children_use_the_library_whatever_their_parent_did() {
    let (_cluster, programs) = one_server();
    programs.run("forks", &["6"]);
}

#[test]
fn real_threads_share_the_library_and_some_end_it() {
    let (_cluster, programs) = one_server();
    programs.run("threads", &["12", "15"]);
}

#[test]
fn real_a_thread_that_is_cancelled_ends_between_two_calls() {
    let (_cluster, programs) = one_server();
    programs.run("cancel", &["60"]);
}

#[test]
fn real_children_are_forked_while_other_threads_call() {
    let (_cluster, programs) = one_server();
    programs.run("storm", &["8", "40"]);
}

#[test]
fn real_init_and_finalize_may_come_again_and_again() {
    let (_cluster, programs) = one_server();
    programs.run("cycles", &["30"]);
}

#[test]
fn real_the_calls_of_known_drivers_work_in_their_order() {
    let (_cluster, programs) = one_server();
    programs.run("drivers", &[]);
    programs.run("samples", &[]);
    let local = programs.backing.join("samples/newer");
    assert_eq!(std::fs::metadata(local).expect("synchronized").len(), 1_020);
}

#[test]
fn real_the_user_of_the_calling_thread_decides() {
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return not_run("only root can act as others");
    }
    let (_cluster, programs) = one_server();
    let (place, local) = programs.place("credentials");
    programs.run_in("credentials", &[&place, local.to_str().expect("UTF-8")]);
}

/// Needs 5 GB of disk and of memory, and half a minute: `cargo nextest run --run-ignored only huge`.
#[test]
#[ignore = "moves 10 GB"]
fn real_huge_calls_of_more_than_two_gib_are_not_cut() {
    let shape = Shape { devices: 2, device_mib: 6_144, geometry: "1+0", ..Shape::default() };
    let cluster = Cluster::started(&shape);
    let programs = Programs::new(&cluster.address, &cluster.path("bfs"), 600);
    programs.run("huge", &["whole"]);
}
