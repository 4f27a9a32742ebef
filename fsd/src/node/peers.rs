//! The way to the other nodes of the cluster: messages of the metadata group, and what nodes ask each other.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::CallError;
use fsd_rpc::message::{Failure, NodeRequest, Request, Response};
use fsd_rpc::nodes::{Nodes, Target};
use fsd_rpc::tls::{Identity, TlsError};
use raftmeta::network::{Answering, Peer, RaftAnswer, RaftMessage, Transport};
use raftmeta_types::NodeId;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Connections to the others, once this node knows with which certificate it comes.
#[derive(Debug)]
pub(crate) struct Peers {
    own: NodeId,
    nodes: OnceLock<Nodes>,
    /// Sockets live on the server's runtime, the metadata group asks from another one.
    runtime: Handle,
}

/// A task that ends with the one that waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Peers {
    /// Must be called on the server's runtime.
    pub fn new(own: NodeId) -> Peers {
        Peers { own, nodes: OnceLock::new(), runtime: Handle::current() }
    }

    /// From now on the node shows this certificate.
    pub fn show(&self, identity: &Identity) -> Result<(), TlsError> {
        match self.nodes.get() {
            Some(nodes) => nodes.set_identity(identity),
            None => {
                let nodes = Nodes::new(self.own, identity)?;
                // Somebody else was faster with the same.
                let _ = self.nodes.set(nodes);
                Ok(())
            }
        }
    }

    pub fn nodes(&self) -> Result<&Nodes, Failure> {
        self.nodes.get().ok_or_else(|| Failure::NotReady("this node is starting".into()))
    }

    /// Asks another node.
    pub async fn ask(
        &self,
        target: &Target,
        request: NodeRequest,
        data: &[Bytes],
        deadline: Duration,
    ) -> Result<(Response, Bytes), Failure> {
        let called = self.nodes()?.call(target, &Request::Node(request), data, deadline).await;
        called.map_err(|error| match error {
            CallError::Failure(failure) => failure,
            error => Failure::NotReady(format!("{target}: {error}")),
        })
    }
}

impl Transport for Peers {
    fn call(&self, target: Peer, message: RaftMessage, timeout: Duration) -> Answering {
        let Ok(nodes) = self.nodes().cloned() else {
            return Box::pin(async { Err(io::Error::other("this node is starting")) });
        };
        let runtime = self.runtime.clone();
        Box::pin(async move {
            let encoded = message.encode().map_err(io::Error::other)?;
            let target = Target { node: NodeId(target.id), address: target.address };
            let mut task = Task(runtime.spawn(async move {
                nodes.call(&target, &Request::Raft, &[encoded], timeout).await
            }));
            let called = (&mut task.0).await.map_err(io::Error::other)?;
            let (_, answer) = called.map_err(io::Error::other)?;
            RaftAnswer::decode(&answer).map_err(io::Error::other)
        })
    }
}
