//! Operations that must not be done twice: intent, backing file system, result (rule 8).

use std::rc::Rc;

use bb_proto::meta::{
    Attributes, Binding, Credentials, Namespace as Request, NamespaceOp, NamespaceReply, OpMode,
    OpOpen, OpTwo,
};
use bb_proto::{ClientSequence, Code, Failure, Fid, SessionId};

use super::repeatable::is_regular;
use super::session_mutation::{Intent, SessionChange, SessionOutcome};
use super::write_through::{WriteThrough, final_answer, no_session};
use crate::bfs::{BfsError, Found, confirmed};
use crate::files::fid_of;
use crate::files::peers::{hidden_name, refusal};
use crate::partition::Partition;
use crate::planted::{self, Planted};

/// How much older than its intent a directory or file may look that the intent made: clocks of
/// the backing file system's servers differ, and its times are coarse. Nothing was there when the
/// intent was logged, so this concerns only what somebody else has moved there since.
const CLOCK_SLACK_NS: i64 = 2_000_000_000;

/// Looks at a name whose looks may miss what is there.
const LOOKS: u32 = 3;

/// Files whose last name may be gone.
type Gone = Vec<(Fid, Binding)>;

type Number = (SessionId, ClientSequence);

impl WriteThrough {
    /// A new operation.
    pub(super) async fn begin(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        number: Number,
        request: Request,
    ) -> Result<NamespaceReply, Failure> {
        let (source, victim) = match self.look_before(&request).await {
            Ok(victims) => victims,
            Err(failure) => {
                // Not logged: nothing was begun. A copy of the request that comes late must hear
                // the same, and not be carried out.
                self.remember(number, &Err(failure.clone()));
                return Err(failure);
            }
        };
        let intent = Intent {
            process: self.parts.process(),
            at_ns: self.parts.rt.wall().0,
            source,
            victim,
            request,
        };
        let begin = SessionChange::Begin {
            sequence: number.1,
            acknowledged: ClientSequence(intent.request.acknowledged),
            intent: Box::new(intent.clone()),
        };
        match self.log(partition, number.0, begin).await? {
            SessionOutcome::Done => {}
            SessionOutcome::Known if planted::is(Planted::RetryTwice) => {}
            SessionOutcome::Known => return Err(Failure::new(Code::Busy, "it is being done")),
            _ => return Err(no_session()),
        }
        let result = self.execute(partition, number, &intent).await;
        let result = self.end(partition, number, result).await;
        if final_answer(&result).is_none() {
            // Its client has the first word.
            self.settle_later(partition, number, super::RETRY);
        }
        result
    }

    /// One in doubt: begun, and its result not known.
    pub(super) async fn settle(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        number: Number,
        intent: Intent,
    ) -> Result<NamespaceReply, Failure> {
        let process = self.parts.process();
        if intent.process != process {
            let gone = self.parts.bfs.proven_gone(intent.process).await;
            let gone = gone.map_err(|error| undecided(&error))?;
            if !gone && !planted::is(Planted::SettleUnproven) {
                return Err(Failure::new(Code::Busy, "the process before is not proven gone"));
            }
            let resume = SessionChange::Resume { sequence: number.1, process };
            self.log(partition, number.0, resume).await?;
        }
        self.parts.bfs.check().await.map_err(|error| undecided(&error))?;
        let result = match self.outcome(&intent).await {
            Ok(Some(done)) => Ok(done),
            Ok(None) => self.execute(partition, number, &intent).await,
            Err(failure) => Err(failure),
        };
        let (session, sequence) = (number.0.0, number.1.0);
        let failure = result.as_ref().err().map(|failure| failure.to_string());
        tracing::debug!(session, sequence, failure, "an operation in doubt was looked at");
        self.end(partition, number, result).await
    }

    async fn end(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        number: Number,
        result: Result<(NamespaceReply, Gone), Failure>,
    ) -> Result<NamespaceReply, Failure> {
        let (result, gone) = match result {
            Ok((reply, gone)) => (Ok(reply), gone),
            Err(failure) => (Err(failure), Vec::new()),
        };
        let Some(answer) = final_answer(&result) else { return result };
        let end = SessionChange::End { sequence: number.1, answer, gone: gone.clone() };
        self.log(partition, number.0, end).await?;
        if !gone.is_empty() {
            self.tell_gone(partition, number.0, gone);
        }
        result
    }

