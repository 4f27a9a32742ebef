//! Checkpoints by bytes of log, beside those by entries: few large commands must not make a long replay.

use std::sync::Arc;
use std::time::Duration;

use super::Group;

/// Bytes of log after which a checkpoint is written.
const LOG_BYTES: u64 = 64 << 20;
/// How often the log is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Starts the task that does it; it ends with the group.
pub(super) fn by_bytes(group: &Group) {
    let weak = Arc::downgrade(&group.0);
    tokio::spawn(async move {
        let mut last = 0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(inner) = weak.upgrade() else { return };
            let appended = inner.log.appended_bytes();
            if appended - last < LOG_BYTES {
                continue;
            }
            last = appended;
            // One that is being written already serves as well; a group that has stopped needs none.
            if let Err(error) = inner.raft.trigger().snapshot().await {
                tracing::warn!(%error, "no checkpoint could be started");
                return;
            }
        }
    });
}
