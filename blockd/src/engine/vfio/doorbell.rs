//! Doorbells: how the controller learns of new entries.
//!
//! A write to a register leaves the guest where the controller is emulated, which costs more than all else of a small read.
//! Such controllers offer *shadow doorbells* (NVMe base 2.0 §5.8, Annex B.5): values lie in memory, and beside each the controller
//! writes an event index, the value whose passing it wants to be told by the register. While it is busy it looks by itself.

use std::cell::Cell;
use std::sync::Arc;

use super::bus::Bus;
use super::memory::Shown;

/// Where the values of a doorbell are in memory.
#[derive(Debug)]
pub struct Shadow {
    pub memory: Arc<Shown>,
    pub value_at: usize,
    pub event_at: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Doorbell {
    register: usize,
    shadow: Option<Shadow>,
    last: Cell<u16>,
}

impl Doorbell {
    pub fn new(register: usize, shadow: Option<Shadow>) -> Doorbell {
        Doorbell { register, shadow, last: Cell::new(0) }
    }

    /// Shadow and event index are those of a new queue.
    pub fn clear(&self) {
        if let Some(shadow) = &self.shadow {
            shadow.memory.post_u32(shadow.value_at, 0);
            shadow.memory.post_u32(shadow.event_at, 0);
        }
    }

    /// The queue was made anew.
    pub fn restart(&self) {
        self.last.set(0);
    }

    /// Tells the controller a new tail or head.
    pub fn ring(&self, bus: &dyn Bus, value: u16) {
        let last = self.last.replace(value);
        if let Some(Shadow { memory, value_at, event_at }) = &self.shadow {
            memory.post_u32(*value_at, value.into());
            if !passes(memory.poll_u32(*event_at) as u16, last, value) {
                return;
            }
        }
        bus.write32(self.register, value.into());
    }
}

/// Whether a doorbell that goes from `last` to `value` passes the event index. After the end of a ring, where a value is less than the one
/// before, it may be said to pass although it does not, which costs a needless write.
fn passes(event: u16, last: u16, value: u16) -> bool {
    value.wrapping_sub(event).wrapping_sub(1) < value.wrapping_sub(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_controller_waits_for_is_told() {
        // It has seen all: the next one is told.
        assert!(passes(0, 0, 1) && passes(7, 7, 8) && passes(7, 7, 12));
        // It was told of 5 and has not come to it: it will look.
        assert!(!passes(3, 5, 6));
        // It waits for what comes later.
        assert!(!passes(9, 5, 6) && passes(9, 5, 10));
    }

    /// However far behind the controller is, it is never left waiting at the value that it said.
    #[test]
    fn nothing_is_missed_at_the_end_of_a_ring() {
        let entries = 16_u16;
        for seen in 0..entries {
            for more in 1..entries {
                assert!(passes(seen, seen, (seen + more) % entries), "{seen} + {more}");
            }
        }
    }
}
