//! `bbadm`: the administrator's commands. They look at the cluster from outside and work where
//! nothing is served, too.

mod health;
mod join;
mod json;
mod status;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use bb_client::Observer;
use bb_runtime::Rt;

use crate::arguments::{AdminCommand, Bbadm, ClusterCommand, Connection};
use crate::output::client_error;
use crate::{FAILED, documents};

/// How long a server is waited for: it answers from memory.
const PATIENCE: Duration = Duration::from_secs(2);

/// Carries out a command of `bbadm`.
pub fn bbadm(arguments: &Bbadm) -> ExitCode {
    let connection = &arguments.connection;
    match &arguments.command {
        AdminCommand::Man => documents::man::<Bbadm>(),
        AdminCommand::Completions { shell } => documents::completions::<Bbadm>(*shell, "bbadm"),
        AdminCommand::Cluster { command: ClusterCommand::Status(what) } => {
            observe(connection, async |rt, observer| {
                status::run(rt, observer, connection, what).await
            })
        }
        AdminCommand::Cluster { command: ClusterCommand::Join(what) } => {
            observe(connection, async |rt, observer| {
                join::run(rt, observer, connection, what).await
            })
        }
    }
}

/// Connects to nobody yet; runs; the answer is the exit code.
fn observe(connection: &Connection, run: impl AsyncFnOnce(&Rt, &Observer) -> u8) -> ExitCode {
    let prepared = bb_client::executor().and_then(|(executor, ring)| {
        let host = crate::session::host_name();
        let observer = Observer::over_tcp(&executor, &ring, &connection.servers, &host)?;
        Ok((executor, observer))
    });
    match prepared {
        Ok((executor, observer)) => {
            let rt = executor.rt();
            ExitCode::from(executor.block_on(async { run(&rt, &observer).await }))
        }
        Err(error) => {
            eprintln!("bbadm: {}", client_error(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// Says that nobody answers.
fn complain_of_silence(connection: &Connection, error: &bb_client::Error) {
    let servers = connection.servers.join(", ");
    eprintln!("bbadm: cannot connect to {servers}: {}", client_error(error));
}
