//! What the code under test logs and how it panics: an ERROR needs a human, so none may appear that
//! no fault explains.

use std::cell::{Cell, RefCell};
use std::fmt::Write;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static DAMAGE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static VERBOSE: Cell<bool> = const { Cell::new(false) };
}

/// Errors kept of a run.
const ERRORS_MAX: usize = 100;

/// What a reader says of a block that is not what its writer gave.
const DAMAGED: &str = "does not match its checksum";

struct Listener;

fn is_of_readers(metadata: &Metadata<'_>) -> bool {
    *metadata.level() == Level::WARN && metadata.target() == "bb_pgio::get"
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= if VERBOSE.get() { Level::DEBUG } else { Level::ERROR }
            || is_of_readers(metadata)
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(format!("{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut text);
        if VERBOSE.get() {
            println!("            {}", text.0);
        }
        if is_of_readers(event.metadata()) && text.0.contains(DAMAGED) {
            DAMAGE.with_borrow_mut(|damage| {
                if damage.len() < ERRORS_MAX {
                    damage.push(text.0.clone());
                }
            });
        }
        if *event.metadata().level() == Level::ERROR {
            ERRORS.with_borrow_mut(|errors| {
                if errors.len() < ERRORS_MAX {
                    errors.push(text.0);
                }
            });
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Listens for as long as the program runs.
pub fn listen(verbose: bool) {
    VERBOSE.set(verbose);
    // Somebody else listens already in tests.
    let _ = tracing::subscriber::set_global_default(Listener);
    std::panic::set_hook(Box::new(move |info| {
        let backtrace = if verbose {
            format!("\n{}", std::backtrace::Backtrace::force_capture())
        } else {
            String::new()
        };
        PANIC.with_borrow_mut(|panic| *panic = format!("{info}{backtrace}").replace('\n', " | "));
    }));
}

/// Forgets what was heard.
pub fn clear() {
    ERRORS.with_borrow_mut(Vec::clear);
    DAMAGE.with_borrow_mut(Vec::clear);
    PANIC.with_borrow_mut(String::clear);
}

/// What was logged as an error.
pub fn errors() -> Vec<String> {
    ERRORS.with_borrow(Clone::clone)
}

/// Blocks that were not what their writers gave, as their readers tell it. Parity hides each of
/// them from the application; so without a fault that explains it, this is where it shows that the
/// server has mixed up its blocks.
pub fn damaged_blocks() -> Vec<String> {
    DAMAGE.with_borrow(Clone::clone)
}

/// The last panic.
pub fn last_panic() -> String {
    PANIC.with_borrow(Clone::clone)
}
