//! What it costs. Figures for docs: `cargo nextest run -p bb-consensus --run-ignored only cost --no-capture`.

use std::time::Duration;

use crate::world::{World, simulate};
use bb_consensus::Settings;

#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[test]
#[ignore = "prints figures, checks nothing"]
fn cost_of_idleness_and_of_proposals() {
    simulate(1, |rt| async move {
        let world = World::new(&rt, Settings::default(), 0);
        world.create(3).await;
        world.propose_somewhere().await;
        world.converge().await;
        let (begin, messages) = (now(), world.messages.get());
        let idle = Duration::from_secs(10_000);
        rt.sleep(idle).await;
        let cpu_us = begin.elapsed().as_secs_f64() * 1e6 / idle.as_secs_f64();
        let messages = (world.messages.get() - messages) as f64 / idle.as_secs_f64();
        println!("idle: {cpu_us:.0} us of CPU and {messages:.1} messages per second (group of 3)");
        println!("idle: {} bytes of log", world.wait_leader().await.status().memory_bytes);

        let leader = world.wait_leader().await;
        for at_once in [1, 100] {
            let (begin, messages, count) = (now(), world.messages.get(), 10_000);
            for _ in 0..count / at_once {
                let proposals = (0..at_once).map(|_| world.propose(&leader));
                futures_util::future::join_all(proposals).await;
            }
            let cpu_us = begin.elapsed().as_secs_f64() * 1e6 / f64::from(count);
            let messages = (world.messages.get() - messages) as f64 / f64::from(count);
            println!(
                "{at_once} at once: {cpu_us:.1} us of CPU, {messages:.2} messages per proposal"
            );
        }
        println!("after 20,000: {} bytes of log", leader.status().memory_bytes);
    });
}
