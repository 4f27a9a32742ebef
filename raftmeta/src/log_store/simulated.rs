//! Keeper and syncer where there are no threads, in a simulation: tasks that do the same, after the time that a disk takes.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::type_config::TypeConfigExt;
use tokio::sync::Notify;

use super::syncer::{self, Unsynced};
use super::{Shared, keeper};
use crate::group::Types;
use crate::sim::executor::{self, Life};
use crate::sim::{self, Flaw, disk};

/// Wakes them.
#[derive(Clone, Default)]
pub(super) struct Nudges {
    pub keeper: Arc<Notify>,
    pub syncer: Arc<Notify>,
}

/// What a sync takes now; `None` once the log is gone.
fn latency(weak: &Weak<Shared>) -> Option<Duration> {
    let shared = weak.upgrade()?;
    Some(disk::of(&shared.path)?.latency())
}

pub(super) fn sync(weak: Weak<Shared>, inbox: Receiver<Unsynced>, nudges: &Nudges) {
    let nudge = Arc::clone(&nudges.syncer);
    Life::current().spawn(async move {
        loop {
            nudge.notified().await;
            while let Some(latency) = latency(&weak) {
                let mut answered = Vec::new();
                if sim::has(Flaw::AnswersBeforeSync) {
                    answered.extend(inbox.try_iter());
                    answered.drain(..).for_each(|append| append.callback.io_completed(Ok(())));
                }
                Types::sleep(latency).await;
                let Ok(first) = inbox.try_recv() else { break };
                let Some(shared) = weak.upgrade() else { return };
                executor::aside(|| syncer::turn(shared, first, &inbox));
            }
        }
    });
}

pub(super) fn keep(weak: Weak<Shared>, nudges: &Nudges) {
    let nudge = Arc::clone(&nudges.keeper);
    Life::current().spawn(async move {
        loop {
            nudge.notified().await;
            Types::sleep(keeper::SYNC_INTERVAL).await;
            let Some(shared) = weak.upgrade() else { return };
            let kept = executor::aside(|| {
                keeper::prepare(&shared);
                shared.sync_and_mark()
            });
            if kept.is_err() {
                return;
            }
        }
    });
}