    /// Tells the partitions of files that their last name may be gone; remembered until they know.
    pub(super) fn tell_gone(
        self: &Rc<Self>,
        partition: &Rc<Partition>,
        session: SessionId,
        gone: Gone,
    ) {
        let (this, partition) = (self.clone(), partition.clone());
        self.parts.rt.spawn(async move {
            for (fid, binding) in gone {
                while let Err(failure) = this.tell_drop(fid, &binding).await {
                    tracing::warn!(%fid, %failure, "a removed file is not dropped yet");
                    this.parts.rt.sleep(super::RETRY).await;
                }
                // If this is not logged, it is told again after a restart.
                let _ = this.log(&partition, session, SessionChange::GoneTold { fid }).await;
            }
        });
    }

    /// What the names say before anything is logged: identities of what the operation removes or
    /// moves. What makes something is begun only where nothing is, so that after an I/O error what
    /// was there before is not taken for our own work; the price is a lookup.
    async fn look_before(
        &self,
        request: &Request,
    ) -> Result<(Option<Binding>, Option<Binding>), Failure> {
        let look = |path: &[u8]| self.parts.bfs.lookup(&request.credentials, path, true);
        Ok(match &request.op {
            Some(NamespaceOp::Unlink(op) | NamespaceOp::Rmdir(op)) => {
                (Some(self.ours(look(&op.path).await).await?.binding), None)
            }
            Some(NamespaceOp::Rename(op)) => {
                let source = self.ours(look(&op.from).await).await?.binding;
                let victim = match self.ours(look(&op.to).await).await {
                    Err(failure) if failure.errno == libc::ENOENT => None,
                    other => Some(other?.binding),
                };
                (Some(source), victim)
            }
            Some(NamespaceOp::Open(op)) if !is_exclusive(op) => (None, None),
            Some(
                NamespaceOp::Mkdir(OpMode { path, .. }) | NamespaceOp::Open(OpOpen { path, .. }),
            ) => match self.ours(look(path).await).await {
                Err(failure) if failure.errno == libc::ENOENT => (None, None),
                found => {
                    found?;
                    return Err(Failure::errno(libc::EEXIST, ""));
                }
            },
            _ => (None, None),
        })
    }

    /// Whether an operation in doubt was done: its answer then, nothing if it is to be done (again).
    async fn outcome(&self, intent: &Intent) -> Result<Option<(NamespaceReply, Gone)>, Failure> {
        let (path, made) = match &intent.request.op {
            Some(NamespaceOp::Unlink(op) | NamespaceOp::Rmdir(op)) => (&op.path, None),
            Some(NamespaceOp::Rename(op)) => (&op.from, None),
            Some(NamespaceOp::Mkdir(op)) => (&op.path, Some(None)),
            // Opening again does no harm.
            Some(NamespaceOp::Open(op)) if !is_exclusive(op) => return Ok(None),
            Some(NamespaceOp::Open(op)) => (&op.path, Some(Some(op))),
            _ => return Err(Failure::new(Code::Unsupported, "not an operation that is logged")),
        };
        let found = self.look_again(path).await?;
        match (made, found) {
            // Nothing there: a creation was not done, a removal was.
            (Some(_), None) => Ok(None),
            (None, found) => {
                let same =
                    found.is_some_and(|found| Some(&found.binding) == intent.source.as_ref());
                Ok((!same).then(|| (NamespaceReply::default(), gone_by(intent))))
            }
            (Some(open), Some(found)) => {
                if !self.is_ours(intent, path, &found).await? {
                    return Err(Failure::errno(libc::EEXIST, ""));
                }
                let found = Found { created: true, ..found };
                let reply = match open {
                    Some(op) => self.opened(&intent.request, op, found).await?,
                    None => made_reply(found.attributes),
                };
                Ok(Some((reply, Vec::new())))
            }
        }
    }

    /// What a name means now, as the server sees it: what the caller may see can have changed. That
    /// it means nothing is believed only if every look says so: one may lose a race, and what
    /// follows from it (that a rename was done) can't be taken back.
    async fn look_again(&self, path: &[u8]) -> Result<Option<Found>, Failure> {
        for _ in 0..LOOKS {
            match self.parts.bfs.lookup(&Credentials::default(), path, true).await {
                Ok(found) => return Ok(Some(found)),
                Err(BfsError::Errno(libc::ENOENT | libc::ENOTDIR)) => {
                    self.parts.bfs.check().await.map_err(|error| undecided(&error))?;
                }
                Err(error) => return Err(undecided(&error)),
            }
        }
        Ok(None)
    }

