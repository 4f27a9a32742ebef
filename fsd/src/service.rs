//! What the node does with requests: one file per family.
//!
//! ```text
//!   Handler ─ allowed? ─┬─ hello    sessions begin, come back and end
//!                       ├─ read     names, attributes, entries, extents: from one view each
//!                       ├─ data     chunks
//!                       ├─ mutate   commands: stamped, proposed, told to the others
//!                       ├─ locks    byte-range locks and their waits
//!                       ├─ nodes    what other nodes ask, and new ones that join
//!                       └─ admin    of administrators only
//! ```
//! `order` keeps requests apart that must not pass each other: see there.

mod data;
mod enrol;
mod hello;
mod locks;
mod mutate;
mod nodes;
mod order;
mod read;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fsd_rpc::message::{Enrolment, Event, Failure, Hello, Join, Request, Response, Role, Welcome};
use fsd_rpc::nodes::Upstream;
use fsd_rpc::server::{Conn, Handler, Peer, Refusal};
use fsd_rpc::tls::Facts;
use raftmeta_types::{Command, MetaError, SessionId};
use tokio::sync::mpsc;

pub(crate) use order::Order;
pub(crate) use read::storage;

use crate::metrics::Operation;
use crate::node::Node;
use crate::refusals::Why;

/// Answers for one node.
pub struct Service {
    node: Arc<Node>,
    /// User that the node runs as: may administrate, as root may.
    own_uid: u32,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("node", &self.node).finish_non_exhaustive()
    }
}

type Answer = Result<(Response, Vec<Bytes>), Failure>;

fn plain(response: Response) -> Answer {
    Ok((response, Vec::new()))
}

impl Service {
    pub fn new(node: &Arc<Node>) -> Service {
        Service { node: Arc::clone(node), own_uid: rustix::process::geteuid().as_raw() }
    }

    /// Keeps the session alive; refuses one that has ended.
    fn admit(&self, conn: &Conn) -> Result<(), Failure> {
        let known = conn.session == SessionId::SERVER
            || self.node.sessions.lock().touch(conn.session, self.node.uptime());
        if known { Ok(()) } else { Err(MetaError::SessionExpired.into()) }
    }

    fn require_session(conn: &Conn) -> Result<(), Failure> {
        if conn.session == SessionId::SERVER {
            return Err(Failure::Refused("an administrator's connection has no session".into()));
        }
        Ok(())
    }

    fn require_administrator(&self, conn: &Conn) -> Result<(), Failure> {
        match &conn.peer {
            Peer::Unix { uid, .. } if *uid == 0 || *uid == self.own_uid => Ok(()),
            Peer::Unix { uid, .. } => {
                Err(Failure::Refused(format!("uid {uid} is no administrator of this node")))
            }
            Peer::Tls { .. } | Peer::TlsAnonymous { .. } => Err(Failure::Refused(
                "administrators come through the Unix socket of a node".into(),
            )),
        }
    }

    async fn answer(&self, conn: &Conn, request: Request, data: Bytes) -> Answer {
        let node = &self.node;
        match request {
            Request::Raft => return nodes::raft(node, conn, &data).await,
            Request::Replica => return nodes::replica(node, conn, &data).await,
            Request::Node(request) => return nodes::answer(node, conn, request, data).await,
            _ if matches!(conn.hello.role, Role::Node { .. }) => {
                return Err(Failure::Protocol("this is not for nodes to ask".into()));
            }
            _ => node.may_answer()?,
        }
        self.admit(conn)?;
        match request {
            Request::Lookup { parent, name } => read::lookup(node, parent, &name),
            Request::GetAttr { ino } => read::getattr(node, ino),
            Request::ReadLink { ino } => read::readlink(node, ino),
            Request::ReadDir { ino, after, limit } => read::readdir(node, ino, &after, limit),
            Request::GetXattr { ino, name } => read::xattr(node, ino, &name),
            Request::ListXattr { ino } => read::xattrs(node, ino),
            Request::StatFs => read::statfs(node),
            Request::Extents { ino, offset, len, with_chunks, chunk_bytes_max } => {
                let most = if with_chunks { chunk_bytes_max } else { 0 };
                data::extents(node, ino, offset, len, most).await
            }
            Request::GetLock(lock) => locks::get(node, &lock),
            Request::GetChunks { hashes } => data::get(node, &hashes).await,
            Request::Ping => plain(Response::Done),
            Request::Sync => {
                let done = node.group.sync().await;
                done.map_err(|error| Failure::Storage(error.to_string()))?;
                plain(Response::Done)
            }
            Request::Admin(request) => {
                self.require_administrator(conn)?;
                plain(Response::Admin(crate::admin::answer(node, conn, request).await?))
            }
            Request::Open { ino } => {
                Self::require_session(conn)?;
                read::open(node, conn.session, ino).await
            }
            Request::Close { inos } => {
                Self::require_session(conn)?;
                mutate::close(node, conn.session, &inos).await
            }
            Request::Mutate { slot, seq, durable, command } => {
                Self::require_session(conn)?;
                let order = mutate::Numbered { session: conn.session, slot, seq, durable };
                plain(Response::Reply(mutate::mutate(node, order, command).await?))
            }
            Request::LockWait { slot, seq, lock, wait_ms } => {
                Self::require_session(conn)?;
                let order = mutate::Numbered { session: conn.session, slot, seq, durable: false };
                plain(Response::Reply(locks::wait(node, order, lock, wait_ms).await?))
            }
            Request::PutChunks { chunks } => {
                Self::require_session(conn)?;
                data::put(node, &chunks, &data).await
            }
            Request::Goodbye => {
                Self::require_session(conn)?;
                node.end_session(conn.session).await?;
                plain(Response::Done)
            }
            Request::Hello(_)
            | Request::Enrol(_)
            | Request::Join(_)
            | Request::Renew { .. }
            | Request::Subscribe
            | Request::Raft
            | Request::Replica
            | Request::Node(_) => {
                Err(Failure::Protocol("this belongs to the beginning of a connection".into()))
            }
        }
    }
}

