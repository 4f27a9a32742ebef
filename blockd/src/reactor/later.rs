//! What is not done at once: writes into extents that are to be allocated, and ranges that may be the whole volume.

use std::sync::Arc;

use super::{Inbound, Piece, Reactor, pieces, signal};
use crate::engine::{Action, Memory};
use crate::pool::format::EXTENT_BYTES;
use crate::pool::{Job, Want};

/// Parts of one [`Rest`] that are with the device at a time.
pub const REST_PARTS: usize = 32;

/// Extents of one [`Rest`] that are looked at in one round, and that are given back by one job.
const REST_EXTENTS: u64 = 1024;

/// What of a range has not been begun. While there is some, the request has a part more than there are.
#[derive(Clone, Copy)]
pub struct Rest {
    pub at: u64,
    pub end: u64,
    /// Of a thin volume that is given back: up to here its whole extents are. Else the end.
    pub released: u64,
    pub kind: RestKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum RestKind {
    Zero,
    Deallocate,
}

/// A part that waits for the pool's mapper.
pub struct Parked {
    request: usize,
    then: Then,
}

/// What follows the change of a map.
pub enum Then {
    Write { piece: Piece, memory: Memory, fua: bool },
    GoOn,
}

impl Reactor {
    /// Has the map of the request's volume changed; the part goes on when that is durable.
    pub fn park(&mut self, id: usize, want: Want, then: Then) {
        let request = self.requests.get(id);
        request.parts += 1;
        let (pool, volume) = (request.share.pool, Arc::clone(&request.share.volume));
        let parked = self.parked.insert(Parked { request: id, then });
        let (inbox, wake) = (self.inbox.clone(), Arc::clone(&self.wake));
        let answer = Box::new(move |errno| {
            // The reactor lives while it has a request.
            let _ = inbox.send(Inbound::Mapped { parked, errno });
            signal(&wake);
        });
        if self.mappers[pool].send(Job { volume, want, answer }).is_err() {
            // Its thread has panicked, and says so in the log.
            self.mapped(parked, libc::EIO);
        }
    }

    /// A map has been changed, or not.
    pub fn mapped(&mut self, parked: usize, errno: i32) {
        let Parked { request: id, then } = self.parked.remove(parked);
        let request = self.requests.get(id);
        let is_poisoned = request.share.volume.is_poisoned();
        let errno = if is_poisoned { libc::ESHUTDOWN } else { errno };
        if errno != 0 {
            request.errno = errno;
        }
        match then {
            // Another core may have given it back in between; then it is allocated again.
            Then::Write { piece, memory, fua } if errno == 0 => {
                let share = Arc::clone(&self.requests.get(id).share);
                self.write(id, &share, &piece, memory, fua);
            }
            Then::Write { .. } => {}
            Then::GoOn => self.unfinished.push_back(id),
        }
        self.end_part(id);
    }

    /// One step of each request that has a rest.
    pub fn go_on(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.unfinished.len() {
            let Some(id) = self.unfinished.pop_front() else { break };
            any |= self.step(id);
        }
        any
    }

    /// Begins some of a request's rest; `false` if nothing could be done.
    fn step(&mut self, id: usize) -> bool {
        let request = self.requests.get(id);
        let Some(mut rest) = request.rest else { return false };
        if request.errno != 0 || rest.at == rest.end {
            request.rest = None;
            self.end_part(id);
            return true;
        }
        if rest.at == rest.released {
            let stop = (rest.at / EXTENT_BYTES + REST_EXTENTS) * EXTENT_BYTES;
            rest.released = stop.min(rest.end);
            request.rest = Some(rest);
            let whole = rest.at.div_ceil(EXTENT_BYTES)..rest.released / EXTENT_BYTES;
            if !whole.is_empty() {
                self.park(id, Want::Release(whole), Then::GoOn);
                return true;
            }
        }
        // Beside that for the rest itself.
        let mut room = (REST_PARTS + 1).saturating_sub(self.requests.get(id).parts);
        let share = Arc::clone(&self.requests.get(id).share);
        let start = rest.at;
        for piece in pieces(rest.at, rest.released - rest.at).take(REST_EXTENTS as usize) {
            if room == 0 {
                break;
            }
            rest.at = piece.offset + piece.len;
            // What has no extent reads as zeros already, and has nothing to give back.
            let Some(physical) = share.volume.pin(piece.extent) else { continue };
            let offset = self.pools[share.pool].extent_offset(physical) + piece.within;
            let action = match rest.kind {
                RestKind::Zero => Action::Zero { offset, len: piece.len },
                RestKind::Deallocate => Action::Deallocate { offset, len: piece.len },
            };
            self.submit(id, share.pool, Some(piece.extent), action);
            room -= 1;
        }
        self.requests.get(id).rest = Some(rest);
        self.unfinished.push_back(id);
        rest.at > start
    }
}
