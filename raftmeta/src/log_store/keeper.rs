//! The thread behind the log: syncs what nobody waits for, and makes the next segment ahead.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::Shared;
use super::segment;

/// Longest time that an acknowledged, not durable entry waits for its fsync.
pub(super) const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Starts it. It sleeps while the log is clean, and ends with the log.
pub(super) fn start(shared: &Arc<Shared>, inbox: Receiver<()>) -> io::Result<()> {
    let weak = Arc::downgrade(shared);
    #[cfg(test)]
    if crate::sim::executor::is_on() {
        super::simulated::keep(weak, &shared.simulated);
        return Ok(());
    }
    std::thread::Builder::new()
        .name("raftmeta-log".to_owned())
        .spawn(move || run(&weak, &inbox))
        .map(|_| ())
}

fn run(weak: &Weak<Shared>, inbox: &Receiver<()>) {
    // The first append after a sync wakes it; the sync follows after the interval.
    while inbox.recv().is_ok() {
        if let Some(shared) = weak.upgrade() {
            prepare(&shared);
        }
        match inbox.recv_timeout(SYNC_INTERVAL) {
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        }
        let Some(shared) = weak.upgrade() else { return };
        prepare(&shared);
        // A failure is kept in the writer and told to whoever proposes next.
        if shared.sync_and_mark().is_err() {
            return;
        }
    }
}

pub(super) fn prepare(shared: &Shared) {
    let (dir, id) = {
        let mut writer = shared.writer.lock();
        let Some(id) = writer.wants_spare() else { return };
        (writer.dir().to_path_buf(), id)
    };
    match segment::prepare(&dir, id, segment::SIZE) {
        Ok(blank) => shared.writer.lock().put_spare(blank),
        // Without it the append that needs a segment makes it, and tells why it cannot.
        Err(error) => tracing::warn!(%error, "cannot make a log segment ahead"),
    }
}
