//! Requests of the skeleton, and sockets as Burstbay sets them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use super::Fallible;

/// Write a block.
pub const PUT: u8 = 1;
/// Read a block.
pub const GET: u8 = 2;
/// Bytes of a request before its payload, as of Burstbay's frames.
const HEADER: usize = 64;
/// Bytes of an answer before its payload.
pub const ANSWER: usize = 64;

/// A request.
pub struct Request {
    /// [`PUT`] or [`GET`].
    pub what: u8,
    /// Where in the file, in blocks.
    pub slot: u64,
    /// CRC32C of the payload.
    pub crc: u32,
}

impl Request {
    /// Sends it.
    pub fn send(&self, to: &mut TcpStream, payload: &[u8]) -> Fallible<()> {
        let mut header = [0; HEADER];
        header[0] = self.what;
        header[8..16].copy_from_slice(&self.slot.to_le_bytes());
        header[16..20].copy_from_slice(&self.crc.to_le_bytes());
        to.write_all(&header)?;
        Ok(to.write_all(payload)?)
    }

    /// The next one, or None at the end of the connection.
    pub fn receive(from: &mut TcpStream) -> Fallible<Option<Self>> {
        let mut header = [0; HEADER];
        match from.read_exact(&mut header) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let slot = u64::from_le_bytes(header[8..16].try_into()?);
        let crc = u32::from_le_bytes(header[16..20].try_into()?);
        Ok(Some(Self { what: header[0], slot, crc }))
    }
}

/// TCP_NODELAY, and cubic: this kind of machine has another default, which is three times slower on
/// loopback.
pub fn tune(stream: &TcpStream) -> Fallible<()> {
    stream.set_nodelay(true)?;
    let name = b"cubic";
    // SAFETY: the name has the length that is given, and outlives the call.
    let failed = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_ptr().cast(),
            5,
        )
    };
    if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// Page-aligned memory, as O_DIRECT wants it.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Zeros.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, len }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_for_direct_io_is_aligned() {
        let mut memory = super::Aligned::new(5000);
        assert_eq!(memory.bytes_mut().as_ptr().align_offset(4096), 0);
        assert_eq!(memory.bytes().len(), 5000);
    }
}
