//! The one state of the library: settings, and the connection to the cluster.
//!
//! `init` reads the settings; the connection is made when the first path of ours is used. A child
//! made by fork, and a process whose client has failed, get another connection (*generation*), and
//! open their files anew in it when they use them.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bb_client::blocking::Client;

use crate::config::{self, Settings, Values};
use crate::guard::{Errno, Result, refuse, say};
use crate::{crash, fork, log, monitor, table};

/// Rises with each fork, in the child, and with each client that failed.
static GENERATION: AtomicU64 = AtomicU64::new(1);
static STATE: Mutex<State> = Mutex::new(State::new());
static CONNECTED: Condvar = Condvar::new();

/// Settings that were read.
#[derive(Clone)]
pub struct Known {
    /// As they were written.
    pub values: Arc<Values>,
    /// Checked; or what is wrong with them.
    pub settings: std::result::Result<Arc<Settings>, Arc<str>>,
}

/// What is locked for a moment only: never while a call of the system or of the cluster is made.
pub struct State {
    known: Option<Known>,
    initialized: bool,
    connecting: bool,
    connection: Option<Arc<Connection>>,
    /// Closes that nobody waits for.
    pub closes: usize,
    /// The first error that one of them met.
    pub close_error: Option<Errno>,
    /// By `config_ctl`: ratios of the automatic engine, by type.
    pub ratios: [Option<i32>; 2],
}

/// A client. The last one who holds it ends its session.
pub struct Connection {
    /// The client.
    pub client: Client,
    /// Of what generation it is.
    pub generation: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        monitor::ended(self.client.counters());
        if let Err(error) = self.client.shut_down() {
            log::error(&format!("the session did not end well: {error}"));
        }
    }
}

impl State {
    const fn new() -> Self {
        Self {
            known: None,
            initialized: false,
            connecting: false,
            connection: None,
            closes: 0,
            close_error: None,
            ratios: [None; 2],
        }
    }
}

/// Locks the state.
pub fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The present generation.
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// In a child: nothing of the parent's connection may be touched, not even to end it.
pub fn forget_parent(state: &mut State) {
    GENERATION.fetch_add(1, Ordering::AcqRel);
    state.connecting = false;
    (state.closes, state.close_error) = (0, None);
    let _never_dropped = state.connection.take().map(ManuallyDrop::new);
}

/// Reads settings anew.
fn read_settings() -> Known {
    let (values, errors) = config::gather(|name| std::env::var(name).ok());
    let settings = if errors.is_empty() {
        Settings::from_values(&values).map(Arc::new).map_err(Arc::from)
    } else {
        Err(Arc::from(errors.join("; ")))
    };
    match &settings {
        Ok(settings) => {
            log::start(&settings.log);
            if settings.catch_sigsegv {
                crash::catch();
            }
            tracing::info!("settings:\n{}", config::show(&values));
        }
        Err(error) => log::error(&format!("settings: {error}")),
    }
    Known { values: Arc::new(values), settings }
}

/// Reads the settings, unless that is done.
pub fn init() {
    fork::watch();
    let done = {
        let state = state();
        state.initialized && state.known.is_some()
    };
    if !done {
        // Not under the lock: reading files may come back to us through a shim.
        let known = read_settings();
        let mut state = state();
        if !(state.initialized && state.known.is_some()) {
            state.known = Some(known);
            state.initialized = true;
        }
    }
}

/// The settings; reads them where nobody has called `init`.
pub fn known() -> Known {
    loop {
        if let Some(known) = &state().known {
            return known.clone();
        }
        init();
    }
}

/// The same, checked.
pub fn settings() -> Result<Arc<Settings>> {
    match known().settings {
        Ok(settings) => Ok(settings),
        Err(error) => refuse(libc::EINVAL, &error),
    }
}

/// Settings are read again at the next `init`, or before that where nothing is connected.
pub fn settings_changed() {
    let mut state = state();
    if state.connection.is_none() {
        state.known = None;
    }
}

/// The connection, if there is one that works.
pub fn connected() -> Option<Arc<Connection>> {
    state().connection.clone().filter(|c| c.generation == generation() && !c.client.is_broken())
}

/// The connection; makes it where there is none.
pub fn connection() -> Result<Arc<Connection>> {
    fork::watch();
    let settings = settings()?;
    let mut state = state();
    loop {
        if let Some(connection) = &state.connection {
            if !connection.client.is_broken() {
                return Ok(connection.clone());
            }
            GENERATION.fetch_add(1, Ordering::AcqRel);
            let broken = state.connection.take();
            drop(state);
            drop(broken);
            state = self::state();
            continue;
        }
        if !state.connecting {
            break;
        }
        state = CONNECTED.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.connecting = true;
    drop(state);
    let (made, generation) = (connect(&settings), generation());
    let mut state = self::state();
    state.connecting = false;
    CONNECTED.notify_all();
    let connection = Arc::new(Connection { client: made?, generation });
    state.connection = Some(connection.clone());
    state.initialized = true;
    Ok(connection)
}

fn connect(settings: &Settings) -> Result<Client> {
    let servers: Vec<&str> = settings.servers.iter().map(String::as_str).collect();
    Client::connect(&servers, settings.options(), settings.pool_bytes()).map_err(|error| {
        let text = format!("cannot connect to {}: {error}", settings.servers.join(", "));
        log::error(&text);
        let Errno(errno) = error.into();
        say(&text);
        Errno(errno)
    })
}

/// Writes back everything; ends the session where no file is open.
///
/// # Errors
/// The first that writing back met, also that of files that were closed without waiting.
pub fn finalize() -> Result<()> {
    let mut result = table::wait_for_closes();
    let (connection, known) = {
        let mut state = state();
        state.initialized = false;
        (state.connection.clone(), state.known.clone())
    };
    if let Some(connection) = connection.filter(|c| c.generation == generation()) {
        let flushed = connection.client.flush().map_err(Errno::from);
        result = result.and(flushed);
        drop(connection);
        disconnect_unused();
    }
    if let Some(Known { settings: Ok(settings), .. }) = known
        && !settings.monitor_file.is_empty()
    {
        let present = connected().map(|connection| connection.client.counters());
        monitor::write(&settings.monitor_file, present.unwrap_or_default());
    }
    result
}

/// After `finalize`, ends the session with the last file that was open.
pub fn disconnect_unused() {
    if !table::is_empty() {
        return;
    }
    let mut state = state();
    if state.initialized {
        return;
    }
    // A call in another thread may still hold it: then that one ends the session.
    let unused = state.connection.take();
    state.known = None;
    drop(state);
    drop(unused);
}
