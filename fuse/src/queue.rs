//! Work handed to threads that wait for it.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

pub(crate) struct Queue<T> {
    jobs: Mutex<Jobs<T>>,
    ready: Condvar,
    jobs_max: usize,
}

struct Jobs<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// Holds at most `jobs_max` jobs; a further one is refused.
    pub(crate) fn new(jobs_max: usize) -> Queue<T> {
        let jobs = Jobs { waiting: VecDeque::new(), closed: false };
        Queue { jobs: Mutex::new(jobs), ready: Condvar::new(), jobs_max }
    }

    /// Whether the job was taken.
    pub(crate) fn push(&self, job: T) -> bool {
        let mut jobs = self.jobs.lock();
        if jobs.closed || jobs.waiting.len() >= self.jobs_max {
            return false;
        }
        jobs.waiting.push_back(job);
        self.ready.notify_one();
        true
    }

    /// The next job; `None` once the queue is closed and empty.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                return Some(job);
            }
            if jobs.closed {
                return None;
            }
            self.ready.wait(&mut jobs);
        }
    }

    /// The next job, if one waits.
    pub(crate) fn take(&self) -> Option<T> {
        self.jobs.lock().waiting.pop_front()
    }

    /// Takes no more jobs; what is waiting is still done.
    pub(crate) fn close(&self) {
        self.jobs.lock().closed = true;
        self.ready.notify_all();
    }
}
