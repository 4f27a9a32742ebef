//! Every key of the state machine. Numbers are big-endian, so that order is meaning.
//!
//! ```text
//! I <ino>                    inode
//! D <parent ino> <name>      dentry: inode and type
//! E <ino> <file offset>      extent
//! U <ino> <file offset>      inline extent that waits to be put into a chunk: its version
//! X <ino> <name>             extended attribute
//! R <chunk hash>             references held by extents; absent when there are none
//! Z <shard> <chunk hash>     chunk whose last reference went: may be deleted
//! Y <shard>                  deletion under way: epoch and hashes
//! F <shard>                  which of the last deletions are remembered
//! F <shard> <epoch>          what one of them marked
//! G <shard> <chunk hash>     the last of them that marked this chunk
//! L <ino>                    locks
//! O <ino>                    orphan: no links, held open by sessions
//! B <ino>                    dead: the inode is gone, its extents wait to be freed
//! S <session>                client session
//! s <session> <slot>         last sequence number of the slot and its reply
//! N <node>                   node
//! P <shard>                  shard: placement and gc epoch
//! T <token hash>             enrolment token of a client
//! t <token hash>             enrolment token of a node
//! C <serial>                 certificate
//! c <serial>                 certificate of a client of which the authority is being replaced
//! M <name>                   single records: cluster, authority, its replacement, counters, next inode, …
//! ```

use raftmeta_types::{ChunkHash, Epoch, Ino, NodeId, SessionId, ShardId};

pub const CLUSTER: &[u8] = b"Mcluster";
pub const AUTHORITY: &[u8] = b"Mauthority";
pub const AUTHORITY_STEP: &[u8] = b"Mauthority_step";
pub const ROTATION: &[u8] = b"Mrotation";
pub const COUNTERS: &[u8] = b"Mcounters";
pub const NEXT_INO: &[u8] = b"Mnext_ino";
pub const PROTECTION: &[u8] = b"Mprotection";
pub const MAP_VERSION: &[u8] = b"Mmap_version";

fn key(class: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(class);
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// First key and end (exclusive) of everything that starts with `prefix`.
pub fn prefix_range(prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    (prefix.to_vec(), end)
}

/// Range of a whole class.
pub fn class(class: u8) -> (Vec<u8>, Vec<u8>) {
    (vec![class], vec![class + 1])
}

pub fn inode(ino: Ino) -> Vec<u8> {
    key(b'I', &[&ino.0.to_be_bytes()])
}

pub fn dentry(parent: Ino, name: &[u8]) -> Vec<u8> {
    key(b'D', &[&parent.0.to_be_bytes(), name])
}

/// Range of all entries of a directory.
pub fn dentries(parent: Ino) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&dentry(parent, b""))
}

pub fn extent(ino: Ino, offset: u64) -> Vec<u8> {
    key(b'E', &[&ino.0.to_be_bytes(), &offset.to_be_bytes()])
}

/// Range of all extents of an inode.
pub fn extents(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&key(b'E', &[&ino.0.to_be_bytes()]))
}

pub fn unsettled(ino: Ino, offset: u64) -> Vec<u8> {
    key(b'U', &[&ino.0.to_be_bytes(), &offset.to_be_bytes()])
}

/// Range of an inode's unsettled extents.
pub fn unsettled_of(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&key(b'U', &[&ino.0.to_be_bytes()]))
}

pub fn xattr(ino: Ino, name: &[u8]) -> Vec<u8> {
    key(b'X', &[&ino.0.to_be_bytes(), name])
}

/// Range of all extended attributes of an inode.
pub fn xattrs(ino: Ino) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&xattr(ino, b""))
}

pub fn references(hash: &ChunkHash) -> Vec<u8> {
    key(b'R', &[&hash.0])
}

pub fn garbage(shard: ShardId, hash: &ChunkHash) -> Vec<u8> {
    key(b'Z', &[&shard.0.to_be_bytes(), &hash.0])
}

/// Range of a shard's garbage.
pub fn garbage_of(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&key(b'Z', &[&shard.0.to_be_bytes()]))
}

pub fn pending_delete(shard: ShardId) -> Vec<u8> {
    key(b'Y', &[&shard.0.to_be_bytes()])
}

/// Summary of the deletions that are remembered.
pub fn remembered(shard: ShardId) -> Vec<u8> {
    key(b'F', &[&shard.0.to_be_bytes()])
}

pub fn deletion(shard: ShardId, epoch: Epoch) -> Vec<u8> {
    key(b'F', &[&shard.0.to_be_bytes(), &epoch.0.to_be_bytes()])
}

pub fn last_deletion(shard: ShardId, hash: &ChunkHash) -> Vec<u8> {
    key(b'G', &[&shard.0.to_be_bytes(), &hash.0])
}

pub fn locks(ino: Ino) -> Vec<u8> {
    key(b'L', &[&ino.0.to_be_bytes()])
}

pub fn orphan(ino: Ino) -> Vec<u8> {
    key(b'O', &[&ino.0.to_be_bytes()])
}

pub fn dead(ino: Ino) -> Vec<u8> {
    key(b'B', &[&ino.0.to_be_bytes()])
}

pub fn session(session: SessionId) -> Vec<u8> {
    key(b'S', &[&session.0.to_be_bytes()])
}

pub fn slot(session: SessionId, slot: u16) -> Vec<u8> {
    key(b's', &[&session.0.to_be_bytes(), &slot.to_be_bytes()])
}

/// Range of a session's slots.
pub fn slots(session: SessionId) -> (Vec<u8>, Vec<u8>) {
    prefix_range(&key(b's', &[&session.0.to_be_bytes()]))
}

pub fn node(node: NodeId) -> Vec<u8> {
    key(b'N', &[&node.0.to_be_bytes()])
}

pub fn shard(shard: ShardId) -> Vec<u8> {
    key(b'P', &[&shard.0.to_be_bytes()])
}

pub fn token(hash: &[u8; 32]) -> Vec<u8> {
    key(b'T', &[hash])
}

pub fn node_token(hash: &[u8; 32]) -> Vec<u8> {
    key(b't', &[hash])
}

pub fn certificate(serial: u64) -> Vec<u8> {
    key(b'C', &[&serial.to_be_bytes()])
}

pub const OLD_CERTIFICATE: u8 = b'c';

pub fn old_certificate(serial: u64) -> Vec<u8> {
    key(OLD_CERTIFICATE, &[&serial.to_be_bytes()])
}

/// The number after the class byte of an `I`, `E`, `O`, … key; the first of them.
pub fn first_number(key: &[u8]) -> u64 {
    number(key, 1)
}

/// The offset in an `E` or `U` key.
pub fn second_number(key: &[u8]) -> u64 {
    number(key, 9)
}

fn number(key: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(part) = key.get(at..at + 8) {
        bytes.copy_from_slice(part);
    }
    u64::from_be_bytes(bytes)
}

/// The last 32 bytes of an `R` or `Z` key.
pub fn hash(key: &[u8]) -> ChunkHash {
    let mut bytes = [0; 32];
    if let Some(part) = key.len().checked_sub(32).and_then(|at| key.get(at..)) {
        bytes.copy_from_slice(part);
    }
    ChunkHash(bytes)
}

/// The name in a `D` or `X` key.
pub fn name(key: &[u8]) -> &[u8] {
    key.get(9..).unwrap_or_default()
}
