//! One commit at one partition, repeated until it has an outcome.

use std::rc::Rc;

use bb_proto::{
    Code, Commit, Fragment, Kind, OpId, PartitionId, PgBody, PgDescriptor, SessionId, Tick,
    TruncateEpoch,
};
use bb_runtime::Buf;
use bb_transport::CallError;

use crate::client::Inner;
use crate::error::Error;
use crate::link::Ask;
use crate::node::{Node, RUN_REGIONS};

/// The fragments for one partition.
pub(crate) struct Part {
    pub partition: PartitionId,
    pub fragments: Vec<Fragment>,
}

/// How a commit ended.
pub(crate) enum End {
    Done,
    /// Refused for good under this id: write the bytes again under another.
    Again,
    /// Refused for good, and would be again.
    Refused(Error),
    /// No answer for the command timeout: it may be on record, or still come to be.
    Unknown(Error),
}

/// What one answer says about going on.
enum Step {
    Repeat,
    End(End),
}

impl Inner {
    /// Commits `part` of a group at its partition. For home, `others` are the participants. Where that
    /// is all of the group, and the file's record is there, `closes` is the open that ends with it.
    #[expect(clippy::too_many_arguments, reason = "a commit is what it is")]
    pub async fn commit(
        self: &Rc<Self>,
        node: &Rc<Node>,
        descriptor: &PgDescriptor,
        part: &Part,
        others: &[PartitionId],
        payload: Vec<Buf>,
        closes: u64,
        session: SessionId,
        give_up: bb_runtime::Instant,
    ) -> End {
        let end = part.fragments.last().map_or(0, Fragment::end);
        let is_record = part.partition == self.record_partition(node.fid);
        let blocks = matches!(descriptor.body, PgBody::Blocks { .. });
        let mut maybe_applied = false;
        for attempt in 0.. {
            let capability = node.write_capability.get();
            if capability.session != session {
                // The group's session is gone, and with it whatever may still be on its way.
                return End::Again;
            }
            let raise = is_record && end > node.size_acknowledged.get();
            let commit = Commit {
                capability,
                epoch: node.epoch.get(),
                size_raise: if raise { end } else { 0 },
                mtime_ns: if is_record { node.mtime_ns.get() } else { 0 },
                closes,
                stage: OpId(0),
                descriptor: descriptor.clone(),
                participants: others.to_vec(),
                fragments: part.fragments.clone(),
            };
            let mut ask = Ask::new(Kind::Commit, commit.encode());
            ask.payload = payload.clone();
            let step = match self.link.ask_once(part.partition, &ask).await {
                Ok(_) => {
                    if raise {
                        node.raised(commit.epoch, end, self.rt().now());
                    }
                    node.told_time(commit.mtime_ns);
                    return End::Done;
                }
                Err(error) => {
                    self.judge(node, part, blocks, session, error, &mut maybe_applied, give_up)
                        .await
                }
            };
            if let Step::End(end) = step {
                return end;
            }
            if self.rt().now() >= give_up {
                break;
            }
            self.link.back_off(attempt).await;
        }
        if maybe_applied {
            End::Unknown(self.link.timed_out())
        } else {
            End::Refused(self.link.timed_out())
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything that an answer is judged by")]
    async fn judge(
        self: &Rc<Self>,
        node: &Rc<Node>,
        part: &Part,
        blocks: bool,
        session: SessionId,
        error: CallError,
        maybe_applied: &mut bool,
        give_up: bb_runtime::Instant,
    ) -> Step {
        if matches!(error, CallError::TimedOut | CallError::Disconnected { .. }) {
            self.link.count(|counters| counters.repeated += 1);
        }
        let failure = match error {
            CallError::Refused(failure, _) => failure,
            CallError::TimedOut | CallError::Disconnected { maybe_sent: true } => {
                *maybe_applied = true;
                self.link.refresh_map().await;
                return Step::Repeat;
            }
            CallError::Disconnected { maybe_sent: false } => {
                self.link.refresh_map().await;
                return Step::Repeat;
            }
            CallError::Rejected(text) => {
                let error = Error::Rejected(text);
                let unknown = *maybe_applied;
                return Step::End(if unknown { End::Unknown(error) } else { End::Refused(error) });
            }
        };
        tracing::debug!(partition = %part.partition, %failure, "a commit was refused");
        match failure.kind() {
            // Corrupt: an inline group's bytes were damaged on the way; ours are whole.
            Code::Busy | Code::SlotAhead | Code::Corrupt => Step::Repeat,
            Code::Fenced => {
                self.link.refresh_map().await;
                Step::Repeat
            }
            Code::OldTruncateEpoch => {
                let epoch = TruncateEpoch(failure.value);
                // Somebody cut the file: what was acknowledged before does not cover these bytes
                // any more, and without its new size fsync would not raise it.
                if let Err(error) = self.ask_size(node).await {
                    return Step::End(if *maybe_applied {
                        End::Unknown(error)
                    } else {
                        End::Refused(error)
                    });
                }
                node.epoch.set(node.epoch.get().max(epoch));
                node.maps.borrow_mut().forget();
                Step::Repeat
            }
            Code::RegionUnknown => {
                let region = node.region_of(part.fragments[0].offset);
                node.runs.borrow_mut().remove(&(region.0 / RUN_REGIONS));
                match self.register(node, region).await {
                    Ok(()) => Step::Repeat,
                    Err(error) => Step::End(End::Refused(error)),
                }
            }
            Code::BehindHorizon => {
                self.link.saw_tick(Tick(failure.value));
                Step::End(End::Again)
            }
            Code::CommitCancelled => Step::End(End::Again),
            // Metadata may get room again; an inline group can go into blocks instead at once.
            Code::NoSpace if blocks && self.rt().now() < give_up => Step::Repeat,
            Code::NoSession => {
                let error = Error::from(failure);
                if self.recovered(&error, session).await {
                    return Step::End(End::Again);
                }
                Step::End(End::Refused(error))
            }
            _ => Step::End(End::Refused(failure.into())),
        }
    }
}
