//! The write-through mode: each operation is done on the backing file system before it is
//! answered, exactly once for its number (rule 8).
//!
//! Operations that cannot be done twice are logged before and after. The others (chmod, times,
//! opening what exists, truncate, which has its own log) may be done again after a crash; their
//! answers are kept in memory only, against requests that arrive twice. An open that makes a file is
//! logged also without O_EXCL: done again it does no harm, but done late by a process that is gone
//! it would bring back a file that was removed since.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::meta::{Namespace as Request, NamespaceOp, NamespaceReply, OpOpen};
use bb_proto::{ClientSequence, Code, Failure, ServiceClass, SessionId};
use bb_runtime::sync::Notify;

use super::session_mutation::{Answer, SessionChange, SessionMutation, SessionOutcome};
use super::session_table::Operation;
use super::{Namespace, NamespaceFuture};
use crate::files::Parts;
use crate::partition::{Mutation, Partition};
use crate::planted::{self, Planted};

/// Number of an operation.
type Number = (SessionId, ClientSequence);

/// Namespace operations that go straight to the backing file system.
pub struct WriteThrough {
    pub(super) parts: Parts,
    /// What is being done: a second request of the same number waits for the first.
    in_flight: RefCell<BTreeMap<Number, Notify>>,
    /// Answers of operations that are not logged.
    answered: RefCell<BTreeMap<SessionId, Answers>>,
}

/// Answers of a session's operations that are not logged.
#[derive(Default)]
struct Answers {
    /// Up to this one they have arrived, and are forgotten: a copy of such a request that comes
    /// late must not be carried out, for what it met may have changed since.
    acknowledged: ClientSequence,
    kept: BTreeMap<ClientSequence, Answer>,
}

/// Marks an operation as being done.
struct InFlight<'a> {
    mode: &'a WriteThrough,
    number: Number,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.mode.in_flight.borrow_mut().remove(&self.number) {
            waiting.notify_all();
        }
    }
}

impl WriteThrough {
    /// Nothing is under way.
    pub fn new(parts: Parts) -> Rc<Self> {
        let (in_flight, answered) = (RefCell::default(), RefCell::default());
        Rc::new(Self { parts, in_flight, answered })
    }

    /// Waits until nobody else does this operation, and claims it.
    async fn claim(&self, number: Number) -> InFlight<'_> {
        loop {
            let waiting = {
                let mut in_flight = self.in_flight.borrow_mut();
                match in_flight.get(&number) {
                    Some(first) => first.notified(),
                    None => {
                        in_flight.insert(number, Notify::new());
                        return InFlight { mode: self, number };
                    }
                }
            };
            waiting.await;
        }
    }

    async fn perform_once(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        request: Request,
    ) -> Result<NamespaceReply, Failure> {
        let number = (SessionId(request.session), ClientSequence(request.sequence));
        if is_read_only(request.op.as_ref()) {
            self.check_session(partition, number.0)?;
            return self.read(&request).await;
        }
        if request.sequence == 0 {
            return Err(Failure::new(Code::Invalid, "a change needs a number"));
        }
        let _claim = self.claim(number).await;
        let forget = ClientSequence(request.acknowledged);
        let known = {
            let state = partition.state();
            let session = state.sessions.get(number.0).ok_or_else(no_session)?;
            if number.1 <= session.acknowledged {
                return Err(was_acknowledged());
            }
            session.operation(number.1).cloned()
        };
        match known {
            Some(Operation::Ended(answer)) if !planted::is(Planted::RetryTwice) => {
                return answer.into();
            }
            Some(Operation::Begun(intent)) => {
                return self.settle(partition, number, *intent).await;
            }
            _ => {}
        }
        {
            let mut answered = self.answered.borrow_mut();
            let answers = answered.entry(number.0).or_default();
            answers.acknowledged = answers.acknowledged.max(forget);
            let acknowledged = answers.acknowledged;
            answers.kept.retain(|sequence, _| *sequence > acknowledged);
            if number.1 <= acknowledged {
                return Err(was_acknowledged());
            }
            if let Some(answer) = answers.kept.get(&number.1)
                && !planted::is(Planted::RetryTwice)
            {
                return answer.clone().into();
            }
        }
        if is_logged(request.op.as_ref()) {
            return self.begin(partition, number, request).await;
        }
        let result = match without_creation(&request) {
            Some(existing) => match self.repeatable(&existing).await {
                // It would make a file. Logged, because the call may hang, outlive this process and
                // make the file when another client has removed it already (rule 10).
                Err(failure) if failure.errno == libc::ENOENT => {
                    return self.begin(partition, number, request).await;
                }
                result => result,
            },
            None => self.repeatable(&request).await,
        };
        self.remember(number, &result);
        result
    }

    /// Keeps an answer that is not logged, against requests that arrive twice.
    pub(super) fn remember(&self, number: Number, result: &Result<NamespaceReply, Failure>) {
        if let Some(answer) = final_answer(result) {
            let mut answered = self.answered.borrow_mut();
            answered.entry(number.0).or_default().kept.insert(number.1, answer);
        }
    }

    fn check_session(&self, partition: &Partition, session: SessionId) -> Result<(), Failure> {
        partition.state().sessions.get(session).map(drop).ok_or_else(no_session)
    }

    pub(super) async fn log(
        &self,
        partition: &Rc<Partition>,
        session: SessionId,
        change: SessionChange,
    ) -> Result<SessionOutcome, Failure> {
        let mutation = Mutation::Session(SessionMutation { session, change });
        partition.submit(ServiceClass::Client, mutation).await?.session()
    }
}

