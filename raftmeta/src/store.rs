//! The applied state in fjall, and the state machine as openraft drives it.
//!
//! A batch of commands becomes one atomic fjall batch together with the applied log id, the
//! membership and the time of the last command, so that the store always stands between two
//! commands. All of it is one keyspace: tables and journal then hold a prefix of the commits each, whatever of
//! them reached the disk, and so does the younger of the two. fjall is not synced per command: after a
//! crash the log replays from `applied`.
//!
//! | module | what |
//! |---|---|
//! | [`view`] | reading: views for queries, the present for the state machine |
//! | [`engine`] | what is needed of fjall |
//! | [`recent`] | hot records in front of fjall |
//! | [`intact`] | whether the files are as they were left, before fjall believes them |
//! | [`machine`] | openraft's traits |

mod engine;
pub(crate) mod intact;
mod machine;
mod recent;
mod view;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::type_config::alias::{LogIdOf, StoredMembershipOf};
use parking_lot::{Mutex, RwLock};
use raftmeta_types::Time;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::fs::{self, File};
use crate::group::Types;
use engine::Engine;
use intact::{Damage, Intact};
use recent::Recent;
pub use view::View;

/// Key of the store's own record, below every key of the state machine. Its value: the number of the
/// commit (u64, little-endian), then [`State`] in postcard.
pub(crate) const STATE: &[u8] = &[0];
/// Keys removed in one batch when everything goes.
const CLEAR_KEYS: usize = 4096;

/// A key with its new value, or `None` where it is removed.
type Write = (Vec<u8>, Option<Vec<u8>>);

/// Where the state machine stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) applied: Option<LogIdOf<Types>>,
    pub(crate) membership: StoredMembershipOf<Types>,
    pub(crate) time: Time,
}

struct Shared {
    engine: Engine,
    checkpoints: PathBuf,
    state: Mutex<State>,
    recent: Recent,
    /// Number of the last commit; held during one, there is one at a time.
    commits: Mutex<u64>,
    /// Held for writing while a checkpoint of another replica takes the place of the state: what is there in between
    /// is no state.
    whole: RwLock<()>,
    /// Where the checkpoint on disk stands; it has been verified.
    checkpoint: Mutex<Option<State>>,
    /// A checkpoint that is being written ends early.
    stopping: AtomicBool,
    /// Held for its lock on the directory.
    _lock: Arc<File>,
}

/// The node's store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

impl Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.0.checkpoints).finish_non_exhaustive()
    }
}

/// fjall as it is opened, with what its own record says.
struct Opened {
    engine: Engine,
    commits: u64,
    state: State,
}

fn open_files(path: &Path, intact: Intact) -> Result<Opened, Damage> {
    let named = |e: &dyn std::fmt::Display| Damage::new(path, e);
    let engine = Engine::open(path).map_err(|e| named(&e))?;
    let (commits, state) = match engine.get(STATE).map_err(|e| named(&e))? {
        Some(bytes) => decode_state(&bytes).ok_or_else(|| named(&"its own record is damaged"))?,
        None => (0, State::default()),
    };
    if intact.last_commit.is_some_and(|last| last > commits) {
        return Err(named(&format!("it stands at commit {commits}, its journal ends later")));
    }
    Ok(Opened { engine, commits, state })
}

fn decode_state(bytes: &[u8]) -> Option<(u64, State)> {
    let (commits, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*commits), postcard::from_bytes(rest).ok()?))
}

