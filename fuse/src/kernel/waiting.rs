//! Lock requests that wait: one thread tries them again and again, so that the unlock they wait for
//! always finds a thread that serves it.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use raftmeta_types::lock::Lock;
use rustix::io::Errno;

use super::session::Shared;

/// How often waiting locks are tried again: locks of other mounts are dropped unseen. An unlock of this
/// mount tries at once.
const RETRY: Duration = Duration::from_millis(20);
/// Interruptions kept that came before the request they are for.
const EARLY_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Waiting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiters: Vec<Waiter>,
    /// Another thread read the interruption before the request was put down here.
    early: VecDeque<u64>,
    closed: bool,
}

struct Waiter {
    unique: u64,
    lock: Lock,
    interrupted: bool,
}

impl Waiting {
    pub(super) fn add(&self, unique: u64, lock: Lock) {
        let mut state = self.state.lock();
        let early = state.early.iter().position(|early| *early == unique);
        let interrupted = early.and_then(|at| state.early.remove(at)).is_some();
        state.waiters.push(Waiter { unique, lock, interrupted });
        self.changed.notify_all();
    }

    /// The process that waits for this request got a signal.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = self.state.lock();
        match state.waiters.iter_mut().find(|waiter| waiter.unique == unique) {
            Some(waiter) => waiter.interrupted = true,
            None => {
                // Most are for requests that are answered soon and heed no signals.
                state.early.push_back(unique);
                if state.early.len() > EARLY_MAX {
                    state.early.pop_front();
                }
            }
        }
        self.changed.notify_all();
    }

    /// A lock was dropped.
    pub(super) fn unlocked(&self) {
        if !self.state.lock().waiters.is_empty() {
            self.changed.notify_all();
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

impl Shared {
    /// Tries the waiting locks until the mount ends.
    pub(super) fn serve_waiting(&self) {
        loop {
            let waiters: Vec<Waiter> = {
                let mut state = self.waiting.state.lock();
                if state.closed {
                    return;
                }
                if state.waiters.is_empty() {
                    self.waiting.changed.wait(&mut state);
                } else {
                    self.waiting.changed.wait_for(&mut state, RETRY);
                }
                // They stay in the list, so that a signal finds them.
                let copy = |waiter: &Waiter| Waiter { lock: waiter.lock.clone(), ..*waiter };
                state.waiters.iter().map(copy).collect()
            };
            for waiter in waiters {
                self.try_waiter(&waiter);
            }
        }
    }

    fn try_waiter(&self, waiter: &Waiter) {
        let result = match self.core.set_lock(&waiter.lock) {
            // Only here: a lock that was granted is never answered with an interruption.
            Err(Errno::AGAIN) if waiter.interrupted => Err(Errno::INTR),
            Err(Errno::AGAIN) => return,
            other => other,
        };
        let done = |other: &Waiter| other.unique == waiter.unique;
        self.waiting.state.lock().waiters.retain(|other| !done(other));
        self.answer_lock(waiter.unique, &waiter.lock, result);
    }
}
