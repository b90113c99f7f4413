//! What a message must not say, given what this voter is. The library panics on some of it, because
//! it trusts its peers' logs; we don't have to.

use raft::RawNode;
use raft::eraftpb::{Message, MessageType};

use crate::log::Log;

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// Nothing that a voter in good order sends. Dropped.
    Nonsense(&'static str),
    /// The leader knows that we had acknowledged entries that we don't have.
    LogLost {
        commit: u64,
        last: u64,
    },
    /// To be looked at when what the library holds is durable and applied: a vote could make us the
    /// leader at once, and the library takes a leader's log for durable; and it refuses to stand
    /// for election while a committed change of voters is not applied.
    Later,
}

pub(crate) fn judge(node: &RawNode<Log>, message: &Message) -> Verdict {
    let raft = &node.raft;
    let last = raft.raft_log.last_index();
    match message.get_msg_type() {
        // Older terms are ignored by the library.
        MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
            Verdict::LogLost { commit: message.commit, last }
        }
        MessageType::MsgAppendResponse
            if message.term == raft.term && !message.reject && message.index > last =>
        {
            Verdict::Nonsense("acknowledges entries that nobody wrote")
        }
        MessageType::MsgAppendResponse if message.term == raft.term && message.commit > last => {
            Verdict::Nonsense("knows of commits that nobody made")
        }
        MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow
            if raft.raft_log.applied < raft.raft_log.committed
                || !raft.raft_log.unstable_entries().is_empty()
                || raft.raft_log.unstable_snapshot().is_some() =>
        {
            // Else it would stand in the way of all others for ever.
            assert!(node.has_ready(), "nothing will be done about what it waits for");
            Verdict::Later
        }
        _ => Verdict::Good,
    }
}
