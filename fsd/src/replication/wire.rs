//! What replicas of a shard say to each other: postcard in the data part of a frame.
//!
//! A frame's data part holds 8 MiB, a segment 2 MiB; of ops as many go as fit.

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::{ChunkHash, Epoch, NodeId, ShardId};
use serde::{Deserialize, Serialize};

use fsd_rpc::frame::DATA_LEN_MAX;
use fsd_rpc::message::Failure;

use crate::chunks::{
    Applied, ApplyError, ChunkStore, Error, Kind, LiveSum, OpNumber, Plan, SegmentCopy,
    SegmentInfo, SegmentNumber, Settled, ShardOp, Snapshot,
};

/// Bytes of ops in one message, about: what surrounds them is small.
pub(super) const OPS_BYTES_MAX: usize = DATA_LEN_MAX - (1 << 20);

/// From primary to replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    Apply {
        ops: Vec<ShardOp>,
    },
    Settle {
        shard: ShardId,
        epoch: Epoch,
        theirs: Vec<SegmentInfo>,
    },
    Follow {
        shard: ShardId,
        epoch: Epoch,
        gc_epoch: Epoch,
        live: LiveSum,
    },
    Compare {
        shard: ShardId,
        theirs: Snapshot,
    },
    CaughtUp {
        shard: ShardId,
        epoch: Epoch,
    },
    /// All of it but the first bytes, which are here.
    Segment {
        shard: ShardId,
        number: SegmentNumber,
        have: u32,
    },
    Record {
        hash: ChunkHash,
    },
    Install {
        shard: ShardId,
        epoch: Epoch,
        number: SegmentNumber,
        copy: SegmentCopy,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Done,
    Applied {
        /// Each shard of the ops, with its last op or why none was applied.
        shards: Vec<(ShardId, Result<OpNumber, Refused>)>,
        /// There are free segments outside the reserve.
        room: bool,
    },
    Settled(Settled),
    Plan(Plan),
    Segment(SegmentCopy),
    /// Of a chunk, byte by byte.
    Record(Bytes),
    Failed {
        kind: Kind,
        why: String,
    },
}

/// Why ops were not applied, as far as the primary branches on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refused {
    StaleEpoch(Epoch),
    NoSpace,
    Other(String),
}

pub(super) fn encode(value: &impl Serialize) -> Result<Bytes, Error> {
    match postcard::to_stdvec(value) {
        Ok(bytes) if bytes.len() <= DATA_LEN_MAX => Ok(bytes.into()),
        Ok(bytes) => {
            let why = format!("a message of {} bytes between replicas", bytes.len());
            Err(Error::new(Kind::Invalid, why))
        }
        Err(error) => Err(Error::new(Kind::Invalid, error.to_string())),
    }
}

pub(super) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Error> {
    let malformed = |why: String| Error::new(Kind::Invalid, format!("between replicas: {why}"));
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(malformed(format!("{} bytes follow the message", rest.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// `Request::Replica`: what another node, the primary of a shard, asks the store of this one.
pub(crate) async fn answer<V: Volume>(
    store: &ChunkStore<V>,
    from: NodeId,
    data: &[u8],
) -> Result<Bytes, Failure> {
    let ask: Ask = decode(data).map_err(|error| Failure::Refused(error.to_string()))?;
    let told = match perform(store, ask).await {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(%from, %error, "a primary's request is refused");
            Told::Failed { kind: error.kind(), why: error.to_string() }
        }
    };
    encode(&told).map_err(|error| Failure::Storage(error.to_string()))
}

async fn perform<V: Volume>(store: &ChunkStore<V>, ask: Ask) -> Result<Told, Error> {
    Ok(match ask {
        Ask::Apply { ops } => {
            let shards = store.apply(ops).await.into_iter().map(told).collect();
            Told::Applied { shards, room: store.has_room() }
        }
        Ask::Settle { shard, epoch, theirs } => {
            Told::Settled(store.settle(shard, epoch, &theirs).await?)
        }
        Ask::Follow { shard, epoch, gc_epoch, live } => {
            store.follow(shard, epoch, gc_epoch, live).await?;
            Told::Done
        }
        Ask::Compare { shard, theirs } => Told::Plan(store.compare(shard, &theirs).await?),
        Ask::CaughtUp { shard, epoch } => {
            store.caught_up(shard, epoch).await?;
            Told::Done
        }
        Ask::Segment { shard, number, have } => {
            Told::Segment(store.copy_segment(shard, number, have).await?)
        }
        Ask::Record { hash } => Told::Record(store.read_record(&hash).await?.into()),
        Ask::Install { shard, epoch, number, copy } => {
            store.install_segment(shard, epoch, number, copy).await?;
            Told::Done
        }
    })
}

fn told(Applied { shard, result }: Applied) -> (ShardId, Result<OpNumber, Refused>) {
    let refused = |error: ApplyError| match error {
        ApplyError::StaleEpoch(epoch) => Refused::StaleEpoch(epoch),
        ApplyError::NoSpace => Refused::NoSpace,
        other => Refused::Other(other.to_string()),
    };
    (shard, result.map_err(refused))
}
