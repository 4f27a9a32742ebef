//! Which authorities this node trusts, the certificate that it shows, and how the leader replaces an authority.
//!
//! ```text
//!   metadata: authority, rotation ─ every round ─▶ follow: TLS of the door, of the way to others, datagrams
//!                    ▲                                │ the step that was taken, in every beat
//!                    └──── advance, while leading ◀───┘
//! ```
//! No step is taken before all nodes have taken the one before it: a node that was not there would find nobody to
//! trust, and nobody would trust it. So a node that is down for good has to be removed first.

use std::sync::Arc;

use fsd_rpc::message::Failure;
use parking_lot::RwLock;
use raftmeta::read;
use raftmeta_types::cluster::{CertificateInfo, NodeInfo, NodeState, RotationStage};
use raftmeta_types::command::RotateStep;
use raftmeta_types::{Command, MetaError};

use super::open::MASTER_KEY;
use super::{Node, NodeError, now};
use crate::authority::{Authorities, Authority};

/// What is trusted and shown now.
#[derive(Debug)]
pub(crate) struct Trust(RwLock<Arc<Authorities>>);

impl Trust {
    pub fn new(authorities: Authorities) -> Trust {
        Trust(RwLock::new(Arc::new(authorities)))
    }
}

impl Node {
    pub(crate) fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.trust.0.read())
    }

    /// A new certificate of this node for its network door, and for the doors of others; its key never leaves
    /// this process.
    pub(crate) fn tls(&self) -> Result<Arc<rustls::ServerConfig>, NodeError> {
        let identity = self.authorities().node_identity(self.id, now())?;
        self.peers.show(&identity)?;
        Ok(fsd_rpc::tls::server_config(&identity)?)
    }

    /// Takes the steps that the metadata has taken.
    pub(super) fn follow_authority(&self) -> Result<(), NodeError> {
        let view = self.group.view();
        if read::authority_step(&view)? == self.authorities().step() {
            return Ok(());
        }
        let master = self.directory.path().join(MASTER_KEY);
        let authorities = Authorities::open(&view, &master, self.cluster.uuid)?;
        let step = authorities.step();
        let keys = authorities.membership_keys();
        let before = std::mem::replace(&mut *self.trust.0.write(), Arc::new(authorities));
        let shown = match self.tls() {
            Ok(tls) => tls,
            Err(error) => {
                // The next round tries again: until then nothing counts as taken.
                *self.trust.0.write() = before;
                return Err(error);
            }
        };
        self.membership.set_keys(&keys, self.cluster.uuid);
        if let Some(doors) = self.doors.get() {
            doors.set_tls(shown);
            doors.recheck();
            let told = |of: &Authorities| (of.signer().fingerprint(), of.successor().is_none());
            if self.leads() && told(&self.authorities()) != told(&before) {
                // Clients hear when they come again who signs, and whether another one is trusted.
                doors.send_away();
            }
        }
        tracing::info!(step, "this node has taken a step in the replacement of the authority");
        Ok(())
    }
}

/// Who is still waited for in the present stage, by name.
pub(crate) struct Waited {
    pub nodes: Vec<String>,
    /// Certificates of the old authority.
    pub clients: Vec<CertificateInfo>,
}

pub(crate) fn waited(node: &Node) -> Result<Waited, raftmeta::KvError> {
    let view = node.group.view();
    let step = read::authority_step(&view)?;
    let beats = node.beats.lock();
    let is_behind = |other: &NodeInfo| match other.id == node.id {
        true => node.authorities().step() != step,
        false => {
            let beat = beats.get(&other.id);
            let told = beat.filter(|beat| !beat.is_silent()).and_then(|beat| beat.usage.as_ref());
            told.is_none_or(|told| told.authority_step != step)
        }
    };
    let nodes = read::nodes(&view)?;
    let members = nodes.into_iter().filter(|other| other.state != NodeState::Removed);
    let nodes = members.filter(is_behind).map(|other| other.name).collect();
    let mut clients = Vec::new();
    for serial in read::old_certificates(&view)? {
        let known = read::certificate(&view, serial)?;
        clients.extend(known.filter(|known| !known.revoked && known.expires > now()));
    }
    Ok(Waited { nodes, clients })
}

/// The leader's part: the next step, if everybody has taken the last one.
pub(super) async fn advance(node: &Arc<Node>) -> Result<(), String> {
    let rotation = read::rotation(&node.group.view()).map_err(|error| error.to_string())?;
    let Some(rotation) = rotation else { return Ok(()) };
    let waited = waited(node).map_err(|error| error.to_string())?;
    let is_due = waited.nodes.is_empty()
        && match rotation.stage {
            RotationStage::Introduced | RotationStage::Showing => true,
            RotationStage::Issuing => rotation.finish || waited.clients.is_empty(),
        };
    if !is_due {
        return Ok(());
    }
    let command = Command::Rotate(RotateStep::Advance { from: rotation.stage });
    match node.command(command, true).await {
        Ok(_) => {
            tracing::info!(after = ?rotation.stage, "the replacement of the authority goes on")
        }
        // Somebody else was faster.
        Err(Failure::Meta(MetaError::Superseded | MetaError::NotFound)) => {}
        Err(failure) => return Err(failure.to_string()),
    }
    Ok(())
}

/// Begins to replace the authority.
pub(crate) async fn rotate(node: &Arc<Node>) -> Result<(), Failure> {
    let failed = |error: NodeError| Failure::Storage(error.to_string());
    let (uuid, name) = (node.cluster.uuid, &node.cluster.name);
    let authority = Authority::create(uuid, name, now()).map_err(|error| failed(error.into()))?;
    let master = node.directory.path().join(MASTER_KEY);
    let sealed = authority.seal(&master, uuid).map_err(|error| failed(error.into()))?;
    node.command(Command::Rotate(RotateStep::Begin { sealed }), true).await?;
    tracing::warn!(new = %authority.fingerprint(), "the authority of the cluster is being replaced");
    Ok(())
}
