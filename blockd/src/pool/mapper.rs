//! Extents of thin volumes, given and taken back by a thread of the pool's own: reactors do not wait for metadata.
//!
//! ```text
//! reactor ── Job ─► what waits by now ─► zero the new extents ─► one metadata write ─► map ─► answers ─► reactor
//! ```
//!
//! A device that hangs holds this thread until its deadline, and with it what waits for new extents of this pool; other
//! operations, and other devices, go on.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::format::Owner;
use super::{Error, Pool, Result, Volume};

/// Jobs that are done together; the rest waits for the next metadata write.
const BATCH: usize = 64;

/// What a reactor wants changed in a volume's map.
#[derive(Clone, Debug)]
pub enum Want {
    /// Space for an extent, zeroed.
    Allocate(u64),
    /// That of these extents back, as far as nothing uses them.
    Release(Range<u64>),
}

/// A change of a map. The answer is 0 or an errno, and the change is durable by then.
pub struct Job {
    pub volume: Arc<Volume>,
    pub want: Want,
    pub answer: Box<dyn FnOnce(i32) + Send>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (volume, want) = (&self.volume.name, &self.want);
        f.debug_struct("Job").field("volume", volume).field("want", want).finish_non_exhaustive()
    }
}

/// The thread. It ends when the last sender of jobs is gone.
#[derive(Debug)]
pub struct Mapper {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Mapper {
    pub fn start(pool: Arc<Pool>) -> io::Result<Mapper> {
        let (jobs, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("pool-map".to_owned())
            .spawn(move || run(&pool, &waiting))?;
        Ok(Mapper { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Where jobs go. As many as clients have requests at once: that is their bound.
    #[must_use]
    pub fn jobs(&self) -> Sender<Job> {
        self.jobs.clone().expect("it is there until the stop")
    }

    /// Ends it after what waits, once nobody else has a sender.
    pub fn stop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of a pool's map panicked");
        }
    }
}

fn run(pool: &Pool, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let batch = std::iter::once(first).chain(waiting.try_iter().take(BATCH - 1));
        let mut allocations = Vec::new();
        for job in batch {
            match job.want {
                Want::Allocate(index) => allocations.push((job.volume, index, job.answer)),
                Want::Release(indexes) => {
                    let outcome = pool.release(&job.volume, indexes);
                    if let Err(error) = &outcome {
                        tracing::error!(volume = job.volume.name, %error, "giving extents back failed");
                    }
                    (job.answer)(if outcome.is_ok() { 0 } else { libc::EIO });
                }
            }
        }
        let wanted: Vec<(&Volume, u64)> =
            allocations.iter().map(|(volume, index, _)| (volume.as_ref(), *index)).collect();
        let errnos = pool.allocate(&wanted);
        for ((_, _, answer), errno) in allocations.into_iter().zip(errnos) {
            answer(errno);
        }
    }
}

impl Pool {
    /// Gives extents of thin volumes their space, zeroed; durable on return. Nothing to do for one that has it. An errno
    /// for each, or 0.
    pub(super) fn allocate(&self, wanted: &[(&Volume, u64)]) -> Vec<i32> {
        let missing = |(volume, index): &(&Volume, u64)| !volume.is_mapped(*index);
        if !wanted.iter().any(missing) {
            return vec![0; wanted.len()];
        }
        let mut state = self.change();
        let mut new: BTreeMap<(u32, u64), (&Volume, u64)> = BTreeMap::new();
        let mut errnos = Vec::with_capacity(wanted.len());
        for (volume, index) in wanted {
            if volume.is_mapped(*index) || new.contains_key(&(volume.id, *index)) {
                errnos.push(0);
                continue;
            }
            match self.claim(&mut state, volume.id, *index) {
                Ok(physical) => {
                    new.insert((volume.id, *index), (*volume, physical));
                    errnos.push(0);
                }
                Err(error) => {
                    tracing::error!(volume = volume.name, index, %error, "allocating an extent failed");
                    errnos.push(match error {
                        Error::NoSpace { .. } => libc::ENOSPC,
                        _ => libc::EIO,
                    });
                }
            }
        }
        if new.is_empty() {
            return errnos;
        }
        if let Err(error) = self.commit(&mut state, "allocating extents") {
            tracing::error!(path = self.path, %error, "extents could not be allocated");
            for (_, physical) in new.values() {
                state.owners[*physical as usize] = Owner::default();
            }
            errnos.iter_mut().filter(|errno| **errno == 0).for_each(|errno| *errno = libc::EIO);
            return errnos;
        }
        for ((_, index), (volume, physical)) in new {
            volume.set(index, physical);
        }
        errnos
    }

    /// Gives extents of a thin volume back, those that no operation uses. The rest stays as it is.
    pub(super) fn release(&self, volume: &Volume, indexes: Range<u64>) -> Result<()> {
        let mut state = self.change();
        let freed: Vec<u64> = indexes.filter_map(|index| volume.take(index)).collect();
        if freed.is_empty() {
            return Ok(());
        }
        for physical in &freed {
            state.owners[*physical as usize] = Owner::default();
        }
        self.commit(&mut state, "giving extents back")?;
        self.punch(&mut state, &freed);
        Ok(())
    }
}
