//! Every value of the state machine: one version byte, then postcard.
//!
//! Types that `raftmeta-types` has are stored as they are there (`Inode`, `Lock` lists, `NodeInfo`,
//! `ShardInfo`, `TokenInfo`, `CertificateInfo`, `SessionInfo`, `ClusterInfo`); the others are here.
//! Extended attributes hold their bytes after the version byte as they are.

use std::collections::VecDeque;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use raftmeta_types::{
    ChunkHash, Epoch, ExtentData, FileKind, Ino, MetaResult, Reply, SessionId, Version,
};

use crate::kv::{KvError, KvRead, Pair};

/// First byte of every value written by this version.
pub const VERSION: u8 = 1;

/// `D`: what an entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    pub ino: Ino,
    pub kind: FileKind,
}

/// `E`: an extent without its offset, which is in the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentRecord {
    pub len: u32,
    pub data: ExtentData,
    pub version: Version,
}

/// `O`: who holds an inode without links open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// Ascending, never empty.
    pub sessions: Vec<SessionId>,
    /// Made by `O_TMPFILE`: a link may still be given to it.
    pub linkable: bool,
}

/// `Y`: a deletion that the shard has to carry out before it adopts `epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDelete {
    pub epoch: Epoch,
    pub hashes: Vec<ChunkHash>,
}

/// `F`: which of a shard's last deletions are remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Every deletion with a greater epoch is remembered.
    pub since: Epoch,
    /// Epoch and number of chunks of each, ascending.
    pub deletions: VecDeque<(Epoch, u32)>,
}

/// `s`: the last command of a slot and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub seq: u64,
    pub answer: MetaResult<Reply>,
}

/// `M counters`: totals that would be dear to recount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Inodes of every kind, orphans included.
    pub inodes: u64,
    /// Sum of the sizes of all regular files, in bytes.
    pub logical_bytes: u64,
}

pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("plain data always serialises")
}

pub fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, KvError> {
    let damaged = |reason: String| KvError::Damaged { key: key.escape_ascii().to_string(), reason };
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| damaged(error.to_string()))
        }
        Some((version, _)) => Err(damaged(format!(
            "record version {version}, and this program reads {VERSION}: start the one that wrote it"
        ))),
        None => Err(damaged("empty".into())),
    }
}

/// Reads and decodes one record.
pub fn get<K: KvRead + ?Sized, T: DeserializeOwned>(
    kv: &K,
    key: &[u8],
) -> Result<Option<T>, KvError> {
    kv.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Decodes what a scan found.
pub fn decode_all<T: DeserializeOwned>(pairs: Vec<Pair>) -> Result<Vec<(Vec<u8>, T)>, KvError> {
    pairs.into_iter().map(|(key, bytes)| decode(&key, &bytes).map(|value| (key, value))).collect()
}

#[cfg(test)]
mod tests;
