//! The cluster map: creation, nodes, tokens, certificates, and the counter of inode numbers.

use raftmeta_types::cluster::{
    CertificateInfo, ClusterInfo, NodeInfo, ShardInfo, TokenInfo, TokenRefusal,
};
use raftmeta_types::{Epoch, FileKind, Ino, Inode, MetaError, NodeId, Reply, ShardId};

use super::rotation;
use super::state::{State, Step, invalid};
use crate::keys;

/// The node that creates a cluster.
const FIRST_NODE: NodeId = NodeId(1);

/// The next inode number: `site:4 | group:12 | sequence:48`.
pub(super) fn next_ino(state: &mut State<'_>) -> Step<Ino> {
    let cluster: ClusterInfo = state.get(keys::CLUSTER)?.ok_or(MetaError::NotFound)?;
    let sequence: u64 = state.get(keys::NEXT_INO)?.unwrap_or(Ino::ROOT.0 + 1);
    if sequence >> Ino::SEQUENCE_BITS != 0 {
        return Err(MetaError::NoSpace.into());
    }
    state.put(keys::NEXT_INO, &(sequence + 1))?;
    Ok(Ino(u64::from(cluster.site) << 60 | sequence))
}

pub(super) fn init(state: &mut State<'_>, cluster: &ClusterInfo, sealed_ca: &[u8]) -> Step<Reply> {
    match state.get::<ClusterInfo>(keys::CLUSTER)? {
        Some(existing) if existing == *cluster => return Ok(Reply::Done),
        Some(_) => return Err(MetaError::Exists.into()),
        None => {}
    }
    if !(1..=15).contains(&cluster.site) {
        return invalid("a site is a number from 1 to 15");
    }
    if !cluster.shard_count.is_power_of_two() || cluster.shard_count > 1 << 16 {
        return invalid("the number of shards is a power of two from 1 to 65536");
    }
    state.put(keys::CLUSTER, cluster)?;
    state.put(keys::AUTHORITY, &sealed_ca)?;
    for id in 0..cluster.shard_count {
        let id = ShardId(id as u16);
        let shard = ShardInfo {
            id,
            epoch: Epoch(1),
            gc_epoch: Epoch(0),
            primary: FIRST_NODE,
            in_sync: vec![FIRST_NODE],
        };
        state.put(&keys::shard(id), &shard)?;
    }
    let mut root = Inode {
        ino: Ino::ROOT,
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        size: 0,
        allocated: 0,
        atime: state.now,
        mtime: state.now,
        ctime: state.now,
        btime: state.now,
        rdev: 0,
        version: state.version,
        data_version: state.version,
        parent: Ino::ROOT,
        target: bytes::Bytes::new(),
        has_acl: false,
    };
    state.put_inode(&mut root)?;
    Ok(Reply::Done)
}

pub(super) fn set_node(state: &mut State<'_>, node: &NodeInfo) -> Step<Reply> {
    if node.id.0 == 0 {
        return invalid("node numbers start at 1");
    }
    state.put(&keys::node(node.id), node)?;
    Ok(Reply::Done)
}

pub(super) fn create_token(state: &mut State<'_>, token: &TokenInfo) -> Step<Reply> {
    new_token(state, &keys::token(&token.hash), token)
}

pub(super) fn create_node_token(state: &mut State<'_>, token: &TokenInfo) -> Step<Reply> {
    new_token(state, &keys::node_token(&token.hash), token)
}

fn new_token(state: &mut State<'_>, key: &[u8], token: &TokenInfo) -> Step<Reply> {
    if state.has(key)? {
        return Err(MetaError::Exists.into());
    }
    state.put(key, token)?;
    Ok(Reply::Done)
}

pub(super) fn use_token(
    state: &mut State<'_>,
    hash: &[u8; 32],
    certificate: &CertificateInfo,
) -> Step<Reply> {
    take_use(state, &keys::token(hash))?;
    record_certificate(state, certificate)
}

/// Takes one use of the token under this key.
pub(super) fn take_use(state: &mut State<'_>, key: &[u8]) -> Step<()> {
    let refuse = |refusal| Err(MetaError::Token(refusal).into());
    let Some(mut token) = state.get::<TokenInfo>(key)? else {
        return refuse(TokenRefusal::Unknown);
    };
    if token.uses_left == 0 {
        return refuse(TokenRefusal::Used);
    }
    if state.now >= token.expires {
        return refuse(TokenRefusal::Expired);
    }
    token.uses_left -= 1;
    state.put(key, &token)
}

pub(super) fn record_certificate(
    state: &mut State<'_>,
    certificate: &CertificateInfo,
) -> Step<Reply> {
    let key = keys::certificate(certificate.serial);
    if state.has(&key)? {
        return Err(MetaError::Exists.into());
    }
    state.put(&key, certificate)?;
    Ok(Reply::Done)
}

pub(super) fn revoke(state: &mut State<'_>, serial: u64) -> Step<Reply> {
    let key = keys::certificate(serial);
    let mut certificate: CertificateInfo = state.get(&key)?.ok_or(MetaError::NotFound)?;
    certificate.revoked = true;
    state.put(&key, &certificate)?;
    rotation::no_more(state, serial)?;
    Ok(Reply::Done)
}
