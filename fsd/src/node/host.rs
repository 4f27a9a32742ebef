//! The node as the protocols between nodes see it.

use std::sync::Arc;
use std::time::Duration;

use blockd_ipc::RemoteVolume;
use bytes::Bytes;
use fsd_rpc::message::{Failure, NodeRequest, Request, Response};
use fsd_rpc::nodes::Target;
use parking_lot::Mutex;
use raftmeta::store::View;
use raftmeta_types::{ChunkHash, Command, Epoch, NodeId, Reply, ShardId};
use tokio::sync::watch;

use super::swim::Liveness;
use super::{Node, members, skew};
use crate::chunks::{ChunkStore, Error, Kind};
use crate::jobs::Upkeep;
use crate::replication::{Courier, Director, Host, Telling, Wire};

impl Wire for Node {
    fn target_of(&self, id: NodeId) -> Result<Target, Failure> {
        Node::target_of(self, id)
    }

    fn tell(&self, target: &Target, message: Bytes, within: Duration) -> Telling {
        let (peers, target) = (Arc::clone(&self.peers), target.clone());
        Box::pin(async move {
            let unreached = |why: String| Error::new(Kind::Io, why);
            let nodes = peers.nodes().map_err(|failure| unreached(failure.to_string()))?;
            let called = nodes.call(&target, &Request::Replica, &[message], within).await;
            let (_, data) = called.map_err(|error| unreached(format!("{target}: {error}")))?;
            Ok(data)
        })
    }
}

impl Host for Node {
    type View = View;
    type Volume = RemoteVolume;

    fn id(&self) -> NodeId {
        self.id
    }

    fn chunks(&self) -> &ChunkStore<RemoteVolume> {
        &self.chunks
    }

    fn courier(&self) -> &Arc<Courier> {
        &self.courier
    }

    fn director(&self) -> &Mutex<Director> {
        &self.director
    }

    fn beats(&self) -> &Mutex<members::Beats> {
        &self.beats
    }

    fn alarm(&self) {
        self.alarm.notify_one();
    }

    fn upkeep(&self) -> &Upkeep {
        &self.upkeep
    }

    fn stopping(&self) -> watch::Receiver<bool> {
        Node::stopping(self)
    }

    fn view(&self) -> View {
        self.group.view()
    }

    fn applied(&self) -> Option<u64> {
        self.group.status().applied
    }

    async fn applied_beyond(&self, known: Option<u64>) {
        self.group.applied_beyond(known).await;
    }

    fn leads(&self) -> bool {
        Node::leads(self)
    }

    fn leader(&self) -> Result<Target, Failure> {
        Node::leader(self)
    }

    fn clock_ms(&self) -> i64 {
        skew::clock_now_ms()
    }

    fn liveness(&self, id: NodeId) -> Liveness {
        self.membership.seen(id)
    }

    async fn command(&self, command: Command, durable: bool) -> Result<Reply, Failure> {
        Node::command(self, command, durable).await
    }

    async fn ask(
        &self,
        target: &Target,
        request: NodeRequest,
        within: Duration,
    ) -> Result<Response, Failure> {
        let (response, _) = self.peers.ask(target, request, &[], within).await?;
        Ok(response)
    }

    async fn delete_chunks(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> Result<u64, Failure> {
        Node::delete_chunks(self, shard, epoch, hashes).await
    }
}
