//! What only one thread at a time touches: the executor, the client, its open files.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, Thread};

use bb_runtime::uring::{self, UringOptions};
use bb_runtime::{BufPool, Executor, Sleeper};
use bb_transport::{Address, Caller, ClientConfig, Identity, Role, Tcp};

use crate::error::{Error, Result};
use crate::options::ClientOptions;

/// An executor, and a transport over it, not shared with anybody.
pub struct Platform {
    executor: Executor,
    pool: BufPool,
    caller: Rc<dyn Caller>,
    addresses: Vec<Address>,
    /// Learns the cluster's UUID.
    transport: Option<bb_transport::Client>,
}

impl Platform {
    /// io_uring and TCP.
    pub(crate) fn tcp(
        addresses: &[&str],
        options: &ClientOptions,
        pool_bytes: usize,
    ) -> Result<Self> {
        let system = |error: String| Error::errno_of(libc::EIO, error);
        let (executor, ring) =
            uring::executor(&UringOptions::for_library()).map_err(|e| system(e.to_string()))?;
        let pool = BufPool::new(pool_bytes, true).map_err(|e| system(e.to_string()))?;
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
        let transport = bb_transport::Client::new(&executor.rt(), Tcp::network(&ring), config);
        Ok(Self {
            executor,
            pool,
            caller: Rc::new(transport.clone()),
            addresses: addresses.iter().map(|a| Address::from(*a)).collect(),
            transport: Some(transport),
        })
    }

    /// An executor and a transport of the caller's.
    ///
    /// # Safety
    /// Nothing outside of what is passed here may hold on to the executor, its handles, tasks, or
    /// anything of the transport that is not made for several threads: all of it moves to whichever
    /// thread leads.
    pub unsafe fn own(
        executor: Executor,
        pool: BufPool,
        caller: Rc<dyn Caller>,
        addresses: Vec<Address>,
    ) -> Self {
        Self { executor, pool, caller, addresses, transport: None }
    }
}

/// The executor with everything that lives on it.
pub(crate) struct Core {
    // Before the executor: dropping tasks must find their client alive or gone, not half of it.
    pub inside: Rc<Inside>,
    pub executor: Executor,
    /// What the leader sleeps with, while it has nothing else of all this.
    pub sleeper: Arc<dyn Sleeper>,
}

// SAFETY: a `Core` is full of `Rc`s and `Cell`s, and moves between threads. That is sound because
// no two threads ever touch any of them at the same time, and each change is seen by the next one:
// - Everything reachable from a `Core` was made by `Core::connect` on one thread from a `Platform`
//   whose maker promised (`Platform::own`) or ensured (`Platform::tcp`) that nothing else holds any
//   part of it. No `Rc` into it ever leaves: calls get at it through `Job`s, which run under the
//   lock of the only `Core`, take `Send` values in and give `Send` values out (`Shared::call`).
// - The `Core` lives in a `Mutex`, which orders the accesses of one thread before the next one's.
//   Nobody touches it without, also not the leader that sleeps: it has a clone of `sleeper`.
// - What reaches in from outside the lock is made for it: wakers (`Arc`, atomics and a locked
//   queue), buffers (`Arc` and a locked pool), `Unpark`, and `Sleeper`, which shares nothing with
//   the ring but the kernel's object.
// - Nothing in it is bound to a thread: no thread-locals; the ring is made with `RingOwner::Process`.
unsafe impl Send for Core {}

/// The client and what callers refer to by number, since they cannot hold it.
pub(crate) struct Inside {
    pub client: crate::Client,
    files: RefCell<BTreeMap<u64, Rc<crate::File>>>,
    operations: RefCell<BTreeMap<u64, crate::Operation>>,
    next: Cell<u64>,
    /// Callers whose calls have ended, for whoever has the executor to unpark when he has let go
    /// of it.
    ended: RefCell<Vec<Thread>>,
    /// Nobody will: they are unparked at once.
    tell_at_once: Cell<bool>,
}

impl Core {
    pub fn connect(platform: Platform, options: ClientOptions) -> Result<Self> {
        let Platform { executor, pool, caller, addresses, transport } = platform;
        let rt = executor.rt();
        let connect = crate::Client::connect(rt, pool, caller, addresses, options);
        let client = executor.block_on(connect)?;
        if let Some(transport) = transport {
            transport.set_cluster(client.map().cluster.clone());
        }
        let inside = Rc::new(Inside {
            client,
            files: RefCell::default(),
            operations: RefCell::default(),
            next: Cell::new(1),
            ended: RefCell::default(),
            tell_at_once: Cell::new(false),
        });
        let sleeper = executor.sleeper();
        Ok(Self { inside, executor, sleeper })
    }
}

impl Inside {
    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// The call of `caller` has ended.
    pub fn tell(&self, caller: &Thread) {
        if self.tell_at_once.get() {
            caller.unpark();
        } else if caller.id() != thread::current().id() {
            self.ended.borrow_mut().push(caller.clone());
        }
    }

    /// Whom to unpark: others than this thread.
    pub fn take_ended(&self) -> Vec<Thread> {
        self.ended.take()
    }

    pub fn tell_at_once(&self) {
        self.tell_at_once.set(true);
        self.take_ended().iter().for_each(Thread::unpark);
    }

    pub fn keep_file(&self, file: crate::File) -> u64 {
        let id = self.number();
        self.files.borrow_mut().insert(id, Rc::new(file));
        id
    }

    pub fn file(&self, id: u64) -> Result<Rc<crate::File>> {
        let file = self.files.borrow().get(&id).cloned();
        file.ok_or_else(|| Error::errno_of(libc::EBADF, "the file is closed"))
    }

    pub fn forget_file(&self, id: u64) -> Option<Rc<crate::File>> {
        self.files.borrow_mut().remove(&id)
    }

    pub fn keep_operation(&self, operation: crate::Operation) -> u64 {
        let id = self.number();
        self.operations.borrow_mut().insert(id, operation);
        id
    }

    pub fn operation(&self, id: u64) -> Result<crate::Operation> {
        let operation = self.operations.borrow().get(&id).cloned();
        operation.ok_or_else(|| Error::errno_of(libc::EINVAL, "no such operation"))
    }

    pub fn forget_operation(&self, id: u64) {
        self.operations.borrow_mut().remove(&id);
    }
}
