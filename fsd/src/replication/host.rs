//! What the protocols of replication need of the node that they run on. The decisions are theirs; connections, the
//! metadata group and the volume are the node's. It is the seam of the simulation (`sim`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use fsd_rpc::message::{Failure, NodeRequest, Response};
use fsd_rpc::nodes::Target;
use parking_lot::Mutex;
use raftmeta::{KvRead, read};
use raftmeta_types::{ChunkHash, Command, Epoch, NodeId, Reply, ShardId};
use tokio::sync::watch;

use super::{Courier, Director};
use crate::chunks::{ChunkStore, Error};
use crate::jobs::Upkeep;
use crate::node::Liveness;
use crate::node::members::Beats;
use crate::service::storage;

/// An answer that is on its way from the store of another node.
pub(crate) type Telling = Pin<Box<dyn Future<Output = Result<Bytes, Error>> + Send>>;

/// The way to the stores of other nodes.
pub(crate) trait Wire: Send + Sync + 'static {
    /// Where a node is reached.
    fn target_of(&self, id: NodeId) -> Result<Target, Failure>;

    /// `Request::Replica`: takes a message of [`super::wire`] to the store of a node.
    fn tell(&self, target: &Target, message: Bytes, within: Duration) -> Telling;
}

/// The node.
pub(crate) trait Host: Wire {
    /// The applied state of the metadata group at one moment.
    type View: KvRead + Send + Sync;
    /// What the chunk store lies on.
    type Volume: Volume;

    fn id(&self) -> NodeId;
    fn chunks(&self) -> &ChunkStore<Self::Volume>;
    fn courier(&self) -> &Arc<Courier>;
    fn director(&self) -> &Mutex<Director>;
    /// What the leader knows of the other nodes.
    fn beats(&self) -> &Mutex<Beats>;
    /// A node did not answer: it is looked after soon.
    fn alarm(&self) {}
    fn upkeep(&self) -> &Upkeep;

    /// Turns true when the node stops.
    fn stopping(&self) -> watch::Receiver<bool>;

    /// What this node knows of the metadata: the newest only on a leader with a lease.
    fn view(&self) -> Self::View;

    /// The last entry of the log that is in it.
    fn applied(&self) -> Option<u64>;

    /// Ends when more, or less, than this is applied.
    fn applied_beyond(&self, known: Option<u64>) -> impl Future<Output = ()> + Send;

    /// Whether this node leads, as far as it knows.
    fn leads(&self) -> bool;

    /// Who leads, if it is another node.
    fn leader(&self) -> Result<Target, Failure>;

    /// The wall clock of this node, in milliseconds since 1970.
    fn clock_ms(&self) -> i64;

    /// What the nodes say of each other, of one of them.
    fn liveness(&self, id: NodeId) -> Liveness;

    /// Runs a command of the node itself.
    fn command(
        &self,
        command: Command,
        durable: bool,
    ) -> impl Future<Output = Result<Reply, Failure>> + Send;

    /// Asks another node.
    fn ask(
        &self,
        target: &Target,
        request: NodeRequest,
        within: Duration,
    ) -> impl Future<Output = Result<Response, Failure>> + Send;

    /// Has the primary delete what the state machine has marked under this gc epoch; the bytes that it took.
    fn delete_chunks(
        &self,
        shard: ShardId,
        epoch: Epoch,
        hashes: &[ChunkHash],
    ) -> impl Future<Output = Result<u64, Failure>> + Send;
}

/// Where a node is reached, as far as this view of the metadata knows.
pub(crate) fn target_in(view: &impl KvRead, id: NodeId) -> Result<Target, Failure> {
    match read::node(view, id).map_err(storage)? {
        Some(info) => Ok(Target { node: id, address: info.address }),
        None => Err(Failure::NotReady(format!("node {id} is not known here yet"))),
    }
}