    /// True if what is there is what the intent made: empty, the caller's, and not older.
    async fn is_ours(&self, intent: &Intent, path: &[u8], found: &Found) -> Result<bool, Failure> {
        let attributes = &found.attributes;
        let kind = match intent.request.op {
            Some(NamespaceOp::Mkdir(_)) => libc::S_IFDIR,
            _ => libc::S_IFREG,
        };
        if attributes.mode & libc::S_IFMT != kind
            || attributes.uid != intent.request.credentials.uid
            || attributes.mtime_ns < intent.at_ns.saturating_sub(CLOCK_SLACK_NS)
        {
            return Ok(false);
        }
        if kind == libc::S_IFREG {
            return Ok(attributes.size == 0);
        }
        let page = self.parts.bfs.readdir(&Credentials::default(), path, b"", 1).await;
        Ok(page.map_err(|error| undecided(&error))?.entries.is_empty())
    }

    /// Does it on the backing file system.
    async fn execute(
        &self,
        partition: &Rc<Partition>,
        number: Number,
        intent: &Intent,
    ) -> Result<(NamespaceReply, Gone), Failure> {
        let (bfs, caller) = (&self.parts.bfs, &intent.request.credentials);
        match &intent.request.op {
            Some(NamespaceOp::Mkdir(op)) => {
                let made = bfs.mkdir(caller, &op.path, op.mode).await;
                let found = self.made(intent, made).await?;
                Ok((made_reply(found.attributes), Vec::new()))
            }
            Some(NamespaceOp::Open(op)) => {
                let opened = bfs.open(caller, &op.path, op.flags, op.mode).await;
                let found = self.made(intent, opened).await?;
                Ok((self.opened(&intent.request, op, found).await?, Vec::new()))
            }
            Some(NamespaceOp::Rmdir(op)) => {
                let removed = bfs.rmdir(caller, &op.path).await;
                self.removed(intent, removed).await?;
                Ok((NamespaceReply::default(), Vec::new()))
            }
            Some(NamespaceOp::Unlink(op)) => self.unlink(intent, &op.path).await,
            Some(NamespaceOp::Rename(op)) => self.rename(partition, number, intent, op).await,
            _ => Err(Failure::new(Code::Unsupported, "not an operation that is logged")),
        }
    }

    async fn unlink(
        &self,
        intent: &Intent,
        path: &[u8],
    ) -> Result<(NamespaceReply, Gone), Failure> {
        let unlink = async || self.parts.bfs.unlink(&intent.request.credentials, path).await;
        self.remove(intent, intent.source.as_ref(), unlink).await?;
        Ok((NamespaceReply::default(), gone_by(intent)))
    }

    /// Where nothing was seen under the new name, the call may replace nothing: the look may have
    /// missed what is there, or it came since, and its bytes would stay here for ever.
    async fn rename(
        &self,
        partition: &Rc<Partition>,
        number: Number,
        intent: &Intent,
        op: &OpTwo,
    ) -> Result<(NamespaceReply, Gone), Failure> {
        if op.flags != 0 || intent.victim.is_some() {
            return self.rename_over(intent, op, op.flags).await;
        }
        let caller = &intent.request.credentials;
        for _ in 0..LOOKS {
            let flags = libc::RENAME_NOREPLACE;
            match self.rename_over(intent, op, flags).await {
                Err(failure) if failure.errno == libc::EEXIST => {}
                // The backing file system does not know the flag.
                Err(failure) if failure.errno == libc::EINVAL => {
                    return self.rename_over(intent, op, op.flags).await;
                }
                result => return result,
            }
            match self.ours(self.parts.bfs.lookup(caller, &op.to, true).await).await {
                Err(failure) if failure.errno == libc::ENOENT => {}
                Err(failure) => return Err(failure),
                Ok(found) => {
                    let intent = Intent { victim: Some(found.binding), ..intent.clone() };
                    let begin = SessionChange::Begin {
                        sequence: number.1,
                        acknowledged: ClientSequence(intent.request.acknowledged),
                        intent: Box::new(intent.clone()),
                    };
                    return match self.log(partition, number.0, begin).await? {
                        SessionOutcome::Done => self.rename_over(&intent, op, op.flags).await,
                        _ => Err(Failure::new(Code::Busy, "it was begun otherwise")),
                    };
                }
            }
        }
        Err(Failure::new(Code::Busy, "the new name comes and goes"))
    }

    async fn rename_over(
        &self,
        intent: &Intent,
        op: &OpTwo,
        flags: u32,
    ) -> Result<(NamespaceReply, Gone), Failure> {
        let caller = &intent.request.credentials;
        let victim = intent.victim.as_ref().filter(|_| replaces(intent));
        let rename = async || self.parts.bfs.rename(caller, &op.from, &op.to, flags).await;
        self.remove(intent, victim, rename).await?;
        Ok((NamespaceReply::default(), gone_by(intent)))
    }

