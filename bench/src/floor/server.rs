//! The skeleton's server: from the socket into aligned memory, its CRC while it is warm, a direct
//! write, one flush for all that were written before it began, the answer.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use bb_erasure::{crc32c, crc32c_append};

use super::Fallible;
use super::wire::{ANSWER, Aligned, GET, Request, tune};

/// Bytes that are received before their CRC is taken.
const PIECE: usize = 256 << 10;

/// Serves blocks of `block_bytes` in the file for as long as the process lives; prints its address.
///
/// # Errors
/// Of the file or of the network.
pub fn server(file: &std::path::Path, block_bytes: usize) -> Fallible<()> {
    let mut options = OpenOptions::new();
    let file = Arc::new(options.read(true).write(true).custom_flags(libc::O_DIRECT).open(file)?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (written, flush) = channel();
    let device = Arc::clone(&file);
    std::thread::Builder::new().spawn(move || flusher(&device, &flush))?;
    loop {
        let (stream, _) = listener.accept()?;
        tune(&stream)?;
        let (file, written) = (Arc::clone(&file), written.clone());
        std::thread::Builder::new().spawn(move || {
            if let Err(error) = connection(stream, &file, &written, block_bytes) {
                eprintln!("floor: {error}");
                std::process::exit(1);
            }
        })?;
    }
}

/// What is written waits here for its flush.
type Written = Arc<Mutex<TcpStream>>;

fn connection(
    mut stream: TcpStream,
    file: &File,
    written: &Sender<Written>,
    block_bytes: usize,
) -> Fallible<()> {
    let answers = Arc::new(Mutex::new(stream.try_clone()?));
    let mut block = Aligned::new(block_bytes);
    while let Some(request) = Request::receive(&mut stream)? {
        let at = request.slot * block_bytes as u64;
        if request.what == GET {
            file.read_exact_at(block.bytes_mut(), at)?;
            let mut answer = [0; ANSWER];
            answer[..4].copy_from_slice(&crc32c(block.bytes()).to_le_bytes());
            stream.write_all(&answer)?;
            stream.write_all(block.bytes())?;
            continue;
        }
        let mut crc = 0;
        for (i, piece) in block.bytes_mut().chunks_mut(PIECE).enumerate() {
            stream.read_exact(piece)?;
            crc = if i == 0 { crc32c(piece) } else { crc32c_append(crc, piece) };
        }
        if crc != request.crc {
            return Err("a block was damaged on its way".into());
        }
        file.write_all_at(block.bytes(), at)?;
        written.send(Arc::clone(&answers))?;
    }
    Ok(())
}

/// One flush covers every write that had ended before it began.
fn flusher(file: &File, waiting: &Receiver<Written>) {
    while let Ok(first) = waiting.recv() {
        let mut group = vec![first];
        group.extend(waiting.try_iter());
        if let Err(error) = file.sync_data() {
            eprintln!("floor: {error}");
            std::process::exit(1);
        }
        for answers in group {
            // A client that went away gets no answer.
            if let Ok(mut stream) = answers.lock() {
                let _ = stream.write_all(&[0; ANSWER]);
            }
        }
    }
}
