//! A server with more than one reactor: what is promised does not depend on their number.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::crashes::{survives_kills, work};
use crate::harness::{Cluster, Shape, now, pause, random, read};

/// Connections and requests that each reactor has served, as the server's log says when it stops.
fn served(log: &str) -> BTreeMap<u32, (u64, u64)> {
    let number = |line: &str, key: &str| -> u64 {
        let rest = line.split_once(key).expect("the key").1;
        rest.split_whitespace().next().expect("a word").parse().expect("a number")
    };
    log.lines()
        .filter(|line| line.contains("serves no more"))
        .map(|line| {
            let reactor = u32::try_from(number(line, "reactor=")).expect("few");
            (reactor, (number(line, "connections="), number(line, "requests=")))
        })
        .collect()
}

/// CPU time that a process has used so far, user and system.
fn cpu_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    // SAFETY: takes no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_millis(ticks * 1000 / u64::try_from(per_second).expect("positive"))
}

#[test]
fn real_kill_9_loses_nothing_with_two_reactors_and_both_serve() {
    let mut cluster = survives_kills(&Shape { reactors: 2, ..Shape::default() });
    let pid = cluster.pid();
    assert_eq!(
        fs::read_dir(format!("/proc/{pid}/task"))
            .expect("threads")
            .filter(|task| {
                let name = task.as_ref().expect("a thread").path().join("comm");
                fs::read_to_string(name).is_ok_and(|name| name.starts_with("reactor-"))
            })
            .count(),
        1,
        "one beside the first"
    );
    cluster.stop();
    let served = served(&cluster.log());
    println!("connections and requests of each reactor: {served:?}");
    assert_eq!(served.len(), 2, "{}", cluster.log());
    assert!(served.values().all(|(connections, requests)| *connections > 0 && *requests > 0));
    // Those of clients are the second one's.
    assert!(served[&1].1 > served[&0].1, "{served:?}");
}

#[test]
fn real_stop_under_load_is_a_pause_with_several_reactors() {
    let mut cluster = Cluster::started(&Shape { reactors: 2, ..Shape::default() });
    let mut random = random();
    let stop = AtomicBool::new(false);
    let clients = [cluster.client(60), cluster.client(60)];
    // Each in a directory of its own would need other paths: one works, one reads along.
    let model = std::thread::scope(|scope| {
        let rng = random.fork();
        let worker = scope.spawn(|| work(&clients[0], rng, &stop));
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let listed = clients[1].readdir(b"/").expect("lists");
                for entry in listed.iter().take(2) {
                    // It may have been renamed meanwhile.
                    let _ = clients[1].stat(&[b"/", entry.name.as_slice()].concat());
                }
                pause(1);
            }
        });
        for _ in 0..3 {
            pause(random.u64(200..500));
            let begin = now();
            cluster.stop();
            let log = cluster.log();
            assert_eq!(served(&log).len(), 2, "{log}");
            assert!(!log.contains("does not end") && !log.contains("panicked"), "{log}");
            println!("stopped within {:?}", begin.elapsed());
            cluster.start();
            assert!(!worker.is_finished(), "the workload goes on");
        }
        pause(200);
        stop.store(true, Ordering::Relaxed);
        reader.join().expect("no call failed");
        worker.join().expect("no call failed")
    });
    for (path, data) in &model {
        assert!(read(&clients[1], path) == *data, "{path}");
    }
}

#[test]
fn real_idle_reactors_cost_next_to_nothing() {
    for reactors in [1, 2] {
        let cluster = Cluster::started(&Shape { reactors, device_mib: 64, ..Shape::default() });
        let client = cluster.client(60);
        drop(client.open(b"/f", libc::O_CREAT | libc::O_RDWR, 0o644).expect("opens"));
        pause(1000);
        let (begin, before) = (now(), cpu_time(cluster.pid()));
        pause(3000);
        let used = cpu_time(cluster.pid()) - before;
        let share = used.as_secs_f64() / begin.elapsed().as_secs_f64();
        println!("{reactors} reactors, idle with a client: {:.2} % of a core", share * 100.0);
        assert!(share < 0.1, "{reactors} reactors: {used:?}");
    }
}
