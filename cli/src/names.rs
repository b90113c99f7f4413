//! `rm`, `mkdir`, `mv`.

use futures_util::stream::{self, StreamExt};

use crate::arguments::{Mkdir, Mv, Rm};
use crate::session::Session;
use crate::side::{buffer_path, join};
use crate::tree::{self, Entry, Kind, NAMES_IN_FLIGHT, kind_of_mode};

/// Removes.
pub async fn rm(session: &Session, rm: &Rm) -> u64 {
    for path in session.paths(&rm.paths) {
        let attributes = match session.client.lstat(&path).await {
            Ok(attributes) => attributes,
            Err(error) if rm.force && error.errno() == libc::ENOENT => continue,
            Err(error) => {
                session.complain_of("remove", &path, &error);
                continue;
            }
        };
        if kind_of_mode(attributes.mode) != Kind::Directory {
            unlink(session, &path).await;
        } else if rm.recursive {
            remove_tree(session, &path).await;
        } else {
            let shown = crate::output::path(&path);
            session.complain(&format!("cannot remove '{shown}': Is a directory"));
        }
    }
    session.failures()
}

async fn unlink(session: &Session, path: &[u8]) {
    if let Err(error) = session.client.unlink(path).await {
        session.complain_of("remove", path, &error);
    }
}

async fn remove_tree(session: &Session, root: &[u8]) {
    let mut entries = tree::in_buffer(session, root, true, false).await;
    let full = |entry: &Entry| match entry.relative.is_empty() {
        true => root.to_vec(),
        false => join(root, &entry.relative),
    };
    let files = entries.iter().filter(|entry| entry.kind != Kind::Directory);
    stream::iter(files)
        .for_each_concurrent(NAMES_IN_FLIGHT, async |entry| unlink(session, &full(entry)).await)
        .await;
    entries.retain(|entry| entry.kind == Kind::Directory);
    entries.reverse();
    for level in entries.chunk_by(|a, b| a.depth() == b.depth()) {
        stream::iter(level)
            .for_each_concurrent(NAMES_IN_FLIGHT, async |entry| {
                let path = full(entry);
                // The root of the buffer stays.
                if path != b"/"
                    && let Err(error) = session.client.rmdir(&path).await
                {
                    session.complain_of("remove", &path, &error);
                }
            })
            .await;
    }
}

/// Makes directories.
pub async fn mkdir(session: &Session, mkdir: &Mkdir) -> u64 {
    for path in session.paths(&mkdir.paths) {
        let borders = (1..=path.len()).filter(|&end| end == path.len() || path[end] == b'/');
        let first = if mkdir.parents { 0 } else { path.len() };
        for end in borders.filter(|&end| end >= first) {
            let Err(error) = session.client.mkdir(&path[..end], 0o777).await else { continue };
            if mkdir.parents && error.errno() == libc::EEXIST {
                let there = session.client.stat(&path[..end]).await;
                if there.is_ok_and(|a| kind_of_mode(a.mode) == Kind::Directory) {
                    continue;
                }
            }
            session.complain_of("create directory", &path[..end], &error);
            break;
        }
    }
    session.failures()
}

/// Renames.
pub async fn mv(session: &Session, mv: &Mv) -> u64 {
    let (from, mut to) = match (buffer_path(&mv.from), buffer_path(&mv.to)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(why), _) | (_, Err(why)) => {
            session.complain(&why);
            return session.failures();
        }
    };
    let there = session.client.stat(&to).await;
    if there.is_ok_and(|a| kind_of_mode(a.mode) == Kind::Directory) {
        let name = from.rsplit(|b| *b == b'/').next().unwrap_or_default();
        to = join(&to, name);
    }
    let flags = if mv.no_clobber { libc::RENAME_NOREPLACE } else { 0 };
    if let Err(error) = session.client.rename(&from, &to, flags).await {
        let (from, to) = (crate::output::path(&from), crate::output::path(&to));
        let why = crate::output::client_error(&error);
        session.complain(&format!("cannot move '{from}' to '{to}': {why}"));
    }
    session.failures()
}
