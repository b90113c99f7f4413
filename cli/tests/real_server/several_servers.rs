//! Several servers, one of which dies or stops.

use std::time::Duration;

use crate::harness::{bytes, now, pause, random, read};
use crate::load::{check, check_backing, under_load};
use crate::several::{Server, Servers};

#[test]
fn real_cluster_loses_a_server_to_kill_9_and_no_call_fails() {
    let mut random = random();
    // Three copies of everything: what the dead server had, only it can have again.
    let mut servers = Servers::started(3, "1+2", None);
    assert_eq!(servers.status().0, 0, "all is well");
    let model = under_load(&mut servers, &mut random, |servers, random, stamps| {
        pause(1_000);
        let victim = random.usize(0..servers.nodes.len());
        servers.nodes[victim].kill();
        let killed = now();
        println!("server {} killed after {} writes", victim + 1, stamps.count());
        // At first its partitions wait (4), then others serve them (3).
        let mut codes = vec![servers.status().0];
        let noticed = servers
            .wait("the server is down", 30, |status| status["nodes"][victim]["state"] == "down");
        codes.push(servers.status().0);
        assert_ne!(codes[0], 0, "a dead server is noticed");
        assert_eq!(codes[1], 3, "everything is served again");
        while stamps.first_after(killed + noticed).is_none() {
            pause(50);
        }
        pause(1_000);
        println!(
            "first write {:.2} s after the kill, down in the map after {:.2} s, longest write {:.2} s",
            stamps.first_after(killed).unwrap_or_default().as_secs_f64(),
            noticed.as_secs_f64(),
            stamps.longest_after(killed).as_secs_f64()
        );
        let (_, status) = servers.status();
        assert_eq!(status["nodes"][victim]["copies"], 0, "others have its roles");
        servers.nodes[victim].start();
        let filled = servers.wait_until_full(60);
        println!("full redundancy {:.2} s after its start", filled.as_secs_f64());
        let (code, status) = servers.status();
        // Two nodes were too few for groups of three blocks; that is said until they are gone.
        assert!(status["groups"]["crowded"].as_u64().is_some_and(|count| count > 0), "{status:#}");
        assert_eq!(code, 3, "{status:#}");
        assert_eq!(status["nodes"][victim]["incarnation"], 2);
        assert_eq!(status["nodes"][victim]["copies"], 16, "it is a backup again");
    });
    check(&servers, &model);
    // Another one: what was written while the first was dead is there, too.
    let another = random.usize(0..servers.nodes.len());
    servers.nodes[another].kill();
    check(&servers, &model);
    // And now all of them at once.
    servers.nodes[another].start();
    servers.wait_until_full(60);
    servers.nodes.iter_mut().for_each(Server::kill);
    assert_eq!(servers.status().0, 1, "nobody answers");
    servers.nodes.iter_mut().for_each(Server::start);
    let all = servers.wait_until_full(60);
    println!("full redundancy {:.2} s after the start of all", all.as_secs_f64());
    check(&servers, &model);
    check_backing(&servers, &model);
}

/// Each server in turn, as for an update: its roles are elsewhere before it ends.
#[test]
fn real_servers_that_are_stopped_and_started_in_turn_keep_nobody_waiting() {
    let mut random = random();
    let mut servers = Servers::started(4, "2+1", None);
    let model = under_load(&mut servers, &mut random, |servers, _, stamps| {
        pause(1_000);
        for at in 0..servers.nodes.len() {
            let led = servers.status().1["raft"]["leader"] == at + 1;
            let began = now();
            servers.nodes[at].stop();
            let ended = began.elapsed();
            pause(1_500);
            let longest = stamps.longest_after(began);
            println!(
                "server {} (leader: {led}) ended in {:.2} s, longest write {:.2} s",
                at + 1,
                ended.as_secs_f64(),
                longest.as_secs_f64()
            );
            assert!(ended < Duration::from_secs(8), "{}", servers.nodes[at].log());
            // A lease alone takes three.
            assert!(longest < Duration::from_secs(2), "{}", servers.nodes[at].log());
            let (code, status) = servers.status();
            assert_eq!(status["nodes"][at]["state"], "down", "{status:#}");
            assert_eq!(code, 3, "everything is served: {status:#}");
            servers.nodes[at].start();
            servers.wait_until_full(60);
        }
    });
    check(&servers, &model);
}

