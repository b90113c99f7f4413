//! Operations on sockets.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::opcode;

use super::fd::RingFd;
use super::file::{length, on_fd};
use super::op::{Payload, Policy, count};
use super::{RingOwner, Uring};
use crate::buf::{Buf, BufMut};

/// The kernel takes at most this many pieces in one call.
const PIECES_MAX: usize = 1024;

/// A piece of what is sent.
#[derive(Debug)]
pub enum Part {
    /// Bytes of their own: headers and bodies.
    Bytes(Vec<u8>),
    /// A view of a pool buffer: payload.
    Buf(Buf),
}

impl Part {
    fn bytes(&self) -> &[u8] {
        match self {
            Part::Bytes(bytes) => bytes,
            Part::Buf(buf) => buf,
        }
    }
}

/// A socket address in the kernel's form.
pub(super) struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

/// What one `sendmsg` needs. Boxed, so that the pointers in `header` stay valid.
pub(super) struct Message {
    parts: Vec<Part>,
    #[expect(dead_code, reason = "the kernel reads it through `header`")]
    pieces: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Uring {
    /// Waits for a connection on a listening socket. The new descriptor is close-on-exec.
    pub fn accept(&self, fd: &RingFd) -> impl Future<Output = io::Result<RingFd>> + use<> {
        let entry = on_fd!(fd, |socket| opcode::Accept::new(
            socket,
            std::ptr::null_mut(),
            std::ptr::null_mut()
        )
        .flags(libc::SOCK_CLOEXEC)
        .build());
        let op = self.ring.start(entry, Some(fd.clone()), Payload::None, Policy::ACCEPT);
        async move {
            let (result, _) = op.await;
            count(result)?;
            // SAFETY: the kernel made this descriptor for us.
            let fd = unsafe { OwnedFd::from_raw_fd(result) };
            Ok(RingFd::new(fd, None))
        }
    }

    /// Connects a socket.
    pub async fn connect(&self, fd: &RingFd, to: SocketAddr) -> io::Result<()> {
        let address = Box::new(Address::from(to));
        let (start, len) = ((&raw const address.storage).cast(), address.len);
        let entry = on_fd!(fd, |socket| opcode::Connect::new(socket, start, len).build());
        match self.counted(entry, fd, Payload::Address(address), Policy::CONNECT).await {
            // The thread that began it is gone; the attempt goes on without it. (A non-blocking
            // socket answers EINPROGRESS by itself.)
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ECANCELED | libc::EINPROGRESS | libc::EALREADY)
                ) =>
            {
                self.poll_fd(fd, libc::POLLOUT).await?;
                socket_error(fd)
            }
            other => other.map(|_| ()),
        }
    }

    /// Receives into a part of `buf` until it is full: the kernel goes on by itself while more is
    /// under way. Fewer bytes come where the stream ends or is shut down; 0 are its end.
    ///
    /// # Panics
    /// When `range` does not lie within `buf`.
    pub fn recv(
        &self,
        fd: &RingFd,
        mut buf: BufMut,
        range: Range<usize>,
    ) -> impl Future<Output = (io::Result<usize>, BufMut)> + use<> {
        let target = &mut buf[range];
        let (start, len) = (target.as_mut_ptr(), length(target.len()));
        let entry = on_fd!(fd, |socket| opcode::Recv::new(socket, start, len)
            .flags(libc::MSG_WAITALL)
            .build());
        let op = self.ring.start(entry, Some(fd.clone()), Payload::BufMut(buf), Policy::WAITING);
        async move {
            match op.await {
                (result, Payload::BufMut(buf)) => (count(result), buf),
                _ => unreachable!("an operation keeps its payload"),
            }
        }
    }

    /// As [`Uring::recv`], into a part of a vector's present length.
    ///
    /// # Panics
    /// When `range` does not lie within `bytes`.
    pub fn recv_bytes(
        &self,
        fd: &RingFd,
        mut bytes: Vec<u8>,
        range: Range<usize>,
    ) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> + use<> {
        let target = &mut bytes[range];
        let (start, len) = (target.as_mut_ptr(), length(target.len()));
        let entry = on_fd!(fd, |socket| opcode::Recv::new(socket, start, len).build());
        let op = self.ring.start(entry, Some(fd.clone()), Payload::Bytes(bytes), Policy::WAITING);
        async move {
            match op.await {
                (result, Payload::Bytes(bytes)) => (count(result), bytes),
                _ => unreachable!("an operation keeps its payload"),
            }
        }
    }

    /// Sends all parts in order, with as few system calls as the socket permits.
    ///
    /// On a ring of a process, what the socket takes at once goes past the ring: its completion
    /// would wake the thread that sleeps there, for nothing.
    pub async fn send(&self, fd: &RingFd, parts: Vec<Part>) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.bytes().len()).sum();
        let mut parts = parts;
        let mut sent = 0;
        if self.ring.owner == RingOwner::Process && total > 0 {
            let message = Message::new(parts, 0);
            sent = message.send_now(fd)?;
            parts = message.parts;
        }
        while sent < total {
            let message = Message::new(parts, sent);
            let entry =
                on_fd!(fd, |socket| opcode::SendMsg::new(socket, &raw const message.header)
                    .flags(libc::MSG_NOSIGNAL.unsigned_abs())
                    .build());
            let payload = Payload::Message(message);
            let op = self.ring.start(entry, Some(fd.clone()), payload, Policy::WAITING);
            let (result, payload) = op.await;
            let Payload::Message(message) = payload else {
                unreachable!("an operation keeps its payload")
            };
            parts = message.parts;
            match count(result) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until a descriptor has one of `events` (`POLLIN`, `POLLOUT`, ..), and says which.
    pub fn poll_fd(
        &self,
        fd: &RingFd,
        events: i16,
    ) -> impl Future<Output = io::Result<i16>> + use<> {
        let mask = u32::from(events.cast_unsigned());
        let entry = on_fd!(fd, |file| opcode::PollAdd::new(file, mask).build());
        let op = self.counted(entry, fd, Payload::None, Policy::WAITING);
        async move { op.await.map(|mask| i16::try_from(mask).unwrap_or(i16::MAX)) }
    }
}

