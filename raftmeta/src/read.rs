//! Queries. Each works on any [`KvRead`], so also on a snapshot of the store.

use serde::de::DeserializeOwned;

use raftmeta_types::cluster::{
    CertificateInfo, ClusterInfo, NodeInfo, Protection, Rotation, SessionInfo, ShardInfo, TokenInfo,
};
use raftmeta_types::lock::Lock;
use raftmeta_types::{
    ChunkHash, Extent, FileKind, Ino, Inode, NodeId, SessionId, ShardId, Version,
};

use crate::apply;
use crate::keys;
use crate::kv::{KvError, KvRead};
use crate::records::{self, Counters, Dentry, ExtentRecord, Orphan, PendingDelete};

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub ino: Ino,
    pub kind: FileKind,
}

/// An inline extent that waits to be put into a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    pub ino: Ino,
    pub offset: u64,
    pub version: Version,
}

pub fn inode(kv: &impl KvRead, ino: Ino) -> Result<Option<Inode>, KvError> {
    records::get(kv, &keys::inode(ino))
}

/// What the entry names, without its inode.
pub fn dentry(kv: &impl KvRead, parent: Ino, name: &[u8]) -> Result<Option<Dentry>, KvError> {
    records::get(kv, &keys::dentry(parent, name))
}

/// The inode that the entry names.
pub fn lookup(kv: &impl KvRead, parent: Ino, name: &[u8]) -> Result<Option<Inode>, KvError> {
    match dentry(kv, parent, name)? {
        Some(entry) => inode(kv, entry.ino),
        None => Ok(None),
    }
}

/// Entries whose names are greater than `after` (empty: from the start), in name order.
pub fn readdir(
    kv: &impl KvRead,
    parent: Ino,
    after: &[u8],
    limit: usize,
) -> Result<Vec<Entry>, KvError> {
    let (mut from, to) = keys::dentries(parent);
    if !after.is_empty() {
        from = keys::dentry(parent, after);
        from.push(0);
    }
    let entries = records::decode_all::<Dentry>(kv.scan(&from, &to, limit, false)?)?;
    let entry = |(key, dentry): (Vec<u8>, Dentry)| Entry {
        name: keys::name(&key).to_vec(),
        ino: dentry.ino,
        kind: dentry.kind,
    };
    Ok(entries.into_iter().map(entry).collect())
}

/// Extents that meet `from..to` (whole, also where they reach beyond), ascending, at most `limit`.
pub fn extents(
    kv: &impl KvRead,
    ino: Ino,
    from: u64,
    to: u64,
    limit: usize,
) -> Result<Vec<Extent>, KvError> {
    if from >= to {
        return Ok(Vec::new());
    }
    let (first, _) = keys::extents(ino);
    let start = keys::extent(ino, from);
    let mut found = decode_extents(kv.scan(&first, &start, 1, true)?)?;
    found.retain(|extent| extent.offset + u64::from(extent.len) > from);
    let rest = limit.saturating_sub(found.len());
    found.extend(decode_extents(kv.scan(&start, &keys::extent(ino, to), rest, false)?)?);
    found.truncate(limit);
    Ok(found)
}

pub(crate) fn decode_extents(pairs: Vec<crate::kv::Pair>) -> Result<Vec<Extent>, KvError> {
    let extent = |(key, record): (Vec<u8>, ExtentRecord)| Extent {
        offset: keys::second_number(&key),
        len: record.len,
        data: record.data,
        version: record.version,
    };
    Ok(records::decode_all(pairs)?.into_iter().map(extent).collect())
}

pub fn xattr(kv: &impl KvRead, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
    Ok(kv.get(&keys::xattr(ino, name))?.map(|record| record.get(1..).unwrap_or(&[]).to_vec()))
}

/// Names in order.
pub fn xattr_names(kv: &impl KvRead, ino: Ino) -> Result<Vec<Vec<u8>>, KvError> {
    let (from, to) = keys::xattrs(ino);
    let pairs = kv.scan(&from, &to, usize::MAX, false)?;
    Ok(pairs.iter().map(|(key, _)| keys::name(key).to_vec()).collect())
}

