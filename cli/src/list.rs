//! `cat`, `ls`, `stat`.

use std::io::Write;

use bb_proto::meta::Attributes;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};

use crate::arguments::{Ls, Paths};
use crate::output;
use crate::session::Session;
use crate::side::join;
use crate::tree::{Kind, NAMES_IN_FLIGHT, kind_of_mode};

const PIECE_BYTES: usize = 4 << 20;

/// Prints files.
pub async fn cat(session: &Session, paths: &[String]) -> u64 {
    let mut piece = vec![0; PIECE_BYTES];
    for path in session.paths(paths) {
        if let Err(error) = cat_one(session, &path, &mut piece).await {
            let shown = output::path(&path);
            session.complain(&format!("{shown}: {error}"));
        }
    }
    session.failures()
}

async fn cat_one(session: &Session, path: &[u8], piece: &mut [u8]) -> Result<(), String> {
    let why = |error: bb_client::Error| output::client_error(&error);
    let file = session.client.open(path, libc::O_RDONLY, 0).await.map_err(why)?;
    let mut offset = 0;
    loop {
        let read = file.pread(piece, offset).await.map_err(why)?;
        if read == 0 {
            break;
        }
        let written = std::io::stdout().write_all(&piece[..read]);
        written.map_err(|error| format!("standard output: {}", output::local_error(&error)))?;
        offset += read as u64;
    }
    file.close().await.map_err(why)
}

/// Prints attributes.
pub async fn stat(session: &Session, paths: &Paths) -> u64 {
    for path in session.paths(&paths.paths) {
        match session.client.lstat(&path).await {
            Ok(attributes) if session.json => println!("{}", attributes_json(&path, &attributes)),
            Ok(attributes) => print_attributes(&path, &attributes),
            Err(error) => session.complain_of("stat", &path, &error),
        }
    }
    session.failures()
}

fn print_attributes(path: &[u8], of: &Attributes) {
    println!("  File: {}", output::path(path));
    println!("  Size: {:<15} Links: {:<5} Inode: {}", of.size, of.links, of.inode);
    let mode = output::mode(of.mode);
    println!("  Mode: ({:04o}/{mode})  Uid: {}  Gid: {}", of.mode & 0o7777, of.uid, of.gid);
    println!("Access: {}", output::time(of.atime_ns));
    println!("Modify: {}", output::time(of.mtime_ns));
    println!("Change: {}", output::time(of.ctime_ns));
}

fn attributes_json(path: &[u8], of: &Attributes) -> Value {
    json!({
        "path": output::path(path), "inode": of.inode, "mode": of.mode, "links": of.links,
        "uid": of.uid, "gid": of.gid, "size": of.size, "atime_ns": of.atime_ns,
        "mtime_ns": of.mtime_ns, "ctime_ns": of.ctime_ns,
    })
}

/// Lists directories.
pub async fn ls(session: &Session, ls: &Ls) -> u64 {
    let mut paths = session.paths(&ls.paths);
    let many = paths.len() > 1 || ls.recursive;
    paths.reverse();
    while let Some(path) = paths.pop() {
        match session.client.lstat(&path).await {
            Ok(attributes) if kind_of_mode(attributes.mode) == Kind::Directory => {
                let below = directory(session, ls, &path, many).await;
                if ls.recursive {
                    paths.extend(below.into_iter().rev());
                }
            }
            Ok(attributes) => line(session, ls, &path, &path, Some(&attributes)),
            Err(error) => session.complain_of("access", &path, &error),
        }
    }
    session.failures()
}

/// Prints a directory; the answer is the directories in it.
async fn directory(session: &Session, ls: &Ls, path: &[u8], headed: bool) -> Vec<Vec<u8>> {
    let entries = match session.client.readdir(path).await {
        Ok(entries) => entries,
        Err(error) => {
            session.complain_of("open directory", path, &error);
            return Vec::new();
        }
    };
    if headed && !session.json {
        println!("{}:", output::path(path));
    }
    let shown = entries.into_iter().filter(|entry| {
        let dots = entry.name == b"." || entry.name == b"..";
        !dots && (ls.all || entry.name.first() != Some(&b'.'))
    });
    let listed: Vec<_> = stream::iter(shown)
        .map(async |entry| {
            let full = join(path, &entry.name);
            let wanted = ls.long || session.json || entry.kind == u32::from(libc::DT_UNKNOWN);
            let attributes = if wanted { Some(session.client.lstat(&full).await) } else { None };
            (entry, full, attributes)
        })
        .buffered(NAMES_IN_FLIGHT)
        .collect()
        .await;
    let mut below = Vec::new();
    for (entry, full, attributes) in listed {
        let attributes = match attributes.transpose() {
            Ok(attributes) => attributes,
            Err(error) => {
                session.complain_of("access", &full, &error);
                continue;
            }
        };
        line(session, ls, &entry.name, &full, attributes.as_ref());
        let is_directory = attributes.map_or_else(
            || entry.kind == u32::from(libc::DT_DIR),
            |a| kind_of_mode(a.mode) == Kind::Directory,
        );
        if is_directory {
            below.push(full);
        }
    }
    if headed && !session.json {
        println!();
    }
    below
}

fn line(session: &Session, ls: &Ls, name: &[u8], path: &[u8], attributes: Option<&Attributes>) {
    match attributes {
        Some(attributes) if session.json => println!("{}", attributes_json(path, attributes)),
        Some(of) if ls.long => println!(
            "{} {:>3} {:>6} {:>6} {:>14} {} {}",
            output::mode(of.mode),
            of.links,
            of.uid,
            of.gid,
            of.size,
            output::time(of.mtime_ns),
            output::path(name)
        ),
        _ => println!("{}", output::path(name)),
    }
}
