//! TCP, by way of the reactor's `io_uring`.

mod sharing;
mod socket;
mod stream;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;

use bb_runtime::uring::{RingFd, Uring};

pub use sharing::{Handed, Taker, hand_over};

use crate::Address;
use crate::link::{Link, LinkError, Listener, LocalFuture, Network};
use sharing::Counted;

/// TCP over a ring. Addresses are `host:port`; IPv6 addresses stand in brackets.
pub struct Tcp {
    uring: Uring,
}

impl Tcp {
    /// Sockets that live on `uring`.
    pub fn network(uring: &Uring) -> Rc<dyn Network> {
        Rc::new(Self { uring: uring.clone() })
    }
}

impl Network for Tcp {
    fn connect(&self, to: &Address) -> LocalFuture<'static, Result<Link, LinkError>> {
        let (uring, to) = (self.uring.clone(), to.clone());
        Box::pin(async move {
            let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
            for address in socket::resolve(&to.0).await? {
                match connect_one(&uring, address).await {
                    Ok(link) => return Ok(link),
                    Err(error) => last = error,
                }
            }
            Err(last.into())
        })
    }

    fn listen(&self, at: &Address) -> LocalFuture<'static, Result<Box<dyn Listener>, LinkError>> {
        let (uring, at) = (self.uring.clone(), at.clone());
        Box::pin(async move {
            let (fd, address) = bind(&uring, &at).await?;
            let listener: Box<dyn Listener> = Box::new(Accepting { uring, fd, address });
            Ok(listener)
        })
    }
}

/// A listening socket, and where.
async fn bind(uring: &Uring, at: &Address) -> std::io::Result<(RingFd, SocketAddr)> {
    let addresses = socket::resolve(&at.0).await?;
    // Sets SO_REUSEADDR: a restarted server must not wait for old connections to fade.
    let listener = TcpListener::bind(&addresses[..])?;
    let address = listener.local_addr()?;
    Ok((uring.adopt(listener.into()), address))
}

async fn connect_one(uring: &Uring, address: SocketAddr) -> std::io::Result<Link> {
    let fd = uring.adopt(socket::create(address)?);
    uring.connect(&fd, address).await?;
    link(uring, &fd)
}

/// Makes a connected socket ours.
fn link(uring: &Uring, fd: &RingFd) -> std::io::Result<Link> {
    counted_link(uring, fd, None)
}

/// The same, for one that somebody counts.
fn counted_link(uring: &Uring, fd: &RingFd, counted: Option<Counted>) -> std::io::Result<Link> {
    let peer = socket::prepare(fd)?;
    let remote: IpAddr = peer.ip().to_canonical();
    Ok(Link {
        recv: Box::new(stream::TcpRecv::new(uring, fd, counted)),
        send: Rc::new(stream::TcpSend::new(uring, fd)),
        remote: remote.to_string().into(),
    })
}

struct Accepting {
    uring: Uring,
    fd: RingFd,
    address: SocketAddr,
}

impl Listener for Accepting {
    fn accept(&mut self) -> LocalFuture<'_, Result<Link, LinkError>> {
        Box::pin(async move {
            loop {
                let fd = self.uring.accept(&self.fd).await?;
                // A peer that has gone already is not the listener's trouble.
                match link(&self.uring, &fd) {
                    Ok(link) => return Ok(link),
                    Err(error) => tracing::debug!(%error, "a connection ended as it began"),
                }
            }
        })
    }

    fn address(&self) -> Address {
        Address(self.address.to_string().into())
    }
}