/// Who runs an operation on a file dies with it: the client starts it again where the file is then.
#[test]
fn real_sync_survives_the_death_of_a_server_in_the_middle() {
    const FILES: u64 = 1_500;
    let mut random = random();
    let mut servers = Servers::started(3, "2+1", None);
    let source = servers.directory.join("source");
    std::fs::create_dir(&source).expect("a directory");
    for file in 0..FILES {
        let path = source.join(file.to_string());
        std::fs::write(path, bytes(file, 30_000)).expect("a file");
    }
    servers.bbctl_good(&["cp", "-r", &source.display().to_string(), "bb:/copy"]);
    let backing = servers.directory.join("bfs/copy");
    let synchronized = || {
        let all = std::fs::read_dir(&backing).expect("a directory").flatten();
        all.filter(|entry| entry.metadata().is_ok_and(|m| m.len() > 0)).count() as u64
    };
    let mut sync = servers.bbctl(&["sync", "-r", "/copy"]).spawn().expect("bbctl starts");
    while synchronized() < FILES / 10 {
        assert!(sync.try_wait().expect("a child").is_none(), "it ended too early");
        pause(2);
    }
    let victim = random.usize(0..servers.nodes.len());
    servers.nodes[victim].kill();
    let left = FILES - synchronized();
    println!("server {} killed with {left} files to go", victim + 1);
    assert!(left > 0, "the sync was over: this shows nothing");
    assert!(sync.wait().expect("gone").success(), "the sync goes on");
    for file in 0..FILES {
        let found = std::fs::read(backing.join(file.to_string())).expect("is there");
        assert!(found == bytes(file, 30_000), "{file} on the backing file system");
    }
}

/// The supervisor may want to start it itself.
#[test]
fn real_server_that_must_not_start_itself_anew_says_so_with_its_exit_code() {
    let mut servers = Servers::started(3, "2+1", None);
    servers.nodes[1].stop();
    servers.nodes[1].start_with(&["run", "--no-restart"]);
    servers.wait_until_full(60);
    servers.nodes[1].freeze();
    servers.wait("it is down", 30, |status| status["nodes"][1]["state"] == "down");
    servers.nodes[1].thaw();
    assert_eq!(servers.nodes[1].ended(20).code(), Some(75), "{}", servers.nodes[1].log());
}

/// A server that is stopped for longer than its lease, and does not know it when it goes on: what it
/// is asked then, it must not answer from what it had.
#[test]
fn real_server_that_was_stopped_for_longer_than_its_lease_answers_nothing_stale() {
    const FILES: u64 = 12;
    let mut random = random();
    let mut servers = Servers::started(3, "2+1", None);
    let path = |file: u64| format!("/f{file}");
    // A request of this one waits until the stopped server goes on.
    let (patient, writer) = (servers.client(60), servers.client(2));
    let write = |version: u64| {
        for file in 0..FILES {
            let flags = libc::O_RDWR | libc::O_CREAT;
            let file = writer.open(path(file).as_bytes(), flags, 0o644).expect("opens");
            file.pwrite(&bytes(version, 50_000), 0).expect("writes");
            file.fsync().expect("fsyncs");
            file.close().expect("closes");
        }
    };
    write(1);
    for file in 0..FILES {
        assert_eq!(read(&patient, &path(file)), bytes(1, 50_000));
    }
    let victim = random.usize(0..servers.nodes.len());
    let before = servers.status().1["nodes"][victim]["primaries"].as_u64().expect("a number");
    assert!(before > 0, "it serves something");
    servers.nodes[victim].freeze();
    let frozen = now();
    write(2);
    let written = frozen.elapsed();
    servers.wait("the server is down", 30, |status| status["nodes"][victim]["state"] == "down");
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..FILES)
            .map(|file| {
                scope.spawn({
                    let patient = &patient;
                    move || read(patient, &path(file))
                })
            })
            .collect();
        pause(500);
        let waiting = readers.iter().filter(|reader| !reader.is_finished()).count();
        // Most go to its successors as soon as they hear of it.
        println!("{waiting} of {FILES} readers wait for server {}", victim + 1);
        servers.nodes[victim].thaw();
        for reader in readers {
            let found = reader.join().expect("no call failed");
            assert!(found == bytes(2, 50_000), "an old primary answered");
        }
    });
    // It has started itself anew: the same process, another incarnation.
    servers.wait("it is active again", 30, |status| {
        let node = &status["nodes"][victim];
        node["state"] == "active" && node["incarnation"] == 2
    });
    servers.wait_until_full(60);
    let log = servers.nodes[victim].log();
    assert!(log.contains("starts anew"), "{log}");
    println!("all files written {:.2} s after the stop", written.as_secs_f64());
    // It goes on under load, longer than any lease.
    let model = under_load(&mut servers, &mut random, |servers, random, stamps| {
        let victim = random.usize(0..servers.nodes.len());
        servers.nodes[victim].freeze();
        let frozen = now();
        pause(7_000);
        servers.nodes[victim].thaw();
        servers.wait_until_full(60);
        println!(
            "server {} stopped for 7 s under load: longest write {:.2} s",
            victim + 1,
            stamps.longest_after(frozen).as_secs_f64()
        );
        assert!(stamps.first_after(frozen).is_some_and(|first| first < Duration::from_secs(60)));
    });
    check(&servers, &model);
}
