//! Servers know opens in memory only (rule 8). Where another process serves a file's record than
//! the one that was shown its opens, it is shown them again, before its grace is over: also those
//! of files that nobody reads or writes meanwhile.

use std::rc::{Rc, Weak};

use bb_proto::meta::{self, FileSize};
use bb_proto::{Code, Kind};
use bb_runtime::Rt;
use bb_transport::{Answer, CallError};

use crate::client::Inner;
use crate::link::Ask;
use crate::node::{Node, Opened};

/// Looks three times a lease, as long as anybody holds the client. The grace of a server is as long
/// as a lease.
pub(crate) async fn show_opens(client: Weak<Inner>, rt: Rt) {
    loop {
        let Some(wait) = client.upgrade().map(|inner| inner.session.lease() / 3) else { return };
        rt.sleep(wait).await;
        let Some(inner) = client.upgrade() else { return };
        let nodes: Vec<Rc<Node>> = inner.nodes.borrow().values().cloned().collect();
        if nodes.is_empty() {
            continue;
        }
        // Nobody else may ask for anything for a long time.
        inner.link.refresh_map().await;
        for node in nodes {
            let process = inner.link.process_of(inner.record_partition(node.fid));
            if process.is_some() && node.shown_to.get() != process && inner.show(&node).await {
                node.shown_to.set(process);
            }
        }
    }
}

impl Inner {
    /// Shows all opens of a file. False where that is to be tried again.
    async fn show(&self, node: &Node) -> bool {
        let opens = node.opens.borrow().clone();
        for opened in opens.iter().filter(|opened| !opened.closing.get()) {
            let told = self.tell_of(node, opened, Kind::FileSize).await;
            if opened.closing.get() {
                // It may have overtaken the end of the open: that is said once more.
                let _ = self.tell_of(node, opened, Kind::FileClose).await;
                continue;
            }
            match told {
                Ok(_) => {}
                // The session was lost, or the file: whoever uses it next finds that out.
                Err(CallError::Refused(failure, _))
                    if matches!(failure.kind(), Code::NoSession | Code::StaleFile) => {}
                Err(error) => {
                    tracing::debug!(%error, "an open could not be shown again");
                    return false;
                }
            }
        }
        true
    }

    async fn tell_of(&self, node: &Node, opened: &Opened, kind: Kind) -> Result<Answer, CallError> {
        let body = meta::encode(&FileSize {
            capability: (&opened.capability.get()).into(),
            epoch: node.epoch.get().0,
            size: 0,
            append: 0,
            durable_name: false,
            open_id: opened.open_id.get(),
            mtime_ns: 0,
        });
        self.link.ask_once(self.record_partition(node.fid), &Ask::new(kind, body)).await
    }
}