/// `F_GETLK`: the first lock that `wanted` would have to wait for.
pub fn get_lock(kv: &impl KvRead, wanted: &Lock) -> Result<Option<Lock>, KvError> {
    Ok(apply::conflict(&locks(kv, wanted.ino)?, wanted).cloned())
}

/// Every lock held on the inode.
pub fn locks(kv: &impl KvRead, ino: Ino) -> Result<Vec<Lock>, KvError> {
    Ok(records::get(kv, &keys::locks(ino))?.unwrap_or_default())
}

/// Unlinked inodes that sessions hold open.
pub fn orphans(kv: &impl KvRead) -> Result<Vec<(Ino, Orphan)>, KvError> {
    let all = class::<Orphan>(kv, b'O')?;
    Ok(all.into_iter().map(|(key, orphan)| (Ino(keys::first_number(&key)), orphan)).collect())
}

/// Whether the session holds this unlinked inode open.
pub fn is_held(kv: &impl KvRead, ino: Ino, session: SessionId) -> Result<bool, KvError> {
    let orphan: Option<Orphan> = records::get(kv, &keys::orphan(ino))?;
    Ok(orphan.is_some_and(|orphan| orphan.sessions.contains(&session)))
}

/// Unlinked inodes that this session holds open.
pub fn orphans_of(kv: &impl KvRead, session: SessionId) -> Result<Vec<Ino>, KvError> {
    let mut all = orphans(kv)?;
    all.retain(|(_, orphan)| orphan.sessions.contains(&session));
    Ok(all.into_iter().map(|(ino, _)| ino).collect())
}

pub fn session(kv: &impl KvRead, session: SessionId) -> Result<Option<SessionInfo>, KvError> {
    records::get(kv, &keys::session(session))
}

pub fn sessions(kv: &impl KvRead) -> Result<Vec<SessionInfo>, KvError> {
    values(kv, b'S')
}

pub fn cluster(kv: &impl KvRead) -> Result<Option<ClusterInfo>, KvError> {
    records::get(kv, keys::CLUSTER)
}

/// The sealed key of the cluster's certificate authority.
pub fn authority(kv: &impl KvRead) -> Result<Option<Vec<u8>>, KvError> {
    records::get(kv, keys::AUTHORITY)
}

/// The replacement of the authority, if one is under way.
pub fn rotation(kv: &impl KvRead) -> Result<Option<Rotation>, KvError> {
    records::get(kv, keys::ROTATION)
}

/// Counts the steps of all replacements of the authority.
pub fn authority_step(kv: &impl KvRead) -> Result<u64, KvError> {
    Ok(records::get(kv, keys::AUTHORITY_STEP)?.unwrap_or(0))
}

/// Serials of certificates of clients that the authority which is being replaced has signed.
pub fn old_certificates(kv: &impl KvRead) -> Result<Vec<u64>, KvError> {
    let found = class::<()>(kv, keys::OLD_CERTIFICATE)?;
    Ok(found.iter().map(|(key, ())| keys::first_number(key)).collect())
}

pub fn shard(kv: &impl KvRead, shard: ShardId) -> Result<Option<ShardInfo>, KvError> {
    records::get(kv, &keys::shard(shard))
}

pub fn shards(kv: &impl KvRead) -> Result<Vec<ShardInfo>, KvError> {
    values(kv, b'P')
}

pub fn node(kv: &impl KvRead, node: NodeId) -> Result<Option<NodeInfo>, KvError> {
    records::get(kv, &keys::node(node))
}

pub fn nodes(kv: &impl KvRead) -> Result<Vec<NodeInfo>, KvError> {
    values(kv, b'N')
}

pub fn token(kv: &impl KvRead, hash: &[u8; 32]) -> Result<Option<TokenInfo>, KvError> {
    records::get(kv, &keys::token(hash))
}

pub fn tokens(kv: &impl KvRead) -> Result<Vec<TokenInfo>, KvError> {
    values(kv, b'T')
}

/// A token of a node.
pub fn node_token(kv: &impl KvRead, hash: &[u8; 32]) -> Result<Option<TokenInfo>, KvError> {
    records::get(kv, &keys::node_token(hash))
}

