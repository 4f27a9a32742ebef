//! Connections of others that nodes pass on: at the one end the bytes, at the other who is behind them.

use raftmeta_types::Ino;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, copy_bidirectional};

use super::connection::reply;
use super::{Handler, Peer, Refusal, Shared};
use crate::frame::FrameError;
use crate::message::{Failure, Hello, Origin, Role};
use crate::nodes::Upstream;
use crate::tls::Facts;

/// Passes on what the node that serves said, then everything, until one side ends.
pub(super) async fn pass_on<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    mut upstream: Upstream,
) -> Result<(), FrameError> {
    reply(stream, &upstream.answer, &[]).await?;
    copy_bidirectional(stream, &mut upstream.stream).await?;
    Ok(())
}

/// Who is really there, and what he said: of a node that passes a connection on, and of everybody else.
pub(super) fn behind<H: Handler>(
    shared: &Shared<H>,
    peer: &Peer,
    hello: Hello,
) -> Result<(Peer, Hello, bool), (Refusal, Failure)> {
    let Role::Relayed { from, hello: inner } = hello.role else {
        return Ok((peer.clone(), hello, false));
    };
    if node_of(peer).is_none() || !shared.admits(peer) {
        let why = "only a node of the cluster passes connections on";
        return Err((Refusal::Certificate, Failure::Refused(why.into())));
    }
    let peer = match from {
        Origin::Unix { uid, gid } => Peer::Unix { uid, gid, pid: None },
        Origin::Tls { subject, serial, expires_secs, address } => {
            Peer::Tls { certificate: Facts { subject, serial, expires_secs }, address }
        }
        Origin::Anonymous { address } => Peer::TlsAnonymous { address },
    };
    match inner.role {
        Role::Node { .. } | Role::Relayed { .. } => {
            let why = "what is passed on is a client's";
            Err((Refusal::Garbage, Failure::Protocol(why.into())))
        }
        Role::NewSession { .. } | Role::Session { .. } | Role::Admin | Role::Enrol => {
            Ok((peer, *inner, true))
        }
    }
}

/// The number in the certificate of a node.
pub(super) fn node_of(peer: &Peer) -> Option<u64> {
    match peer {
        Peer::Tls { certificate, .. } => certificate.subject.strip_prefix("node:")?.parse().ok(),
        Peer::Unix { .. } | Peer::TlsAnonymous { .. } => None,
    }
}

/// Where the inodes that a client has open belong in its greeting.
pub(super) fn open_of(hello: &mut Hello) -> Option<&mut Vec<Ino>> {
    match &mut hello.role {
        Role::Session { open, .. } => Some(open),
        Role::Relayed { hello, .. } => match &mut hello.role {
            Role::Session { open, .. } => Some(open),
            Role::NewSession { .. }
            | Role::Admin
            | Role::Enrol
            | Role::Node { .. }
            | Role::Relayed { .. } => None,
        },
        Role::NewSession { .. } | Role::Admin | Role::Enrol | Role::Node { .. } => None,
    }
}