    /// Gives a file that is about to lose its last name a hidden one, if a client has it open.
    async fn keep_if_open(&self, binding: &Binding) -> Result<(), Failure> {
        let found = self.parts.bfs.stat(binding).await;
        let attributes = match confirmed(&*self.parts.bfs, found).await {
            Ok(attributes) => attributes,
            // Gone: then the call itself says what is wrong.
            Err(BfsError::Errno(libc::ESTALE)) => return Ok(()),
            Err(error) => return Err(refusal(&error)),
        };
        // The second one may be the hidden name, left by an attempt before this; where it is not, a
        // hidden name that was not needed goes with the last close.
        if !is_regular(&attributes) || attributes.links > 2 {
            return Ok(());
        }
        let fid = fid_of(binding);
        if planted::is(Planted::DropBeforeBfsAgreed) {
            self.tell_drop(fid, binding).await?;
        }
        let state = self.file_state(fid).await?;
        if !state.known || !state.open {
            return Ok(());
        }
        self.sure(self.parts.bfs.keep(binding, &hidden_name(fid)).await).await
    }

    /// Removes the name of `victim`, if anything is to be removed, by `call`. A hidden name that this
    /// attempt or one before it has given is taken back if in the end nothing was removed. Where
    /// that cannot be done now, the removal is not over either, or the name would keep its file for
    /// ever.
    async fn remove(
        &self,
        intent: &Intent,
        victim: Option<&Binding>,
        call: impl AsyncFnOnce() -> Result<(), BfsError>,
    ) -> Result<(), Failure> {
        let Some(victim) = victim else { return self.removed(intent, call().await).await };
        let result = match self.keep_if_open(victim).await {
            Ok(()) => self.removed(intent, call().await).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &result
            && !super::write_through::is_open_ended(failure)
        {
            let unkept = self.parts.bfs.remove_hidden(&hidden_name(fid_of(victim))).await;
            unkept.map_err(|error| undecided(&error))?;
        }
        result
    }

    /// An I/O error says nothing about what was done: then the names tell.
    async fn removed(&self, intent: &Intent, result: Result<(), BfsError>) -> Result<(), Failure> {
        match result {
            Err(error) if is_doubtful(&error) => match self.outcome(intent).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(refusal(&error)),
                Err(_) => Err(Failure::new(Code::Busy, "it is not known whether it was done")),
            },
            result => self.sure(result).await,
        }
    }

    /// The same for what makes something.
    async fn made(
        &self,
        intent: &Intent,
        result: Result<Found, BfsError>,
    ) -> Result<Found, Failure> {
        match result {
            // In doubt: the next attempt looks whether it is there.
            Err(error) if is_doubtful(&error) => {
                let detail = format!("it is not known whether it was done: {error}");
                tracing::warn!(session = intent.request.session, "{detail}");
                Err(Failure::new(Code::Busy, detail))
            }
            result => self.ours(result).await,
        }
    }
}

/// While the names cannot be read, what was done is not known.
fn undecided(error: &BfsError) -> Failure {
    match error {
        BfsError::Errno(_) => Failure::new(Code::Busy, format!("cannot look: {error}")),
        error => refusal(error),
    }
}

const fn is_exclusive(open: &OpOpen) -> bool {
    open.flags & libc::O_EXCL != 0
}

fn is_doubtful(error: &BfsError) -> bool {
    matches!(error, BfsError::Errno(libc::EIO | libc::ETIMEDOUT | libc::EINTR))
}

fn made_reply(attributes: Attributes) -> NamespaceReply {
    NamespaceReply { attributes: Some(attributes), ..Default::default() }
}

/// True if a rename removes what its target named.
fn replaces(intent: &Intent) -> bool {
    match &intent.request.op {
        Some(NamespaceOp::Rename(op)) => op.flags == 0 && intent.victim != intent.source,
        _ => false,
    }
}

/// Files that may have lost their last name. Their partitions ask the backing file system.
fn gone_by(intent: &Intent) -> Gone {
    let binding = match &intent.request.op {
        Some(NamespaceOp::Unlink(_)) => intent.source.as_ref(),
        Some(NamespaceOp::Rename(_)) if replaces(intent) => intent.victim.as_ref(),
        _ => None,
    };
    binding.map(|binding| (fid_of(binding), binding.clone())).into_iter().collect()
}
