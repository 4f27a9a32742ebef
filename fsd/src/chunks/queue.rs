//! What waits for the committer, and the loop in which it takes it.
//!
//! The committer is a task of its own that lives while something waits, so a put that is cancelled leaves
//! nothing half done. Groups grow by themselves: what comes during a flush is the next group.
//! Everything that has a place in the stream of a shard is done here, one after the other.

use std::sync::Arc;

use blockd_ipc::volume::Volume;
use raftmeta_types::{ChunkHash, Epoch, ShardId};
use tokio::sync::oneshot;

use super::Inner;
use super::append::Appender;
use super::catch_up::Snapshot;
use super::error::Error;
use super::format::SegmentId;
use super::pack::{Sealed, stopped};

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(super) struct Put {
    pub records: Vec<Sealed>,
    pub reply: Reply<()>,
}

pub(super) struct Delete {
    pub shard: ShardId,
    pub gc_epoch: Epoch,
    pub hashes: Vec<ChunkHash>,
    pub reply: Reply<()>,
}

/// Bounded by the permits of the puts, by one cleaner, and by one deletion and one snapshot for each caller.
#[derive(Default)]
pub(super) struct Queue {
    puts: Vec<Put>,
    deletes: Vec<Delete>,
    /// Segments that were freed here and are to be freed by the others.
    freed: Vec<SegmentId>,
    snapshots: Vec<(ShardId, Reply<Snapshot>)>,
    running: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.puts.is_empty()
            && self.deletes.is_empty()
            && self.freed.is_empty()
            && self.snapshots.is_empty()
    }
}

/// Clears the mark of a committer that panics or whose runtime ends: whoever waits hears an error, and the
/// next put starts another one.
struct Running<'a> {
    queue: &'a parking_lot::Mutex<Queue>,
    /// It took its own mark away; one that is there now is another's.
    ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.ended {
            *self.queue.lock() = Queue::default();
        }
    }
}

impl<V: Volume> Inner<V> {
    /// Waits until the records are durable, on all in-sync replicas, and in the index.
    pub(super) async fn submit(self: &Arc<Self>, records: Vec<Sealed>) -> Result<(), Error> {
        self.ask(|queue, reply| queue.puts.push(Put { records, reply })).await
    }

    pub(super) async fn submit_delete(
        self: &Arc<Self>,
        shard: ShardId,
        gc_epoch: Epoch,
        hashes: Vec<ChunkHash>,
    ) -> Result<(), Error> {
        let delete = |queue: &mut Queue, reply| {
            queue.deletes.push(Delete { shard, gc_epoch, hashes, reply });
        };
        self.ask(delete).await
    }

    pub(super) async fn submit_snapshot(
        self: &Arc<Self>,
        shard: ShardId,
    ) -> Result<Snapshot, Error> {
        self.ask(|queue, reply| queue.snapshots.push((shard, reply))).await
    }

    /// Tells the other replicas, in time, that these segments are free.
    pub(super) fn announce_freed(self: &Arc<Self>, freed: Vec<SegmentId>) {
        if !freed.is_empty() {
            self.enqueue(|queue| queue.freed.extend(freed));
        }
    }

    async fn ask<T>(self: &Arc<Self>, push: impl FnOnce(&mut Queue, Reply<T>)) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(|queue| push(queue, reply));
        answer.await.map_err(|_| stopped())?
    }

    fn enqueue(self: &Arc<Self>, push: impl FnOnce(&mut Queue)) {
        let start = {
            let mut queue = self.queue.lock();
            push(&mut queue);
            !std::mem::replace(&mut queue.running, true)
        };
        if start {
            let inner = Arc::clone(self);
            tokio::spawn(async move { inner.run().await });
        }
    }

    async fn run(self: &Arc<Self>) {
        let mut running = Running { queue: &self.queue, ended: false };
        let mut appender = self.appender.lock().await;
        loop {
            let group = {
                let mut queue = self.queue.lock();
                let running = !queue.is_empty();
                std::mem::replace(&mut *queue, Queue { running, ..Queue::default() })
            };
            if group.is_empty() {
                running.ended = true;
                return;
            }
            self.perform(&mut appender, group).await;
        }
    }

    async fn perform(self: &Arc<Self>, appender: &mut Appender, group: Queue) {
        let Queue { puts, deletes, freed, snapshots, running: _ } = group;
        // Nobody who asks hears when it was cancelled.
        for Delete { shard, gc_epoch, hashes, reply } in deletes {
            let _ = reply.send(self.delete_now(shard, gc_epoch, hashes).await);
        }
        if !puts.is_empty() {
            self.commit(appender, puts).await;
        }
        if !freed.is_empty() {
            self.tell_freed(freed).await;
        }
        for (shard, reply) in snapshots {
            let _ = reply.send(self.snapshot_now(shard).await);
        }
    }
}
