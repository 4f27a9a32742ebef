//! Abort (NVMe base 2.0 §5.1): best effort, of commands that are not with a device yet.
//!
//! The admin queue and the queue of the command may live in different reactors, so the request travels and so does the
//! answer:
//!
//! ```text
//! admin queue ── ask ──► [Aborts of the controller] ── take ──► the command's queue: gone, or too late
//!      finishes Abort ◄── answers ── [Aborts] ◄── answer ──────────┘
//! ```
//! A command that waits for a buffer is gone at once. One whose data is being fetched ends without being executed as soon as
//! the host has sent what it was asked for already. What is with a device ends by itself. A queue that ends meanwhile
//! answers for what it was asked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::commands::Stage;
use super::connection::{Connection, Outcome, Reply};
use super::status::Status;

/// Aborts at once (ACL); a further one is refused.
pub const ABORTS_MAX: usize = 4;

/// An Abort on its way; `slot` is its own on the admin queue.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    slot: usize,
    queue: u16,
    command: u16,
}

#[derive(Debug, Default)]
struct Mail {
    requests: Vec<Request>,
    /// Slots on the admin queue, and whether the command was aborted.
    answers: Vec<(usize, bool)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Aborts {
    mail: Mutex<Mail>,
    // Whether there is any mail: looked at in every round of every queue.
    any: AtomicBool,
}

impl Aborts {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Mail) -> T) -> T {
        let mut mail = self.lock();
        let done = change(&mut mail);
        self.any.store(!mail.requests.is_empty() || !mail.answers.is_empty(), Ordering::Release);
        done
    }

    /// One load.
    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Nobody answers for a queue that has ended.
    pub fn ended(&self, queue: u16) {
        self.change(|mail| {
            let (of_queue, others) = mail.requests.drain(..).partition(|r| r.queue == queue);
            let of_queue: Vec<Request> = of_queue;
            mail.requests = others;
            mail.answers.extend(of_queue.iter().map(|r| (r.slot, false)));
        });
    }
}

/// Performs an Abort of the admin queue.
pub fn execute(connection: &mut Connection, slot: usize) -> Outcome {
    let which = connection.command(slot).sqe.dword(10);
    let (queue, id) = (which as u16, (which >> 16) as u16);
    if queue == 0 {
        return Ok(Reply::Done(u64::from(!of_event(connection, id))));
    }
    let controller = connection.controller.clone().ok_or(Status::SEQUENCE)?;
    if connection.aborting >= ABORTS_MAX {
        return Err(Status::ABORT_LIMIT);
    }
    let request = Request { slot, queue, command: id };
    let asked = controller.wake_queue(queue, || {
        controller.aborts.change(|mail| mail.requests.push(request));
    });
    if !asked {
        return Ok(Reply::Done(1));
    }
    connection.aborting += 1;
    connection.command(slot).stage = Stage::Abort;
    Ok(Reply::Pending)
}

/// Takes part in the exchange, on whichever queue this is.
pub fn poll(connection: &mut Connection) {
    let Some(controller) = connection.controller.clone().filter(|c| !c.aborts.is_empty()) else {
        return;
    };
    let own = connection.queue.id;
    if own == 0 {
        let answers = controller.aborts.change(|mail| std::mem::take(&mut mail.answers));
        for (slot, aborted) in answers {
            connection.aborting -= 1;
            connection.finish(slot, Status::SUCCESS, u64::from(!aborted));
        }
        return;
    }
    let of_queue: Vec<Request> = controller.aborts.change(|mail| {
        let (own, others) = mail.requests.drain(..).partition(|r| r.queue == own);
        mail.requests = others;
        own
    });
    if of_queue.is_empty() {
        return;
    }
    let answers: Vec<(usize, bool)> =
        of_queue.iter().map(|r| (r.slot, connection.abort(r.command))).collect();
    controller.wake_queue(0, || {
        controller.aborts.change(|mail| mail.answers.extend(answers));
    });
}

/// Aborts an event request.
fn of_event(connection: &mut Connection, id: u16) -> bool {
    let events = connection.events.clone();
    let Some(at) = events.iter().position(|slot| connection.command(*slot).sqe.id() == id) else {
        return false;
    };
    let slot = connection.events.remove(at);
    connection.finish(slot, Status::ABORT_REQUESTED, 0);
    true
}
