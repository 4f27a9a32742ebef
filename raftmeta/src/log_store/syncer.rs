//! The thread that syncs what a replica among several voters has appended, while openraft goes on.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Weak};

use openraft::storage::IOFlushed;

use super::Shared;
use crate::group::Types;

/// An append whose records are not on stable storage yet.
pub(super) struct Unsynced {
    /// They are below it.
    pub sequence: u64,
    /// Who waits for them.
    pub callback: IOFlushed<Types>,
}

/// Starts it. It ends with the log.
pub(super) fn start(shared: &Arc<Shared>, inbox: Receiver<Unsynced>) -> io::Result<()> {
    let weak = Arc::downgrade(shared);
    #[cfg(test)]
    if crate::sim::executor::is_on() {
        super::simulated::sync(weak, inbox, &shared.simulated);
        return Ok(());
    }
    std::thread::Builder::new()
        .name("raftmeta-sync".to_owned())
        .spawn(move || run(&weak, &inbox))
        .map(|_| ())
}

fn run(weak: &Weak<Shared>, inbox: &Receiver<Unsynced>) {
    while let Ok(first) = inbox.recv() {
        let Some(shared) = weak.upgrade() else { return };
        turn(shared, first, inbox);
    }
}

/// One sync for all that have come until now.
pub(super) fn turn(shared: Arc<Shared>, first: Unsynced, inbox: &Receiver<Unsynced>) {
    let waiting: Vec<Unsynced> = std::iter::once(first).chain(inbox.try_iter()).collect();
    let last = waiting.iter().map(|append| append.sequence).max().unwrap_or_default();
    let result = shared.sync_to(last);
    let (count, left) = (waiting.len(), Arc::clone(&shared.unsynced_count));
    for Unsynced { callback, .. } in waiting {
        // The failure stays in the writer, too, which refuses everything from now on.
        callback.io_completed(match &result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        });
    }
    // Whoever waits for us opens the log again.
    drop(shared);
    left.fetch_sub(count, Ordering::AcqRel);
}
