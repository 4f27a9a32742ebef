//! A leader whose connections end is replaced as soon as nobody is bound to it any more.
//!
//! ```text
//!   kill -9 ─▶ the system closes its sockets ─▶ parted ─▶ its lease here passes ─▶ pre-vote, every 100 ms
//!                                                 └─ heard once more: nothing happens       └─ granted ─▶ election
//! ```
//! What it saves is the time that a follower waits *after* the lease, a second and a half, so that heartbeats may be
//! late; never the lease. A connection that ends proves nothing, and need not:
//!
//! - openraft asks for no pre-vote while the lease that this replica gave is valid, and gives the round up when the
//!   leader is heard again.
//! - Every other replica grants none, and no vote, while its own is valid.
//! - A replica that was restarted waits as it does for every vote (`may_have_promised`).
//!
//! So a connection that ended for another reason costs a look at the clock.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::InstantOf;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::leadership::LEASE;
use super::{Group, Inner, Types};

/// How often it asks whether it may be elected.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// So much more for each next replica, so that two of them do not ask at the same moments for long.
const APART: Duration = Duration::from_millis(7);
const APART_MAX: u64 = 8;
/// openraft's lease began a moment later than the one that is reckoned with here.
const LATER: Duration = Duration::from_millis(20);
/// A leader that is not replaced by then is missed as any other one is.
const GIVE_UP: Duration = Duration::from_secs(4);

/// When leaders were heard, and of which one a connection has ended.
pub(super) struct Parting {
    heard: Mutex<BTreeMap<u64, InstantOf<Types>>>,
    parted: watch::Sender<Option<u64>>,
}

impl Parting {
    pub fn new() -> Parting {
        Parting { heard: Mutex::default(), parted: watch::channel(None).0 }
    }

    /// Replica `from` sent what only a leader sends.
    pub fn note(&self, from: u64) {
        self.heard.lock().insert(from, Types::now());
    }

    fn heard(&self, leader: u64) -> Option<InstantOf<Types>> {
        self.heard.lock().get(&leader).copied()
    }
}

impl Group {
    /// A connection over which replica `id` sent its messages has ended, as all of them do when a process dies. If it
    /// leads and is not heard again, it is replaced without waiting longer than was promised. May be called whenever
    /// a connection ends, for whatever reason.
    pub fn parted(&self, id: u64) {
        let leads = self.0.metrics.borrow_watched().current_leader == Some(id);
        if leads && id != self.0.node_id {
            self.0.parting.parted.send_replace(Some(id));
        }
    }
}

/// Runs until the group ends.
pub(super) async fn watch(inner: Weak<Inner>) {
    let Some(mut parted) = inner.upgrade().map(|inner| inner.parting.parted.subscribe()) else {
        return;
    };
    while parted.changed().await.is_ok() {
        let Some(gone) = *parted.borrow_and_update() else { continue };
        let Some(heard) = inner.upgrade().map(|inner| inner.parting.heard(gone)) else { return };
        let free = heard.unwrap_or_else(Types::now) + LEASE + LATER;
        Types::sleep_until(free).await;
        while free.elapsed() < GIVE_UP {
            let Some(inner) = inner.upgrade() else { return };
            let leader = inner.metrics.borrow_watched().current_leader;
            if inner.parting.heard(gone) != heard || leader.is_some_and(|leader| leader != gone) {
                break;
            }
            if !inner.leader.may_have_promised() {
                tracing::debug!(gone, "the leader's connection has ended: asking for a pre-vote");
                if inner.raft.trigger().elect(true).await.is_err() {
                    return;
                }
            }
            let apart = APART * (inner.node_id % APART_MAX) as u32;
            drop(inner);
            Types::sleep(ASK_EVERY + apart).await;
        }
    }
}