/// Removes checkpoints that were being written, or received, when the last run ended.
fn remove_unfinished(checkpoints: &Path) -> io::Result<()> {
    for entry in fs::read_dir(checkpoints)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new" || extension == "part") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Moves a damaged store out of the way, over what an earlier one left there.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = path.with_extension("damaged");
    if aside.try_exists()? {
        std::fs::remove_dir_all(&aside)?;
    }
    if path.try_exists()? {
        std::fs::rename(path, &aside)?;
    }
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

impl Store {
    /// Opens or makes the store in `dir/kv`; checkpoints are in `dir/checkpoints`.
    ///
    /// A store that is damaged is set aside and made anew from the checkpoint; the log replays the rest. A
    /// checkpoint that is damaged is removed, to be written anew. An error names the files if both are. What a newer
    /// version has written is refused and left as it is.
    pub(crate) fn open(dir: &Path, lock: Arc<File>) -> io::Result<Store> {
        let checkpoints = dir.join("checkpoints");
        fs::create_dir_all(&checkpoints)?;
        remove_unfinished(&checkpoints)?;
        let current = checkpoints.join("current");
        let checkpoint = match fs::exists(&current)? {
            true => match checkpoint::verify(&current) {
                Err(error) if checkpoint::is_newer(&error) => return Err(error),
                verified => Some(verified),
            },
            false => None,
        };
        let path = dir.join("kv");
        let opened = intact::check(&path).and_then(|intact| open_files(&path, intact));
        let (opened, damage) = match opened {
            Ok(opened) => (opened, None),
            Err(damage) if damage.is_newer => {
                let why = format!("metadata store {damage}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            Err(damage) => {
                if let Some(Err(error)) = &checkpoint {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "metadata store {damage}, and {error}: restore the metadata directory \
                             {} from a copy",
                            dir.display()
                        ),
                    ));
                }
                tracing::warn!(
                    %damage,
                    "the metadata store is damaged: it is made anew from checkpoint and log"
                );
                set_aside(&path)?;
                let opened = open_files(&path, Intact::default()).map_err(io::Error::other)?;
                (opened, Some(damage))
            }
        };
        let checkpoint = match checkpoint {
            Some(Err(error)) => {
                tracing::warn!(%error, "the checkpoint is removed and will be written anew");
                fs::remove_file(&current)?;
                None
            }
            Some(Ok(state)) => Some(state),
            None => None,
        };
        let Opened { engine, commits, state } = opened;
        let store = Store(Arc::new(Shared {
            engine,
            checkpoints,
            state: Mutex::new(state),
            recent: Recent::new(),
            commits: Mutex::new(commits),
            whole: RwLock::new(()),
            checkpoint: Mutex::new(checkpoint.clone()),
            stopping: AtomicBool::new(false),
            _lock: lock,
        }));
        let behind = checkpoint.is_some_and(|state| state.applied > store.0.state.lock().applied);
        if behind {
            store.install(&current)?;
        }
        if let Some(damage) = damage {
            let applied = store.applied();
            tracing::warn!(%damage, ?applied, "the metadata store is restored up to this entry");
        }
        Ok(store)
    }

    /// What every command acknowledged so far has made of the state.
    pub fn view(&self) -> View {
        View::new(&self.0)
    }

    /// Index of the last entry applied.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.0.state.lock().applied.map(|id| id.index)
    }

    /// Index of the last entry in the checkpoint on disk.
    pub(crate) fn checkpointed(&self) -> Option<u64> {
        self.0.checkpoint.lock().as_ref().and_then(|state| state.applied).map(|id| id.index)
    }

    /// The membership as far as it is applied.
    pub(crate) fn membership(&self) -> StoredMembershipOf<Types> {
        self.0.state.lock().membership.clone()
    }

    /// Where checkpoints are.
    pub(crate) fn checkpoints(&self) -> &Path {
        &self.0.checkpoints
    }

    #[cfg(test)]
    pub(crate) fn time(&self) -> Time {
        self.0.state.lock().time
    }

    /// Puts what is in memory into tables.
    #[cfg(test)]
    pub(crate) fn flush(&self) {
        self.0.engine.flush();
    }

    /// Ends a checkpoint that is being written.
    pub(crate) fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
    }

    /// Puts the store on stable storage; an error if it has not applied `index` yet.
    pub(crate) fn persist(&self, index: u64) -> io::Result<()> {
        let applied = self.applied();
        if applied < Some(index) {
            return Err(io::Error::other(format!(
                "the log cannot be purged to {index}: only {applied:?} is applied"
            )));
        }
        self.0.engine.persist()
    }

    /// One atomic step from state to state.
    fn commit(&self, writes: Vec<Write>, state: State) -> io::Result<()> {
        let shared = &self.0;
        let mut commits = shared.commits.lock();
        let number = *commits + 1;
        let mut own = number.to_le_bytes().to_vec();
        own = postcard::to_extend(&state, own).map_err(io::Error::other)?;
        shared.recent.commit(&writes, || {
            let own = (STATE, Some(&own[..]));
            shared.engine.commit(writes.iter().map(engine::put).chain([own]))
        })?;
        *commits = number;
        *shared.state.lock() = state;
        Ok(())
    }

    /// Makes the state that of a checkpoint. A crash in between leaves a store without a state, which the
    /// next opening fills again.
    fn install(&self, path: &Path) -> io::Result<()> {
        let (state, mut reader) = checkpoint::open(path)?;
        let shared = &self.0;
        let _whole = shared.whole.write();
        let mut first = true;
        loop {
            let keys = shared.engine.keys(CLEAR_KEYS)?;
            if keys.is_empty() {
                break;
            }
            // Before anything else goes: from here on the store counts as empty.
            let own = std::mem::take(&mut first).then_some(STATE);
            let removed = keys.iter().map(Vec::as_slice).chain(own);
            shared.engine.commit(removed.map(|key| (key, None)))?;
        }
        while let Some(records) = reader.records()? {
            let writes = records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
            shared.engine.commit(writes)?;
        }
        self.commit(Vec::new(), state)?;
        shared.recent.clear();
        shared.engine.persist()
    }

    /// Writes a checkpoint of the present state, which goes on meanwhile.
    pub(crate) fn write_checkpoint(&self) -> io::Result<(State, PathBuf)> {
        let view = {
            let _whole = self.0.whole.read();
            self.view()
        };
        let bytes = view.snapshot().get(STATE).map_err(io::Error::other)?;
        let state = match bytes {
            Some(bytes) => {
                decode_state(&bytes)
                    .ok_or_else(|| io::Error::other("metadata store: its own record is damaged"))?
                    .1
            }
            None => State::default(),
        };
        let path = self.0.checkpoints.join("current");
        checkpoint::write(&path, &state, &view, &self.0.stopping)?;
        *self.0.checkpoint.lock() = Some(state.clone());
        Ok((state, path))
    }
}
