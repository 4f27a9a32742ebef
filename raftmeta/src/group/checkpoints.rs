//! Checkpoints by bytes of log, beside those by entries: few large commands must not make a long replay.

use std::sync::Arc;
use std::time::Duration;

use openraft::type_config::TypeConfigExt;

use super::{Group, Inner, Types};

/// Bytes of log after which a checkpoint is written.
const LOG_BYTES: u64 = 64 << 20;
/// Bytes of log that stay behind a checkpoint, however few entries they are.
const KEEP_BYTES: u64 = 256 << 20;
/// How often the log is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Starts the task that does it; it ends with the group.
pub(super) fn by_bytes(group: &Group) {
    let weak = Arc::downgrade(&group.0);
    Types::spawn(async move {
        let mut last = 0;
        loop {
            Types::sleep(LOOK_EVERY).await;
            let Some(inner) = weak.upgrade() else { return };
            drop_excess(&inner).await;
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

/// What openraft keeps for others that lack it is counted in entries, which may be large.
async fn drop_excess(inner: &Inner) {
    if inner.log.used_bytes() <= KEEP_BYTES {
        return;
    }
    let (log, store) = (&inner.log, &inner.store);
    if let Some(upto) = store.checkpointed().filter(|upto| Some(*upto) > log.purged())
        && let Err(error) = inner.raft.trigger().purge_log(upto).await
    {
        tracing::warn!(%error, "the log keeps what could go");
    }
}
