//! `bbadm cluster status`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use bb_client::{ClusterView, Observer};
use bb_runtime::Rt;

use super::health::health;
use super::{PATIENCE, complain_of_silence, json, table};
use crate::FAILED;
use crate::arguments::{Connection, Status};

/// Who asks how a cluster is wants to know soon that nobody answers, whatever `--timeout` says.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Looks once, or again and again; the answer is the exit code.
pub async fn run(rt: &Rt, observer: &Observer, connection: &Connection, what: &Status) -> u8 {
    let give_up = rt.now() + Duration::from_secs(connection.timeout).min(SILENCE_MAX);
    let Some(seconds) = what.watch else {
        loop {
            match observer.look(PATIENCE).await {
                Ok(view) => return show(&view, connection, what.devices, ""),
                Err(error) if rt.now() >= give_up => {
                    complain_of_silence(connection, &error);
                    return FAILED;
                }
                // A cluster that is being started answers a little later.
                Err(_) => rt.sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let clear = if std::io::stdout().is_terminal() && !connection.json {
        // Home, and clear what is below: less flicker than clearing first.
        "\x1b[H\x1b[J"
    } else {
        ""
    };
    loop {
        match observer.look(PATIENCE).await {
            Ok(view) => {
                show(&view, connection, what.devices, clear);
            }
            Err(error) => complain_of_silence(connection, &error),
        }
        rt.sleep(Duration::from_secs_f64(seconds)).await;
    }
}

fn show(view: &ClusterView, connection: &Connection, devices: bool, clear: &str) -> u8 {
    let health = health(view);
    let text = if connection.json {
        format!("{}\n", json::object(&health))
    } else {
        format!("{clear}{}", table::text(&health, devices))
    };
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        return FAILED;
    }
    health.verdict().exit_code()
}
