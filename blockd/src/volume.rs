//! A volume: an LBA space whose extents lie anywhere on the pool's device.
//!
//! The map from its extents to the device's is an array of atomics, so that all cores translate without a lock.
//! An entry holds the physical extent and how many operations use it: an extent is given back only while none does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

const PINS_SHIFT: u32 = 40;
const PHYSICAL_MASK: u64 = (1 << PINS_SHIFT) - 1;
/// No extent is allocated.
const NONE: u64 = PHYSICAL_MASK;
/// In place of a count of users: the volume is being removed or replaced, nobody may join it.
const CLAIMED: u32 = u32::MAX;

/// See the module. Sizes in bytes.
#[derive(Debug)]
pub struct Volume {
    pub id: u32,
    pub name: String,
    pub bytes: u64,
    pub thin: bool,
    map: Box<[AtomicU64]>,
    // One for all volumes of a pool.
    poisoned: Arc<AtomicBool>,
    users: AtomicU32,
}

impl Volume {
    pub(crate) fn new(
        id: u32,
        name: String,
        bytes: u64,
        thin: bool,
        map: Vec<Option<u64>>,
        poisoned: Arc<AtomicBool>,
    ) -> Volume {
        let map = map.into_iter().map(|p| AtomicU64::new(p.unwrap_or(NONE))).collect();
        Volume { id, name, bytes, thin, map, poisoned, users: AtomicU32::new(0) }
    }

    /// Number of extents, allocated or not.
    #[must_use]
    pub fn extents(&self) -> u64 {
        self.map.len() as u64
    }

    /// Number of extents that are allocated.
    #[must_use]
    pub fn allocated(&self) -> u64 {
        self.map.iter().filter(|e| e.load(Ordering::Relaxed) & PHYSICAL_MASK != NONE).count() as u64
    }

    /// Whether the extent is allocated.
    #[must_use]
    pub fn is_mapped(&self, index: u64) -> bool {
        self.map[index as usize].load(Ordering::Acquire) & PHYSICAL_MASK != NONE
    }

    /// The physical extent, pinned until [`Volume::unpin`]; `None` if it is not allocated.
    #[must_use]
    pub fn pin(&self, index: u64) -> Option<u64> {
        let entry = &self.map[index as usize];
        let mut seen = entry.load(Ordering::Acquire);
        loop {
            if seen & PHYSICAL_MASK == NONE {
                return None;
            }
            let pinned = seen + (1 << PINS_SHIFT);
            match entry.compare_exchange_weak(seen, pinned, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(seen & PHYSICAL_MASK),
                Err(now) => seen = now,
            }
        }
    }

    /// Ends a use that `pin` began.
    pub fn unpin(&self, index: u64) {
        let before = self.map[index as usize].fetch_sub(1 << PINS_SHIFT, Ordering::AcqRel);
        assert!(before >> PINS_SHIFT > 0, "an unpin without its pin");
    }

    pub(crate) fn set(&self, index: u64, physical: u64) {
        self.map[index as usize].store(physical, Ordering::Release);
    }

    /// Takes the extent out of the map if nothing uses it.
    pub(crate) fn take(&self, index: u64) -> Option<u64> {
        let entry = &self.map[index as usize];
        let seen = entry.load(Ordering::Acquire);
        if seen & PHYSICAL_MASK == NONE || seen >> PINS_SHIFT > 0 {
            return None;
        }
        entry
            .compare_exchange(seen, NONE, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
            .then_some(seen)
    }

    /// Nothing is served any more until the daemon restarts: a flush failed, what it covered may be lost.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Counts a user; `false` if it is being removed or replaced.
    pub(crate) fn join(&self) -> bool {
        let more = |users| (users != CLAIMED).then(|| users + 1);
        self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// A connection ended.
    pub fn leave(&self) {
        let before = self.users.fetch_sub(1, Ordering::AcqRel);
        assert!(before != 0 && before != CLAIMED, "a user leaves once, after it has joined");
    }

    /// Connections that use it.
    #[must_use]
    pub fn users(&self) -> u32 {
        match self.users.load(Ordering::Acquire) {
            CLAIMED => 0,
            users => users,
        }
    }

    /// Keeps users away from a volume that has none; `false` if it has.
    pub(crate) fn claim(&self) -> bool {
        self.users.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The volume stays after all.
    pub(crate) fn unclaim(&self) {
        let before = self.users.swap(0, Ordering::AcqRel);
        assert_eq!(before, CLAIMED, "a claim is given back once");
    }
}