pub fn node_tokens(kv: &impl KvRead) -> Result<Vec<TokenInfo>, KvError> {
    values(kv, b't')
}

/// Counts the changes of the placement of shards.
pub fn map_version(kv: &impl KvRead) -> Result<u64, KvError> {
    Ok(records::get(kv, keys::MAP_VERSION)?.unwrap_or(0))
}

/// One copy where nothing else was said.
pub fn protection(kv: &impl KvRead) -> Result<Protection, KvError> {
    Ok(records::get(kv, keys::PROTECTION)?.unwrap_or(Protection::SINGLE))
}

pub fn certificate(kv: &impl KvRead, serial: u64) -> Result<Option<CertificateInfo>, KvError> {
    records::get(kv, &keys::certificate(serial))
}

pub fn certificates(kv: &impl KvRead) -> Result<Vec<CertificateInfo>, KvError> {
    values(kv, b'C')
}

pub fn counters(kv: &impl KvRead) -> Result<Counters, KvError> {
    Ok(records::get(kv, keys::COUNTERS)?.unwrap_or_default())
}

/// How many extents reference the chunk.
pub fn references(kv: &impl KvRead, hash: &ChunkHash) -> Result<u64, KvError> {
    Ok(records::get(kv, &keys::references(hash))?.unwrap_or(0))
}

/// Chunks of the shard whose last reference went: candidates for `BeginDelete`.
pub fn garbage(kv: &impl KvRead, shard: ShardId, limit: usize) -> Result<Vec<ChunkHash>, KvError> {
    let (from, to) = keys::garbage_of(shard);
    Ok(kv.scan(&from, &to, limit, false)?.iter().map(|(key, _)| keys::hash(key)).collect())
}

/// The deletion that the shard has to carry out before it serves puts.
pub fn pending_delete(kv: &impl KvRead, shard: ShardId) -> Result<Option<PendingDelete>, KvError> {
    records::get(kv, &keys::pending_delete(shard))
}

/// Every deletion under way, by shard.
pub fn pending_deletes(kv: &impl KvRead) -> Result<Vec<(ShardId, PendingDelete)>, KvError> {
    let all = class::<PendingDelete>(kv, b'Y')?;
    let shard = |key: &[u8]| match key {
        [_, high, low] => ShardId(u16::from_be_bytes([*high, *low])),
        _ => ShardId(0),
    };
    Ok(all.into_iter().map(|(key, pending)| (shard(&key), pending)).collect())
}

/// Inline extents that wait to be put into chunks, by inode and offset, after `after`.
pub fn unsettled(
    kv: &impl KvRead,
    after: Option<(Ino, u64)>,
    limit: usize,
) -> Result<Vec<Unsettled>, KvError> {
    let (mut from, to) = keys::class(b'U');
    if let Some((ino, offset)) = after {
        from = keys::unsettled(ino, offset);
        from.push(0);
    }
    let found = records::decode_all::<Version>(kv.scan(&from, &to, limit, false)?)?;
    let unsettled = |(key, version): (Vec<u8>, Version)| Unsettled {
        ino: Ino(keys::first_number(&key)),
        offset: keys::second_number(&key),
        version,
    };
    Ok(found.into_iter().map(unsettled).collect())
}

/// Whether unlinked files have left extents for `Reap`.
pub fn has_dead(kv: &impl KvRead) -> Result<bool, KvError> {
    let (from, to) = keys::class(b'B');
    Ok(!kv.scan(&from, &to, 1, false)?.is_empty())
}

pub(crate) fn class<T: DeserializeOwned>(
    kv: &impl KvRead,
    class: u8,
) -> Result<Vec<(Vec<u8>, T)>, KvError> {
    let (from, to) = keys::class(class);
    records::decode_all(kv.scan(&from, &to, usize::MAX, false)?)
}

fn values<T: DeserializeOwned>(kv: &impl KvRead, of: u8) -> Result<Vec<T>, KvError> {
    Ok(class(kv, of)?.into_iter().map(|(_, value)| value).collect())
}
