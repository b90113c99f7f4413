//! A client over TCP on a ring of its own, for programs that run an executor.

use std::rc::Rc;

use bb_runtime::uring::{self, Uring, UringOptions};
use bb_runtime::{BufPool, Executor};
use bb_transport::{Address, ClientConfig, Identity, Role, Tcp};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::options::ClientOptions;

/// An executor over a ring of this thread.
///
/// # Errors
/// The kernel has no usable `io_uring`.
pub fn executor() -> Result<(Executor, Uring)> {
    let failed = |error: uring::UringError| Error::errno_of(libc::ENOSYS, error.to_string());
    uring::executor(&UringOptions::for_library()).map_err(failed)
}

impl Client {
    /// Connects over TCP to the cluster whose servers (at least one of them) are at `addresses`,
    /// with `pool_bytes` of buffers; `executor` runs what this starts.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn connect_tcp(
        executor: &Executor,
        ring: &Uring,
        addresses: &[String],
        options: ClientOptions,
        pool_bytes: usize,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| Error::errno_of(libc::ENOMEM, error.to_string());
        let pool = BufPool::new(pool_bytes, true).map_err(failed)?;
        let identity = Identity {
            role: Role::Client,
            host: options.host.as_str().into(),
            cluster: Vec::new(),
            incarnation: 0,
            auth: options.auth.method(),
        };
        let mut config = ClientConfig::new(identity, pool.clone());
        config.account.uid = options.credentials.uid;
        config.account.job = options.job;
        let rt = executor.rt();
        let caller = bb_transport::Client::new(&rt, Tcp::network(ring), config);
        let addresses = addresses.iter().map(|a| Address::from(a.as_str())).collect();
        let client = Self::connect(rt, pool, Rc::new(caller.clone()), addresses, options).await?;
        caller.set_cluster(client.map().cluster.clone());
        Ok(client)
    }
}
