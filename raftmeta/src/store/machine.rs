//! The store as openraft drives it.

use std::io;
use std::path::{Path, PathBuf};

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{EntryPayload, RaftSnapshotBuilder, Snapshot};
use raftmeta_types::Version;

use super::view::Present;
use super::{State, Store};
use crate::checkpoint;
use crate::fs::{self, File, blocking};
use crate::group::{Applied, Types};
use crate::kv::Overlay;

/// Most entries applied in one fjall batch.
const BATCH_ENTRIES: usize = 64;

fn meta(state: &State) -> SnapshotMetaOf<Types> {
    SnapshotMetaOf::<Types> {
        last_log_id: state.applied,
        last_membership: state.membership.clone(),
    }
}

impl Store {
    /// Makes the state that of a checkpoint which has been verified. It becomes this replica's own first, so that a
    /// crash while it is read in can be mended.
    fn adopt(&self, meta: &SnapshotMetaOf<Types>, snapshot: &Path) -> io::Result<()> {
        let (state, _) = checkpoint::identify(snapshot, &File::open(snapshot)?)?;
        if state.applied != meta.last_log_id {
            return Err(io::Error::other(format!(
                "checkpoint {} is not the one announced",
                snapshot.display()
            )));
        }
        let current = self.0.checkpoints.join("current");
        if snapshot != current {
            File::open(snapshot)?.sync_all()?;
            fs::rename(snapshot, &current)?;
            File::open(&self.0.checkpoints)?.sync_all()?;
        }
        self.install(&current)?;
        *self.0.checkpoint.lock() = Some(state);
        Ok(())
    }
}

impl RaftSnapshotBuilder<Types> for Store {
    type SnapshotData = PathBuf;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, PathBuf>, io::Error> {
        let store = self.clone();
        let (state, path) = blocking(move || store.write_checkpoint()).await?;
        Ok(Snapshot { meta: meta(&state), snapshot: path })
    }
}

impl RaftStateMachine<Types> for Store {
    type SnapshotData = PathBuf;
    type SnapshotBuilder = Store;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>), io::Error> {
        let state = self.0.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + Send,
    {
        let mut chunks = entries.ready_chunks(BATCH_ENTRIES);
        while let Some(chunk) = chunks.next().await {
            let mut answers = Vec::with_capacity(chunk.len());
            let mut state = self.0.state.lock().clone();
            let present = Present(&self.0);
            let mut overlay = Overlay::new(&present);
            for item in chunk {
                let (entry, responder) = item?;
                #[cfg(test)]
                crate::sim::check::applies(&entry);
                state.applied = Some(entry.log_id);
                let answer = match entry.payload {
                    EntryPayload::Blank => Applied(None),
                    EntryPayload::Membership(membership) => {
                        state.membership =
                            StoredMembershipOf::<Types>::new(Some(entry.log_id), membership);
                        Applied(None)
                    }
                    EntryPayload::Normal(mut payload) => {
                        // Proposals may be stamped in another order than they are logged in.
                        state.time = state.time.max(payload.envelope.time);
                        payload.envelope.time = state.time;
                        let index = Version(entry.log_id.index);
                        let reply = crate::apply(&mut overlay, index, &payload.envelope);
                        Applied(Some(reply.map_err(io::Error::other)?))
                    }
                };
                answers.push((responder, answer));
            }
            let writes = overlay.into_writes().into_iter().collect();
            self.commit(writes, state)?;
            for (responder, answer) in answers {
                if let Some(responder) = responder {
                    responder.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Store {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: PathBuf,
    ) -> Result<(), io::Error> {
        let (store, meta) = (self.clone(), meta.clone());
        // It takes as long as the state is large, and heartbeats go on meanwhile.
        blocking(move || store.adopt(&meta, &snapshot)).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<Types, PathBuf>>, io::Error> {
        let checkpoint = self.0.checkpoint.lock().clone();
        let path = self.0.checkpoints.join("current");
        Ok(checkpoint.map(|state| Snapshot { meta: meta(&state), snapshot: path }))
    }
}
