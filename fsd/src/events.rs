//! Who hears of changes: one bounded queue for each subscribed connection.
//!
//! A client that does not take its events does not hold anybody up: when its queue is full, the last
//! place takes an [`Event::Overflow`], which makes it drop every cache, and nothing more is queued until
//! it has taken that one. What happened in between it finds out by asking.

use std::collections::HashMap;

use fsd_rpc::message::Event;
use parking_lot::Mutex;
use raftmeta_types::SessionId;
use tokio::sync::mpsc;

/// Events kept for one subscriber.
const QUEUE: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Events {
    /// By connection.
    subscribers: Mutex<HashMap<u64, Subscriber>>,
}

#[derive(Debug)]
struct Subscriber {
    session: SessionId,
    queue: mpsc::Sender<Event>,
}

impl Subscriber {
    fn push(&self, event: Event) {
        // Pushes come one by one, under the lock of the table: the last place is an overflow's.
        let full = self.queue.capacity() <= 1;
        let event = if full { Event::Overflow } else { event };
        // A connection that has ended leaves the table soon.
        let _ = self.queue.try_send(event);
    }
}

impl Events {
    /// Events of changes by others, for this connection of the session.
    pub fn subscribe(&self, connection: u64, session: SessionId) -> mpsc::Receiver<Event> {
        let (queue, events) = mpsc::channel(QUEUE);
        self.subscribers.lock().insert(connection, Subscriber { session, queue });
        events
    }

    /// All subscriptions end.
    pub fn clear(&self) {
        self.subscribers.lock().clear();
    }

    pub fn unsubscribe(&self, connection: u64) {
        self.subscribers.lock().remove(&connection);
    }

    /// Its subscriptions end.
    pub fn end_session(&self, session: SessionId) {
        self.subscribers.lock().retain(|_, subscriber| subscriber.session != session);
    }

    /// Whether anybody besides this session listens.
    pub fn has_others(&self, session: SessionId) -> bool {
        self.subscribers.lock().values().any(|subscriber| subscriber.session != session)
    }

    /// Tells everybody but the session that made the change.
    pub fn tell(&self, from: SessionId, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let subscribers = self.subscribers.lock();
        for subscriber in subscribers.values().filter(|other| other.session != from) {
            events.iter().for_each(|event| subscriber.push(event.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use raftmeta_types::Ino;

    use super::*;

    fn change(ino: u64) -> Vec<Event> {
        vec![Event::Inode { ino: Ino(ino), data: false }]
    }

    #[test]
    fn others_hear_and_the_author_does_not() {
        let events = Events::default();
        let mut first = events.subscribe(1, SessionId(1));
        assert!(!events.has_others(SessionId(1)));
        let mut second = events.subscribe(2, SessionId(2));
        assert!(events.has_others(SessionId(1)));
        events.tell(SessionId(1), change(7));
        assert!(first.try_recv().is_err());
        assert!(matches!(second.try_recv(), Ok(Event::Inode { ino: Ino(7), .. })));
        events.end_session(SessionId(2));
        assert!(matches!(second.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        events.unsubscribe(1);
        events.tell(SessionId(2), change(8));
        assert!(matches!(first.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
    }

    #[test]
    fn a_full_queue_ends_in_an_overflow_and_goes_on_once_that_is_taken() {
        let events = Events::default();
        let mut queue = events.subscribe(1, SessionId(1));
        (0..5000).for_each(|ino| events.tell(SessionId(2), change(ino)));
        let mut taken = Vec::new();
        while let Ok(event) = queue.try_recv() {
            taken.push(event);
        }
        assert_eq!(taken.len(), QUEUE);
        assert!(matches!(taken.last(), Some(Event::Overflow)));
        let overflows = taken.iter().filter(|event| matches!(event, Event::Overflow));
        assert_eq!(overflows.count(), 1);
        events.tell(SessionId(2), change(9));
        assert!(matches!(queue.try_recv(), Ok(Event::Inode { ino: Ino(9), .. })));
    }
}
