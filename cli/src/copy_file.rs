//! One file of `bbctl cp`: reads the next piece while the last one is written.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join;

use crate::copy::{Copy, finish_locally};
use crate::output::{client_error, local_error};
use crate::session::Session;
use crate::side::Side;
use crate::tree::Facts;

/// Bytes read at once: half a parity group.
const PIECE_BYTES: usize = 1 << 20;
/// Memory for pieces: of 32 large files, or of as many small ones as may be under way.
pub const PIECES_BYTES_MAX: u64 = 64 << 20;

/// An open file on either side.
enum Open {
    Local(Arc<File>),
    Buffer(bb_client::File),
}

/// Copies a file. An error is a sentence.
pub async fn copy(run: &Copy<'_>, from: &Side, to: &Side, facts: &Facts) -> Result<(), String> {
    let session = run.session;
    // One piece is read while another is written.
    let pieces = facts.size.saturating_add(1).min(PIECE_BYTES as u64) * 2;
    let _memory = run.memory.acquire(pieces).await;
    let about = |what: &str, side: &Side, why: &str| format!("{what} '{}': {why}", side.shown());
    let reader = open_source(session, from).await;
    let reader = reader.map_err(|why| about("cannot open", from, &why))?;
    let writer = create(session, to, facts.mode, run.options.preserve).await;
    let writer = match writer {
        Ok(writer) => writer,
        Err(why) => {
            let _ = reader.close().await;
            return Err(about("cannot create", to, &why));
        }
    };
    let copied = pump(run, &reader, &writer, facts).await.map_err(|problem| match problem {
        Problem::Reading(why) => about("error reading", from, &why),
        Problem::Writing(why) => about("error writing", to, &why),
    });
    let written = match (&copied, run.options.fsync) {
        (Ok(()), true) => writer.fsync(session).await,
        _ => Ok(()),
    };
    let mode = if run.options.preserve { writer.mode().await } else { None };
    let closed = writer.close_written(session).await;
    // Nothing was written through it: its close can't lose anything.
    let _ = reader.close().await;
    copied?;
    written.map_err(|why| about("error syncing", to, &why))?;
    closed.map_err(|why| about("error closing", to, &why))?;
    if run.options.preserve {
        let finished = finish(session, to, facts, mode).await;
        finished.map_err(|why| about("cannot preserve attributes of", to, &why))?;
    }
    Ok(())
}

enum Problem {
    Reading(String),
    Writing(String),
}

async fn pump(run: &Copy<'_>, reader: &Open, writer: &Open, facts: &Facts) -> Result<(), Problem> {
    let session = run.session;
    // One byte more than there should be, so that the end is seen with the last piece.
    let len_at = |offset: u64| {
        let left = facts.size.saturating_sub(offset).saturating_add(1);
        usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)
    };
    let mut offset = 0;
    let mut len = len_at(offset);
    let mut piece = reader.read(session, offset, len).await.map_err(Problem::Reading)?;
    while !piece.is_empty() {
        let count = piece.len() as u64;
        let end = piece.len() < len;
        let next_offset = offset + count;
        len = len_at(next_offset);
        let next = async {
            if end { Ok(Vec::new()) } else { reader.read(session, next_offset, len).await }
        };
        let (next, written) = join(next, writer.write(session, offset, piece)).await;
        written.map_err(Problem::Writing)?;
        piece = next.map_err(Problem::Reading)?;
        offset = next_offset;
        run.bytes.set(run.bytes.get() + count);
        run.progress.done(count);
    }
    Ok(())
}

async fn open_source(session: &Session, side: &Side) -> Result<Open, String> {
    match side {
        Side::Buffer(path) => {
            let file = session.client.open(path, libc::O_RDONLY, 0).await;
            file.map(Open::Buffer).map_err(|error| client_error(&error))
        }
        Side::Local(path) => {
            let path = path.clone();
            // Not a pipe that has taken the file's place: opening that would wait.
            let open =
                move || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
            let file = session.local(open).await.map_err(|error| local_error(&error))?;
            Ok(Open::Local(Arc::new(file)))
        }
    }
}

