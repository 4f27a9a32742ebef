//! The open connections whose peer showed a certificate, each with what ends it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Peer;

#[derive(Default)]
pub(super) struct Live {
    connections: Mutex<HashMap<u64, (Peer, Arc<Notify>)>>,
}

/// Takes the connection out when dropped.
pub(super) struct Entry<'a> {
    live: &'a Live,
    id: u64,
    end: Arc<Notify>,
}

impl Live {
    pub(super) fn enter(&self, id: u64, peer: &Peer) -> Entry<'_> {
        let end = Arc::new(Notify::new());
        self.connections.lock().insert(id, (peer.clone(), end.clone()));
        Entry { live: self, id, end }
    }

    /// Ends every connection for which this is false.
    pub(super) fn end_unless(&self, admits: impl Fn(&Peer) -> bool) {
        // Asked without the lock: the answer comes from the metadata.
        let open: Vec<_> = self.connections.lock().values().cloned().collect();
        for (peer, end) in open {
            if !admits(&peer) {
                tracing::info!(?peer, "connection ended: the certificate is good no more");
                end.notify_one();
            }
        }
    }
}

impl Entry<'_> {
    /// Returns when the connection has to end.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.live.connections.lock().remove(&self.id);
    }
}