impl Message {
    /// A message of what lies behind the first `skip` bytes of `parts`.
    fn new(parts: Vec<Part>, mut skip: usize) -> Box<Self> {
        let mut pieces = Vec::with_capacity(parts.len().min(PIECES_MAX));
        for part in &parts {
            let bytes = part.bytes();
            let from = skip.min(bytes.len());
            skip -= from;
            if from < bytes.len() && pieces.len() < PIECES_MAX {
                let rest = &bytes[from..];
                pieces.push(libc::iovec {
                    iov_base: rest.as_ptr().cast_mut().cast(),
                    iov_len: rest.len(),
                });
            }
        }
        // SAFETY: all zeros is a valid `msghdr`: no address, no control data, no flags.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = pieces.as_mut_ptr();
        header.msg_iovlen = pieces.len();
        Box::new(Self { parts, pieces, header })
    }

    /// Sends as much as the socket takes without waiting: how many bytes, perhaps none.
    fn send_now(&self, fd: &RingFd) -> io::Result<usize> {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the header points to pieces, and these to parts, which all live in `self`.
        let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const self.header, flags) };
        let Ok(sent) = usize::try_from(sent) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        Ok(sent)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        // SAFETY: all zeros is a valid `sockaddr_storage`.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let len = match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: a `sockaddr_storage` is large and aligned enough for every address.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(sin) };
                size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(sin6) };
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, len: length(len) }
    }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

fn socket_error(fd: &RingFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut len = length(size_of::<libc::c_int>());
    // SAFETY: `error` and `len` are valid for writing and match each other.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut error).cast(),
            &raw mut len,
        )
    };
    match (result, error) {
        (0, 0) => Ok(()),
        (0, error) => Err(io::Error::from_raw_os_error(error)),
        _ => Err(io::Error::last_os_error()),
    }
}
