//! What keeps requests apart that must not pass each other.
//!
//! **Names.** Whoever removes the last name of a file stamps the command with the sessions that have it
//! open, so it has to know which inode the name will mean when the command is applied. Commands that bind
//! or unbind a name therefore hold that name (one of [`STRIPES`] locks) from the look to the answer.
//!
//! **Open against unlink.** The unlink first says that it is under way for the inode, then asks who has it
//! open; the open first enters itself, then asks whether an unlink is under way, and if so waits for its
//! end and looks again. Whichever comes second sees the first, so no file is freed under an open.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use raftmeta_types::Ino;
use tokio::sync::{MutexGuard, Notify};

use super::locks::Waiters;

/// Locks that names share; two names that meet in one wait for each other without need.
const STRIPES: usize = 1024;

/// See the module.
pub(crate) struct Order {
    names: Vec<tokio::sync::Mutex<()>>,
    unlinking: Mutex<HashMap<Ino, Unlinking>>,
    pub(crate) locks: Waiters,
}

struct Unlinking {
    count: usize,
    ended: Arc<Notify>,
}

impl Default for Order {
    fn default() -> Order {
        Order {
            names: (0..STRIPES).map(|_| tokio::sync::Mutex::default()).collect(),
            unlinking: Mutex::default(),
            locks: Waiters::default(),
        }
    }
}

/// Up to two names, held.
#[derive(Default)]
pub(super) struct Held<'a> {
    _first: Option<MutexGuard<'a, ()>>,
    _second: Option<MutexGuard<'a, ()>>,
}

/// While it lives, an unlink of the inode is under way.
pub(super) struct UnlinkGuard<'a> {
    order: &'a Order,
    ino: Ino,
}

impl Order {
    fn stripe(&self, parent: Ino, name: &[u8]) -> usize {
        let mut hasher = DefaultHasher::new();
        (parent, name).hash(&mut hasher);
        hasher.finish() as usize % STRIPES
    }

    /// Waits until nobody else binds or unbinds this name.
    pub(super) async fn hold(&self, parent: Ino, name: &[u8]) -> Held<'_> {
        let first = self.names[self.stripe(parent, name)].lock().await;
        Held { _first: Some(first), _second: None }
    }

    /// The same for two names, in one order for all, so that nobody waits in a circle.
    pub(super) async fn hold_both(&self, one: (Ino, &[u8]), two: (Ino, &[u8])) -> Held<'_> {
        let (one, two) = (self.stripe(one.0, one.1), self.stripe(two.0, two.1));
        let first = self.names[one.min(two)].lock().await;
        let second = match one == two {
            true => None,
            false => Some(self.names[one.max(two)].lock().await),
        };
        Held { _first: Some(first), _second: second }
    }

    /// Says that an unlink of the inode is under way.
    pub(super) fn unlinking(&self, ino: Ino) -> UnlinkGuard<'_> {
        let new = || Unlinking { count: 0, ended: Arc::default() };
        self.unlinking.lock().entry(ino).or_insert_with(new).count += 1;
        UnlinkGuard { order: self, ino }
    }

    /// Waits until no unlink of the inode is under way.
    pub(super) async fn unlinked(&self, ino: Ino) {
        loop {
            let ended = match self.unlinking.lock().get(&ino) {
                Some(unlinking) => Arc::clone(&unlinking.ended).notified_owned(),
                None => return,
            };
            ended.await;
        }
    }
}

impl Drop for UnlinkGuard<'_> {
    fn drop(&mut self) {
        let mut unlinking = self.order.unlinking.lock();
        if let Some(entry) = unlinking.get_mut(&self.ino) {
            entry.count -= 1;
            if entry.count == 0 {
                // Under the lock: who has not asked to be woken yet will find the entry gone.
                entry.ended.notify_waiters();
                unlinking.remove(&self.ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const A: Ino = Ino(1);

    #[tokio::test]
    async fn an_open_waits_for_every_unlink_under_way() {
        let order = Order::default();
        order.unlinked(A).await;
        let (one, two) = (order.unlinking(A), order.unlinking(A));
        let mut waits = std::pin::pin!(order.unlinked(A));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(one);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(two);
        waits.await;
        assert!(order.unlinking.lock().is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn names_are_held_by_one_at_a_time_and_in_any_order() {
        let order = Order::default();
        let held = order.hold_both((A, b"x"), (A, b"y")).await;
        assert!(order.hold(A, b"y").now_or_never().is_none());
        drop(held);
        // The same name twice, and two names the other way round.
        drop(order.hold_both((A, b"x"), (A, b"x")).await);
        drop(order.hold_both((A, b"y"), (A, b"x")).await);
        assert!(order.hold(A, b"y").now_or_never().is_some());
    }
}
