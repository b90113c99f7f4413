//! Making sockets and setting their options; resolving names.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use bb_runtime::uring::RingFd;
use futures_channel::oneshot;

/// A dead peer is noticed after 30 + 3 * 10 seconds without traffic.
const KEEPALIVE: [(libc::c_int, libc::c_int); 3] =
    [(libc::TCP_KEEPIDLE, 30), (libc::TCP_KEEPINTVL, 10), (libc::TCP_KEEPCNT, 3)];

/// An unconnected socket of the address's family.
pub(super) fn create(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the options of a connected socket, and says who is at the other end. SO_RCVBUF and
/// SO_SNDBUF stay alone: setting them ends the kernel's own tuning, which does better.
pub(super) fn prepare(fd: &RingFd) -> io::Result<SocketAddr> {
    let stream = TcpStream::from(fd.as_fd().try_clone_to_owned()?);
    // On accepted sockets too: without it a third of the speed was left.
    stream.set_nodelay(true)?;
    let (near, far) = (stream.local_addr()?, stream.peer_addr()?);
    set(&stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1_i32.to_ne_bytes())?;
    for (name, value) in KEEPALIVE {
        set(&stream, libc::IPPROTO_TCP, name, &value.to_ne_bytes())?;
    }
    if near.ip() == far.ip() || far.ip().to_canonical().is_loopback() {
        // Within a machine no other algorithm has anything to measure; BBR, the default of some
        // systems, paces itself down there. A kernel without cubic keeps its default.
        let _ = set(&stream, libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"cubic");
    }
    Ok(far)
}

fn set(socket: &TcpStream, level: libc::c_int, name: libc::c_int, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is readable for `len` bytes.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The addresses of `host:port`. A name is looked up on a thread of its own: the resolver blocks,
/// for seconds where a name server is gone.
pub(super) async fn resolve(text: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let (reply, answer) = oneshot::channel();
    let name = text.to_owned();
    std::thread::Builder::new().name("bb-resolve".into()).spawn(move || {
        let found = name.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // An error means that nobody waits any more.
        let _ = reply.send(found);
    })?;
    let found = answer.await.map_err(|_| io::Error::other("the resolver ended"))??;
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{text} has no address")));
    }
    Ok(found)
}
