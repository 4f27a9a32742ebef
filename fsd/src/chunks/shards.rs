//! What a store is to each shard, as the map says, and what follows from it.
//!
//! ```text
//!            set_role                begin_epoch             set_role
//! Unassigned ────────> Replica ──────────────────> Beginning ───────> Primary
//!     │                   ▲   follow: takes the stream           ▲        │ an op did not reach
//!     └───────────────────┴──────────────────────────────────────┘        ▼ all of the others
//!                                                                      Suspended ─ begin_epoch ─> …
//! ```
//!
//! A store that starts is unassigned, whatever it was: it may have missed an epoch.

use raftmeta_types::{ChunkHash, Epoch};

use super::error::{Error, Kind};
use super::format::{self, EPOCH_MAX};
use super::replicate::{OpNumber, SegmentNumber};

/// What the map makes of a store, for one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds no replica of the shard, or nobody knows yet.
    None,
    /// It applies what the primary sends, once it follows.
    Replica { epoch: Epoch },
    /// It takes puts. A store that was anything else in this life has to begin the epoch first.
    Primary { epoch: Epoch, gc_epoch: Epoch },
}

/// What the store is to the shard now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Unassigned,
    /// `next` is the op that it waits for; none while it does not follow.
    Replica {
        epoch: Epoch,
        next: Option<OpNumber>,
    },
    /// Primary, but replicas are not equal yet.
    Beginning {
        epoch: Epoch,
    },
    Primary {
        epoch: Epoch,
        next: OpNumber,
    },
    /// A primary that cannot tell what the replicas have: a new epoch must begin.
    Suspended {
        epoch: Epoch,
    },
}

/// Sums up which chunks of a shard are in the index; equal for equal sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LiveSum {
    pub chunks: u64,
    /// The hashes' first bytes, added up.
    pub sum: u64,
}

impl LiveSum {
    fn part(hash: &ChunkHash) -> u64 {
        // Behind those bytes that all of the shard have in common.
        u64::from_le_bytes(hash.0[8..16].try_into().expect("eight bytes"))
    }

    pub(super) fn add(&mut self, hash: &ChunkHash) {
        self.chunks += 1;
        self.sum = self.sum.wrapping_add(LiveSum::part(hash));
    }

    pub(super) fn remove(&mut self, hash: &ChunkHash) {
        self.chunks -= 1;
        self.sum = self.sum.wrapping_sub(LiveSum::part(hash));
    }
}

#[derive(Clone, Debug)]
pub(super) struct Shard {
    /// Of receipts.
    pub gc_epoch: Epoch,
    pub standing: Standing,
    /// The newest epoch that this store has heard of.
    pub known: Epoch,
    /// Highest segment number that was seen or given.
    pub newest: SegmentNumber,
    /// Numbers to jump over before the next one is given: a segment whose header a power cut took had a
    /// number too, and its records may still lie about.
    pub skip: u64,
    pub live: LiveSum,
    /// In this life it was made equal to those in sync, or took puts itself: what it lacks, it knows of. What a store finds when it
    /// starts may end early without a trace.
    pub whole: bool,
}

impl Shard {
    pub fn new() -> Shard {
        Shard {
            gc_epoch: Epoch(0),
            standing: Standing::Unassigned,
            known: Epoch(0),
            newest: SegmentNumber(0),
            skip: 0,
            live: LiveSum::default(),
            whole: false,
        }
    }

    /// The epoch under which this store takes puts, if it does.
    pub fn primary(&self) -> Option<Epoch> {
        match self.standing {
            Standing::Primary { epoch, .. } => Some(epoch),
            Standing::Unassigned
            | Standing::Replica { .. }
            | Standing::Beginning { .. }
            | Standing::Suspended { .. } => None,
        }
    }

    /// The next place in the stream of a primary.
    pub fn take_op(&mut self) -> Option<(Epoch, OpNumber)> {
        match &mut self.standing {
            Standing::Primary { epoch, next } => {
                let number = *next;
                *next = number.next();
                Some((*epoch, number))
            }
            Standing::Unassigned
            | Standing::Replica { .. }
            | Standing::Beginning { .. }
            | Standing::Suspended { .. } => None,
        }
    }

    /// The number of a new segment. `None` when none is left in this epoch.
    pub fn take_number(&mut self) -> Option<SegmentNumber> {
        let epoch = self.primary()?;
        let last = self.newest.max(format::before_epoch(epoch));
        let number = SegmentNumber(last.0 + 1 + self.skip);
        if format::epoch_of(number) != epoch {
            return None;
        }
        self.skip = 0;
        self.newest = number;
        Some(number)
    }

    /// Hears of an epoch.
    ///
    /// # Errors
    /// `StaleEpoch` if a newer one is known, `Invalid` for one that no segment number can hold.
    pub fn hear(&mut self, epoch: Epoch) -> Result<(), Error> {
        if epoch > EPOCH_MAX {
            return Err(Error::new(Kind::Invalid, format!("no shard has an epoch {epoch}")));
        }
        if epoch < self.known {
            let known = self.known;
            return Err(Error::new(
                Kind::StaleEpoch,
                format!("epoch {epoch} of a shard is over, {known} is known"),
            ));
        }
        self.known = epoch;
        Ok(())
    }
}
