//! openraft's side of the sender: one link for each replica and purpose.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft::{BasicNode, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::RwLock;

use super::{Peer, RaftAnswer, RaftMessage, Transport, outbox};
use crate::group::Types;

/// Longest wait for the answer to a message without entries.
const SMALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for that to a message with up to [`super::MESSAGE_MAX`] bytes, and a sync of them.
pub(super) const BULK_TIMEOUT: Duration = Duration::from_secs(10);

/// Addresses of the newest membership, where they are newer than what openraft remembers.
#[derive(Debug, Default)]
pub(crate) struct AddressBook(RwLock<BTreeMap<u64, String>>);

impl AddressBook {
    pub fn replace(&self, addresses: BTreeMap<u64, String>) {
        *self.0.write() = addresses;
    }

    fn get(&self, id: u64) -> Option<String> {
        self.0.read().get(&id).cloned()
    }
}

/// Whether this replica leads and no quorum answers it: then it stops sending what keeps others from electing another
/// leader, for they may hear it although it does not hear them.
#[derive(Debug, Default)]
pub(crate) struct Silence(AtomicBool);

impl Silence {
    pub fn set(&self, silent: bool) {
        self.0.store(silent, Ordering::Relaxed);
    }
}

/// Makes the links. Without a transport every other replica is unreachable.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub transport: Option<Arc<dyn Transport>>,
    pub book: Arc<AddressBook>,
    pub silence: Arc<Silence>,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        Link { target, address: node.addr.clone(), links: self.clone() }
    }
}

/// The way to one replica.
#[derive(Debug)]
pub(crate) struct Link {
    target: u64,
    address: String,
    links: Links,
}

/// Why there is no answer that can be used.
#[derive(Debug)]
pub(super) enum CallError {
    /// Nobody is there: try again later.
    Unreachable(io::Error),
    /// Somebody is there and will not, or says what does not fit.
    Refused(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Unreachable(error) => error.fmt(f),
            CallError::Refused(why) => why.fmt(f),
        }
    }
}

impl From<CallError> for RPCError<Types> {
    fn from(error: CallError) -> Self {
        // Both wait before the next try: a replica that refuses goes on refusing for a while.
        RPCError::Unreachable(Unreachable::from_string(error))
    }
}

impl From<CallError> for StreamingError<Types> {
    fn from(error: CallError) -> Self {
        StreamingError::Unreachable(Unreachable::from_string(error))
    }
}

impl Link {
    pub(super) async fn call(
        &self,
        message: RaftMessage,
        timeout: Duration,
    ) -> Result<RaftAnswer, CallError> {
        let Some(transport) = &self.links.transport else {
            let error = io::Error::other("this replica has no way to others");
            return Err(CallError::Unreachable(error));
        };
        if message.is_from_leader() && self.links.silence.0.load(Ordering::Relaxed) {
            let why = "no quorum answers this leader, it is silent so that another can be elected";
            return Err(CallError::Unreachable(io::Error::other(why)));
        }
        let address = self.links.book.get(self.target).unwrap_or_else(|| self.address.clone());
        let target = Peer { id: self.target, address };
        let calling = transport.call(target, message, timeout);
        match Types::timeout(timeout, calling).await {
            Ok(Ok(RaftAnswer::Refused(why))) => {
                let target = self.target;
                Err(CallError::Refused(format!("replica {target} refuses: {why}")))
            }
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallError::Unreachable(error)),
            Err(_) => Err(CallError::Unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    pub(super) fn nonsense(&self, answer: &RaftAnswer) -> CallError {
        let target = self.target;
        CallError::Refused(format!("replica {target} answers with something else: {answer:?}"))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = PathBuf;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let timeout = if rpc.entries.is_empty() { SMALL_TIMEOUT } else { BULK_TIMEOUT };
        let from_start = rpc.prev_log_id.is_none();
        match self.call(RaftMessage::Append(rpc), timeout).await? {
            // Nothing precedes the start, so nothing there can conflict; and no replica takes a part.
            RaftAnswer::Append(
                answer @ (AppendEntriesResponse::Conflict
                | AppendEntriesResponse::PartialSuccess(_)),
            ) if from_start || !answer.is_conflict() => {
                Err(self.nonsense(&RaftAnswer::Append(answer)).into())
            }
            RaftAnswer::Append(answer) => Ok(answer),
            other => Err(self.nonsense(&other).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.call(RaftMessage::Vote(rpc), SMALL_TIMEOUT).await? {
            RaftAnswer::Vote(answer) => Ok(answer),
            other => Err(self.nonsense(&other).into()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.call(RaftMessage::PreVote(rpc), SMALL_TIMEOUT).await? {
            RaftAnswer::Vote(answer) => Ok(answer),
            other => Err(self.nonsense(&other).into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, PathBuf>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = outbox::send(self, vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        // The target waits for its log to be flushed before it answers.
        match self.call(RaftMessage::TransferLeader(req), BULK_TIMEOUT).await? {
            RaftAnswer::TransferLeader(answer) => Ok(answer),
            other => Err(self.nonsense(&other).into()),
        }
    }
}

/// What a local failure to read a checkpoint becomes: the next try reads the newest one.
pub(super) fn unreadable(error: &io::Error) -> StreamingError<Types> {
    StreamingError::Network(NetworkError::new(error))
}