impl Handler for Service {
    async fn hello(&self, peer: &Peer, hello: &Hello) -> Result<Welcome, Failure> {
        hello::hello(&self.node, peer, hello).await
    }

    fn admits(&self, peer: &Peer) -> bool {
        enrol::admits(&self.node, peer)
    }

    async fn enrol(&self, peer: &Peer, enrolment: Enrolment) -> Result<Response, Failure> {
        enrol::enrol(&self.node, peer, enrolment).await
    }

    async fn join(&self, peer: &Peer, join: Join) -> Result<Response, Failure> {
        nodes::join(&self.node, peer, join).await
    }

    fn serves(&self) -> bool {
        self.node.leads()
    }

    fn refused(&self, source: &str, refusal: Refusal, why: &dyn std::fmt::Display) {
        self.node.refusals.note(Why::from(refusal), &source, why);
    }

    async fn route(&self, peer: &Peer, hello: &Hello) -> Result<Upstream, Failure> {
        self.node.pass_on(peer, hello).await
    }

    async fn renew(&self, certificate: &Facts, csr_der: Bytes) -> Result<Response, Failure> {
        enrol::renew(&self.node, certificate, &csr_der).await
    }

    async fn call(&self, conn: &Conn, request: Request, data: Bytes) -> (Response, Vec<Bytes>) {
        let operation = operation(&request);
        let since = Instant::now();
        let answer = self.answer(conn, request, data).await;
        if let Some(operation) = operation {
            self.node.metrics.operation(operation, since.elapsed());
        }
        answer.unwrap_or_else(|failure| (Response::Failed(failure), Vec::new()))
    }

    fn subscribe(&self, conn: &Conn) -> Result<mpsc::Receiver<Event>, Failure> {
        self.admit(conn)?;
        Self::require_session(conn)?;
        Ok(self.node.events.subscribe(conn.id, conn.session))
    }

    fn disconnected(&self, conn: &Conn) {
        self.node.events.unsubscribe(conn.id);
        if let Role::Node { id } = conn.hello.role {
            self.node.parted(id);
        }
    }
}

/// As what a request is measured; waits for locks and signs of life are not.
fn operation(request: &Request) -> Option<Operation> {
    Some(match request {
        Request::Lookup { .. } => Operation::Lookup,
        Request::GetAttr { .. } => Operation::GetAttr,
        Request::Open { .. } => Operation::Open,
        Request::Close { .. } => Operation::Close,
        Request::ReadLink { .. } => Operation::ReadLink,
        Request::ReadDir { .. } => Operation::ReadDir,
        Request::GetXattr { .. } | Request::ListXattr { .. } => Operation::Xattr,
        Request::Extents { .. } => Operation::Extents,
        Request::StatFs => Operation::StatFs,
        Request::GetLock(_) => Operation::Lock,
        Request::Mutate { durable, command, .. } => of_command(command, *durable),
        Request::Sync => Operation::Sync,
        Request::PutChunks { .. } => Operation::PutChunks,
        Request::GetChunks { .. } => Operation::GetChunks,
        Request::Goodbye => Operation::Session,
        Request::Admin(_) => Operation::Admin,
        Request::LockWait { .. }
        | Request::Ping
        | Request::Hello(_)
        | Request::Enrol(_)
        | Request::Join(_)
        | Request::Renew { .. }
        | Request::Subscribe
        | Request::Raft
        | Request::Replica
        | Request::Node(_) => return None,
    })
}

fn of_command(command: &Command, durable: bool) -> Operation {
    match command {
        Command::Create(_) => Operation::Create,
        Command::Link { .. } => Operation::Link,
        Command::Unlink(_) => Operation::Unlink,
        Command::Rename(_) => Operation::Rename,
        Command::SetAttr(_) => Operation::SetAttr,
        Command::SetXattr { .. } | Command::RemoveXattr { .. } => Operation::SetXattr,
        Command::Write(_) if durable => Operation::WriteDurable,
        Command::Write(_) => Operation::Write,
        Command::Allocate(_) => Operation::Allocate,
        Command::CopyRange(_) => Operation::CopyRange,
        Command::Lock(_) | Command::UnlockOwner { .. } => Operation::Lock,
        Command::OpenSession(_) | Command::CloseSession { .. } | Command::ReleaseOrphans { .. } => {
            Operation::Session
        }
        Command::Settle(_)
        | Command::Repair(_)
        | Command::Reap { .. }
        | Command::BeginDelete { .. }
        | Command::EndDelete { .. }
        | Command::InitCluster { .. }
        | Command::SetNode(_)
        | Command::CreateToken(_)
        | Command::UseToken { .. }
        | Command::RevokeCertificate { .. }
        | Command::RecordCertificate { .. }
        | Command::CreateNodeToken(_)
        | Command::JoinNode { .. }
        | Command::SetNodeState { .. }
        | Command::SetProtection(_)
        | Command::SetShards(_)
        | Command::Rotate(_)
        | Command::RenewCertificate { .. }
        | Command::RemoveLost { .. } => Operation::Admin,
    }
}
