//! `bbadm cluster join`: follows a new node, or one that comes back, until it has its part.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use bb_client::{ClusterView, Observer};
use bb_runtime::Rt;
use serde_json::json;

use super::health::{Health, Node, Verdict, health};
use super::{PATIENCE, complain_of_silence};
use crate::FAILED;
use crate::arguments::{Connection, Join};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Where a node is.
struct Progress {
    text: String,
    done: bool,
}

/// Looks until the node has its part, or the time is over; the answer is the exit code.
pub async fn run(rt: &Rt, observer: &Observer, connection: &Connection, what: &Join) -> u8 {
    let give_up = rt.now() + Duration::from_secs(connection.timeout);
    let terminal = std::io::stderr().is_terminal();
    let mut shown = String::new();
    loop {
        let (progress, silence) = match observer.look(PATIENCE).await {
            Ok(view) => (progress(&view, &what.address), None),
            Err(error) => {
                let text = "no server answers".to_owned();
                (Progress { text, done: false }, Some(error))
            }
        };
        if progress.text != shown {
            shown.clone_from(&progress.text);
            say(&shown, connection.json, terminal, progress.done);
        }
        if progress.done {
            return Verdict::Full.exit_code();
        }
        if rt.now() >= give_up {
            if terminal && !connection.json {
                eprintln!();
            }
            if let Some(error) = silence {
                complain_of_silence(connection, &error);
                return FAILED;
            }
            eprintln!("bbadm: not done after {} s: {shown}", connection.timeout);
            return Verdict::Reduced.exit_code();
        }
        rt.sleep(PAUSE).await;
    }
}

fn say(text: &str, as_json: bool, terminal: bool, done: bool) {
    if as_json {
        println!("{}", json!({ "progress": text, "done": done }));
    } else if terminal {
        eprint!("\r{text}\x1b[K{}", if done { "\n" } else { "" });
    } else {
        println!("{text}");
    }
    // Where nobody reads, nobody misses it.
    let _ = std::io::stdout().flush();
}

fn progress(view: &ClusterView, address: &str) -> Progress {
    let health = health(view);
    // A node that was formatted twice has old entries with the same address.
    let node = health.nodes.iter().rfind(|node| node.entry.address == address);
    let Some(node) = node else {
        let text = format!("the cluster has no node at {address} yet: `bbd format` asks for one");
        return Progress { text, done: false };
    };
    let id = node.entry.id;
    if node.state() != "active" {
        let text = format!("node {id} is {}", node.state());
        return Progress { text, done: false };
    }
    if node.entry.witness {
        let votes = if node.entry.voter != 0 { "votes" } else { "does not vote yet" };
        return Progress { text: format!("witness {id} {votes}"), done: node.entry.voter != 0 };
    }
    let (fair, done) = (fair_share(&health), has_its_part(&health, node));
    let text = format!(
        "node {id} is active: {} of about {fair} copies, {} being filled{}",
        node.copies,
        node.filling,
        if done { "; done" } else { "" }
    );
    Progress { text, done }
}

/// Copies of each node when all have the same.
fn fair_share(health: &Health<'_>) -> u32 {
    let holding = health.nodes.iter().filter(|node| node.entry.holds_data()).count();
    let copies = health.map.partitions.len() * health.redundancy.possible as usize;
    u32::try_from(copies / holding.max(1)).unwrap_or(u32::MAX)
}

fn has_its_part(health: &Health<'_>, node: &Node<'_>) -> bool {
    // Two nodes may differ by one in the end.
    node.filling == 0 && node.copies + 1 >= fair_share(health)
}