async fn create(session: &Session, side: &Side, mode: u32, preserve: bool) -> Result<Open, String> {
    // What is kept private must not be readable for a moment.
    let mode = if preserve { mode & 0o700 | 0o200 } else { mode & 0o777 };
    match side {
        Side::Buffer(path) => {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
            let file = session.pauses.timed(session.client.open(path, flags, mode)).await;
            file.map(Open::Buffer).map_err(|error| client_error(&error))
        }
        Side::Local(path) => {
            let path = path.clone();
            let open = move || {
                OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path)
            };
            let file = session.local(open).await.map_err(|error| local_error(&error))?;
            Ok(Open::Local(Arc::new(file)))
        }
    }
}

impl Open {
    async fn read(&self, session: &Session, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        match self {
            Self::Buffer(file) => {
                let mut piece = vec![0; len];
                let read = file.pread(&mut piece, offset).await;
                piece.truncate(read.map_err(|error| client_error(&error))?);
                Ok(piece)
            }
            Self::Local(file) => {
                let file = file.clone();
                let read = session.local(move || read_piece(&file, offset, len)).await;
                read.map_err(|error| local_error(&error))
            }
        }
    }

    async fn write(&self, session: &Session, offset: u64, piece: Vec<u8>) -> Result<(), String> {
        match self {
            Self::Buffer(file) => {
                let written = session.pauses.timed(file.pwrite(&piece, offset)).await;
                written.map(drop).map_err(|error| client_error(&error))
            }
            Self::Local(file) => {
                let file = file.clone();
                let written = session.local(move || file.write_all_at(&piece, offset)).await;
                written.map_err(|error| local_error(&error))
            }
        }
    }

    async fn fsync(&self, session: &Session) -> Result<(), String> {
        match self {
            Self::Buffer(file) => {
                let synced = session.pauses.timed(file.fsync()).await;
                synced.map_err(|error| client_error(&error))
            }
            Self::Local(file) => {
                let file = file.clone();
                let synced = session.local(move || file.sync_all()).await;
                synced.map_err(|error| local_error(&error))
            }
        }
    }

    /// Permissions of a file in the buffer.
    async fn mode(&self) -> Option<u32> {
        match self {
            Self::Buffer(file) => file.fstat().await.ok().map(|a| a.mode & 0o7777),
            Self::Local(_) => None,
        }
    }

    /// Closes a file that was written: in the buffer, what is left is written back first.
    async fn close_written(self, session: &Session) -> Result<(), String> {
        match &self {
            Self::Buffer(_) => session.pauses.timed(self.close()).await,
            Self::Local(_) => self.close().await,
        }
    }

    async fn close(self) -> Result<(), String> {
        match self {
            Self::Buffer(file) => file.close().await.map_err(|error| client_error(&error)),
            Self::Local(_) => Ok(()),
        }
    }
}

async fn finish(
    session: &Session,
    to: &Side,
    facts: &Facts,
    mode: Option<u32>,
) -> Result<(), String> {
    match to {
        Side::Buffer(path) => {
            let client = &session.client;
            if mode != Some(facts.mode) {
                let changed = client.chmod(path, facts.mode).await;
                changed.map_err(|error| client_error(&error))?;
            }
            let timed = client.utimens(path, Some(facts.atime_ns), Some(facts.mtime_ns)).await;
            timed.map_err(|error| client_error(&error))
        }
        Side::Local(path) => finish_locally(path, facts),
    }
}

/// As much as there is, up to `len` bytes.
fn read_piece(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; len];
    let mut done = 0;
    while done < len {
        match file.read_at(&mut piece[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    piece.truncate(done);
    Ok(piece)
}

/// Sets both times of a local file.
pub fn set_times(path: &Path, facts: &Facts) -> io::Result<()> {
    let time = |ns: i64| libc::timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    };
    let times = [time(facts.atime_ns), time(facts.mtime_ns)];
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends with a NUL, the array has the two entries that the call reads.
    if unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Bytes per second.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn rate(bytes: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { bytes as f64 / seconds } else { 0.0 }
}