impl Namespace for WriteThrough {
    fn perform(
        self: Rc<Self>,
        partition: Rc<Partition>,
        request: Request,
    ) -> NamespaceFuture<NamespaceReply> {
        Box::pin(async move { self.perform_once(&partition, request).await })
    }

    fn session_ended(&self, session: SessionId) {
        self.answered.borrow_mut().remove(&session);
    }

    fn resume(self: Rc<Self>, partition: &Rc<Partition>) {
        let (doubts, gone) = {
            let state = partition.state();
            let doubts: Vec<Number> = state
                .sessions
                .iter()
                .flat_map(|(id, session)| {
                    let begun = session.operations();
                    begun
                        .filter(|(_, operation)| matches!(operation, Operation::Begun(_)))
                        .map(move |(sequence, _)| (id, sequence))
                })
                .collect();
            let gone: Vec<_> = state.sessions.gone().map(|(f, b)| (f, b.clone())).collect();
            (doubts, gone)
        };
        for number in doubts {
            self.settle_later(partition, number, Duration::ZERO);
        }
        if !gone.is_empty() {
            self.tell_gone(partition, SessionId(0), gone);
        }
    }
}

impl WriteThrough {
    /// An operation that is in doubt is decided also if its client never asks again; by another
    /// node, when this one's tenure ends.
    pub(super) fn settle_later(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        number: Number,
        after: Duration,
    ) {
        let (this, partition) = (self.clone(), partition.clone());
        let tenure = partition.tenure();
        self.parts.rt.spawn(async move {
            this.parts.rt.sleep(after).await;
            while partition.tenure() == tenure {
                let claim = this.claim(number).await;
                let operation = {
                    let state = partition.state();
                    let session = state.sessions.iter().find(|(id, _)| *id == number.0);
                    session.and_then(|(_, session)| session.operation(number.1).cloned())
                };
                let Some(Operation::Begun(intent)) = operation else { return };
                match this.settle(&partition, number, *intent).await {
                    Err(failure) if is_open_ended(&failure) => {}
                    _ => return,
                }
                drop(claim);
                this.parts.rt.sleep(super::RETRY).await;
            }
        });
    }
}

impl From<Answer> for Result<NamespaceReply, Failure> {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Done(reply) => Ok(*reply),
            Answer::Failed(failure) => Err(failure),
        }
    }
}

/// True if an operation has no outcome yet: its client, or the server, tries again.
pub(super) fn is_open_ended(failure: &Failure) -> bool {
    matches!(failure.kind(), Code::Busy | Code::BfsUnavailable | Code::Fenced | Code::NoSession)
}

/// What a retry is to hear, if the result is final.
pub(super) fn final_answer(result: &Result<NamespaceReply, Failure>) -> Option<Answer> {
    match result {
        Ok(reply) => Some(Answer::Done(Box::new(reply.clone()))),
        Err(failure) if is_open_ended(failure) => None,
        Err(failure) => Some(Answer::Failed(failure.clone())),
    }
}

pub(super) fn no_session() -> Failure {
    Failure::new(Code::NoSession, "the session is not known here")
}

fn was_acknowledged() -> Failure {
    Failure::new(Code::Invalid, "this answer was acknowledged")
}

fn is_read_only(op: Option<&NamespaceOp>) -> bool {
    matches!(
        op,
        Some(
            NamespaceOp::Stat(_)
                | NamespaceOp::Readdir(_)
                | NamespaceOp::Access(_)
                | NamespaceOp::Statvfs(_)
        )
    )
}

/// Opens that make a file where there is none: the same that only opens what is there.
fn without_creation(request: &Request) -> Option<Request> {
    match &request.op {
        Some(NamespaceOp::Open(open)) if open.flags & libc::O_CREAT != 0 => {
            let flags = open.flags & !libc::O_CREAT;
            let op = Some(NamespaceOp::Open(OpOpen { flags, ..open.clone() }));
            Some(Request { op, ..request.clone() })
        }
        _ => None,
    }
}

/// True for what must not be done twice.
fn is_logged(op: Option<&NamespaceOp>) -> bool {
    match op {
        Some(NamespaceOp::Open(open)) => {
            let exclusive = libc::O_CREAT | libc::O_EXCL;
            open.flags & exclusive == exclusive
        }
        Some(
            NamespaceOp::Mkdir(_)
            | NamespaceOp::Rmdir(_)
            | NamespaceOp::Unlink(_)
            | NamespaceOp::Rename(_),
        ) => true,
        _ => false,
    }
}
