//! The subscription of a client: a connection of its own, followed by a thread of its own.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::pool::Inner;
use super::{BACKOFF_MAX, BACKOFF_MIN};
use crate::message::{Event, Request, Response};

/// The server says at least every 5 s on a subscription that it lives; after this it is gone.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// Subscribes, again and again, until the client ends. What was missed in between is an `Overflow`.
pub(super) fn follow(weak: &Weak<Inner>, notify: &(impl Fn(Event) + Send)) {
    let mut backoff = BACKOFF_MIN;
    let mut first = true;
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let until = Instant::now() + inner.options.deadline;
        let opened = inner.open(until);
        drop(inner);
        let id = opened.as_ref().ok().map(|connection| connection.id);
        if let Ok(mut connection) = opened {
            let subscribed = connection.exchange(&Request::Subscribe, &[], until);
            if matches!(subscribed, Ok((Response::Done, _))) {
                backoff = BACKOFF_MIN;
                if !std::mem::replace(&mut first, false) {
                    notify(Event::Overflow);
                }
                while let Ok(event) = connection.next_event(SILENCE_MAX) {
                    notify(event);
                    if weak.strong_count() == 0 {
                        return;
                    }
                }
            }
        }
        let Some(inner) = weak.upgrade() else { return };
        if let Some(id) = id {
            inner.forget(id);
        }
        if inner.aborted.load(Ordering::Acquire) {
            return;
        }
        inner.sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}
