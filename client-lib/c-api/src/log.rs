//! The client's log: lines to a file or to standard error, without a lock that a fork could leave
//! held.

use std::ffi::CString;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::config::LogSettings;
use crate::raw;

/// Levels of the Guide: 0 trace, 1 debug, 2 information, 3 warning, 4 error, 5 fatal.
static LEVEL: AtomicU8 = AtomicU8::new(3);
static FD: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);
static LINES: AtomicU64 = AtomicU64::new(0);
static LINES_MAX: AtomicU64 = AtomicU64::new(0);
static ROTATING: AtomicBool = AtomicBool::new(false);
static PATH: Mutex<Option<CString>> = Mutex::new(None);

/// Where messages go now.
pub fn fd() -> i32 {
    FD.load(Ordering::Relaxed)
}

fn number(level: Level) -> u8 {
    match level {
        Level::TRACE => 0,
        Level::DEBUG => 1,
        Level::INFO => 2,
        Level::WARN => 3,
        Level::ERROR => 4,
    }
}

struct Lines;

/// The fields of an event, the message first as it comes.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Lines {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level may change.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(*metadata.level()) >= LEVEL.load(Ordering::Relaxed)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        line(event.metadata().level().as_str(), &text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn line(level: &str, text: &str) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a writable timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let (seconds, micros) = (now.tv_sec, now.tv_nsec / 1_000);
    let whole = format!("{seconds}.{micros:06} burstbay[{}] {level}{text}\n", std::process::id());
    raw::write_all(fd(), whole.as_bytes());
    let lines_max = LINES_MAX.load(Ordering::Relaxed);
    if lines_max > 0 && LINES.fetch_add(1, Ordering::Relaxed) + 1 >= lines_max {
        rotate();
    }
}

/// The file becomes `FILE.1`, and a new one begins. Who comes second goes on writing.
fn rotate() {
    if ROTATING.swap(true, Ordering::AcqRel) {
        return;
    }
    if let Ok(path) = PATH.try_lock()
        && let Some(path) = &*path
        && let Ok(old) = CString::new([path.to_bytes(), b".1"].concat())
        && raw::rename(path, &old).is_ok()
        && let Ok(new) = raw::open(path, OPEN, 0o644)
    {
        // The same number: another thread may be writing to it.
        let _ = raw::dup2(new, fd());
        let _ = raw::fcntl(fd(), libc::F_SETFD, libc::FD_CLOEXEC);
        let _ = raw::close(new);
        LINES.store(0, Ordering::Relaxed);
    }
    ROTATING.store(false, Ordering::Release);
}

const OPEN: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;

/// Takes on settings. The first call makes the library's events go here.
pub fn start(settings: &LogSettings) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another subscriber can only be there in tests.
        let _ = tracing::subscriber::set_global_default(Lines);
    });
    LEVEL.store(settings.level, Ordering::Relaxed);
    let rotates = settings.level > settings.no_rotation_level;
    LINES_MAX.store(if rotates { settings.lines_max } else { 0 }, Ordering::Relaxed);
    let Ok(mut path) = PATH.try_lock() else { return };
    let wanted = CString::new(settings.file.as_str()).ok().filter(|name| !name.is_empty());
    if *path == wanted {
        return;
    }
    let opened = wanted.as_ref().map(|name| raw::open(name, OPEN, 0o644));
    let new = match opened {
        None => libc::STDERR_FILENO,
        Some(Ok(fd)) => fd,
        Some(Err(errno)) => {
            let why = std::io::Error::from_raw_os_error(errno.0);
            error(&format!("log file {}: {why}", settings.file));
            return;
        }
    };
    let old = FD.swap(new, Ordering::Relaxed);
    if old > libc::STDERR_FILENO {
        let _ = raw::close(old);
    }
    LINES.store(0, Ordering::Relaxed);
    *path = wanted;
}

/// An error that the program has no other way to learn of.
pub fn error(text: &str) {
    line("ERROR", &format!(" {text}"));
}
