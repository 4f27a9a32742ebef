//! Byte-range and whole-file locks: asking, taking, and waiting without polling.
//!
//! A refused command keeps its refusal as the answer of its number, so a lock that has to wait must not be
//! proposed before it can be had. Requests for locks of one inode therefore pass one by one: look, and
//! only if nothing stands in the way propose.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::message::{Failure, Response};
use parking_lot::Mutex;
use raftmeta::read;
use raftmeta_types::lock::Lock;
use raftmeta_types::{Command, Ino, MetaError, Reply};
use tokio::sync::{MutexGuard, Notify};
use tokio::time::{Instant, timeout_at};

use super::mutate::Numbered;
use super::{Answer, plain};
use crate::node::Node;

/// Inodes share these; requests for locks that meet in one pass one by one.
const STRIPES: usize = 256;

/// Who waits for locks to go.
pub(crate) struct Waiters {
    turns: Vec<tokio::sync::Mutex<()>>,
    waiting: Mutex<HashMap<Ino, Waiting>>,
}

struct Waiting {
    count: usize,
    changed: Arc<Notify>,
}

impl Default for Waiters {
    fn default() -> Waiters {
        let turns = (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect();
        Waiters { turns, waiting: Mutex::default() }
    }
}

/// A place in the list of those who wait; left when dropped.
struct Place<'a> {
    waiters: &'a Waiters,
    ino: Ino,
    changed: Arc<Notify>,
}

impl Waiters {
    async fn turn(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.turns[ino.0 as usize % STRIPES].lock().await
    }

    fn enter(&self, ino: Ino) -> Place<'_> {
        let mut waiting = self.waiting.lock();
        let new = || Waiting { count: 0, changed: Arc::default() };
        let entry = waiting.entry(ino).or_insert_with(new);
        entry.count += 1;
        Place { waiters: self, ino, changed: Arc::clone(&entry.changed) }
    }

    /// Locks of the inode may have gone.
    pub(crate) fn wake(&self, ino: Ino) {
        if let Some(waiting) = self.waiting.lock().get(&ino) {
            waiting.changed.notify_waiters();
        }
    }

    /// Locks of any inode may have gone.
    pub(crate) fn wake_all(&self) {
        self.waiting.lock().values().for_each(|waiting| waiting.changed.notify_waiters());
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiters.waiting.lock();
        if let Some(entry) = waiting.get_mut(&self.ino) {
            entry.count -= 1;
            if entry.count == 0 {
                waiting.remove(&self.ino);
            }
        }
    }
}

/// `F_GETLK`.
pub(super) fn get(node: &Node, lock: &Lock) -> Answer {
    plain(Response::Lock(read::get_lock(&node.group.view(), lock).map_err(super::read::storage)?))
}

/// `F_SETLK`, also of `flock`, and what drops locks.
pub(super) async fn command(
    node: &Node,
    order: Numbered,
    ino: Ino,
    command: Command,
) -> Result<Reply, Failure> {
    let turn = node.order.locks.turn(ino).await;
    let reply = order.propose(node, command).await;
    drop(turn);
    // Locks may also become weaker by a lock.
    node.order.locks.wake(ino);
    reply
}

/// `F_SETLKW`.
pub(super) async fn wait(
    node: &Node,
    order: Numbered,
    lock: Lock,
    wait_ms: u32,
) -> Result<Reply, Failure> {
    let ino = lock.ino;
    let until = Instant::now() + Duration::from_millis(u64::from(wait_ms));
    let mut stopping = node.stopping();
    let place = node.order.locks.enter(ino);
    loop {
        // Made before looking, so that a lock that goes in between is not missed.
        let mut changed = std::pin::pin!(place.changed.notified());
        changed.as_mut().enable();
        {
            let _turn = node.order.locks.turn(ino).await;
            let held = read::get_lock(&node.group.view(), &lock).map_err(super::read::storage)?;
            if held.is_none() {
                let reply = order.propose(node, Command::Lock(lock)).await;
                node.order.locks.wake(ino);
                return reply;
            }
        }
        if wait_ms == 0 {
            return Err(MetaError::WouldBlock.into());
        }
        tokio::select! {
            waited = timeout_at(until, changed) => {
                if waited.is_err() {
                    return Err(Failure::Timeout);
                }
            }
            _ = stopping.wait_for(|stop| *stop) => {
                return Err(Failure::NotReady("the node is stopping".into()));
            }
        }
        // A session that ended meanwhile waits for nothing.
        if !node.sessions.lock().is_known(order.session) {
            return Err(MetaError::SessionExpired.into());
        }
    }
}
