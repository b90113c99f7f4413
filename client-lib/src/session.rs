//! The client's session: opened, renewed, replaced when it was lost; numbers its operations.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bb_proto::meta::{self, SessionOpen, SessionOpenReply, SessionRenew};
use bb_proto::{Code, Kind, PartitionId, PgId, SessionId, Tick, partition_of_session};

use crate::error::Result;
use crate::link::{Ask, Link};
use crate::options::ClientOptions;

/// A session and the numbers drawn in it.
pub(crate) struct Session {
    link: Link,
    options: Rc<ClientOptions>,
    id: Cell<SessionId>,
    lease: Cell<Duration>,
    next: Cell<u64>,
    under_way: RefCell<BTreeSet<u64>>,
    next_pg: Cell<u32>,
}

/// A numbered operation. Its result may be forgotten by the server once this is dropped.
pub(crate) struct Numbered {
    session: Rc<Session>,
    pub id: SessionId,
    pub sequence: u64,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        if self.session.id.get() == self.id {
            self.session.under_way.borrow_mut().remove(&self.sequence);
        }
    }
}

impl Session {
    pub async fn open(link: Link, options: Rc<ClientOptions>) -> Result<Rc<Self>> {
        let session = Rc::new(Self {
            link,
            options,
            id: Cell::default(),
            lease: Cell::default(),
            next: Cell::new(1),
            under_way: RefCell::default(),
            next_pg: Cell::new(1),
        });
        session.open_now().await?;
        let rt = session.link.rt().clone();
        rt.spawn(renew(Rc::downgrade(&session), rt.clone()));
        Ok(session)
    }

    async fn open_now(&self) -> Result<()> {
        let rt = self.link.rt();
        // A new key each time: its partition may be down, and another's is not.
        let body = || {
            let mut key = rt.random_u64().to_le_bytes().to_vec();
            key.extend(rt.random_u64().to_le_bytes());
            meta::encode(&SessionOpen {
                key,
                host: self.options.host.clone(),
                pid: self.options.pid,
                job: self.options.job,
                owner: None,
            })
        };
        let answer = self.link.ask_any(Kind::SessionOpen, body).await?;
        let reply: SessionOpenReply = meta::decode(&answer.body)?;
        self.link.saw_tick(Tick(reply.tick));
        self.under_way.borrow_mut().clear();
        self.next.set(1);
        self.lease.set(Duration::from_millis(u64::from(reply.lease_ms.max(300))));
        self.id.set(SessionId(reply.session));
        Ok(())
    }

    /// How long it lives without being heard of.
    pub fn lease(&self) -> Duration {
        self.lease.get()
    }

    pub fn id(&self) -> SessionId {
        self.id.get()
    }

    /// The partition that keeps the session.
    pub fn partition(&self) -> PartitionId {
        partition_of_session(self.id.get(), self.link.map().partition_count())
    }

    /// The server does not know session `lost`: opens another, unless that was done. One call at a
    /// time. True if this one did it: its caller reopens the files.
    pub async fn replace(&self, lost: SessionId) -> Result<bool> {
        if self.id.get() != lost {
            return Ok(false);
        }
        tracing::warn!("session {lost} is not known any more; opening another");
        self.open_now().await?;
        Ok(true)
    }

    /// A number for an operation, kept in flight until it is dropped.
    pub fn number(self: &Rc<Self>) -> Numbered {
        let sequence = self.next.get();
        self.next.set(sequence + 1);
        self.under_way.borrow_mut().insert(sequence);
        Numbered { session: self.clone(), id: self.id.get(), sequence }
    }

    /// Every answer up to this number has arrived.
    pub fn acknowledged(&self) -> u64 {
        self.under_way.borrow().first().copied().unwrap_or_else(|| self.next.get()) - 1
    }

    /// A new parity group's id, minted at the tick before the newest that was heard of. Servers hear
    /// of a tick with their leases, up to half a second after one another, and refuse a slot that
    /// lies ahead of theirs: with the newest, a quarter of all blocks would travel twice. A slot that
    /// is a tick older shortens the window of rule 1 by that, and nothing else.
    pub fn mint(&self, home: PartitionId) -> PgId {
        let sequence = self.next_pg.get();
        // Around after 2^32 groups: the slot is another by then.
        self.next_pg.set(sequence.wrapping_add(1));
        let newest = self.link.tick().0;
        // At the very beginning there is none before it.
        let slot = Tick(newest.saturating_sub(1).max(newest.min(1)));
        PgId { slot, session: self.id.get(), sequence, home }
    }

    /// Ends the session; what does not arrive, the lease ends.
    pub async fn close(&self) {
        let _ = self.link.ask_once(self.partition(), &self.renewal(Kind::SessionClose)).await;
    }

    fn renewal(&self, kind: Kind) -> Ask {
        let (session, acknowledged) = (self.id.get().0, self.acknowledged());
        Ask::new(kind, meta::encode(&SessionRenew { session, acknowledged }))
    }
}

/// Renews three times a lease, as long as anybody holds the session.
async fn renew(session: Weak<Session>, rt: bb_runtime::Rt) {
    loop {
        let Some(wait) = session.upgrade().map(|s| s.lease.get() / 3) else { return };
        rt.sleep(wait).await;
        let Some(session) = session.upgrade() else { return };
        // A lost session is replaced by whoever needs it next: until then nothing depends on it.
        if let Err(error) =
            session.link.ask(session.partition(), &session.renewal(Kind::SessionRenew)).await
            && !error.is(Code::NoSession)
        {
            tracing::warn!(%error, "session could not be renewed");
        }
    }
}
