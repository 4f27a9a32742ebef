//! What replicas say to each other, byte by byte.
//!
//! ```text
//!   version   1    PROTOCOL_VERSION
//!   payload        postcard of RaftMessage or RaftAnswer, to the end
//! ```
//! One message is at most [`MESSAGE_MAX`] bytes: an append carries what fits, one command always does; a checkpoint
//! goes in parts. A replica that reads a version it does not know refuses the message by name.

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{LogIdOf, SnapshotMetaOf, VoteOf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::group::Types;
use crate::log_store::COMMAND_MAX;

/// Version of the bytes that this replica writes and reads.
pub const PROTOCOL_VERSION: u8 = 1;
/// Largest message or answer, encoded, in bytes.
pub const MESSAGE_MAX: usize = 8 << 20;
/// Bytes of a checkpoint in one message.
pub(crate) const PART_BYTES: usize = 1 << 20;
/// Bytes of entries in one append, unless a single one is larger.
pub(crate) const APPEND_BYTES: usize = 4 << 20;

// An append of one largest command, with its ids and votes.
const _: () = assert!(COMMAND_MAX + 1024 <= MESSAGE_MAX);
const _: () = assert!(APPEND_BYTES < COMMAND_MAX && PART_BYTES < COMMAND_MAX);

/// Which checkpoint this is: files that agree in all of it may be put together from parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointId {
    pub last: Option<LogIdOf<Types>>,
    pub size: u64,
    /// The checksum in its footer, which covers those of its blocks.
    pub sum: u32,
}

/// From replica to replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum RaftMessage {
    /// Entries, or none as a heartbeat.
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    TransferLeader(TransferLeaderRequest<Types>),
    /// A checkpoint comes in parts; the answer says from where on.
    CheckpointBegin {
        vote: VoteOf<Types>,
        meta: SnapshotMetaOf<Types>,
        id: CheckpointId,
    },
    /// `crc` is the crc32c of `bytes`.
    CheckpointPart {
        vote: VoteOf<Types>,
        id: CheckpointId,
        offset: u64,
        crc: u32,
        bytes: Bytes,
    },
    /// All parts were sent: verify it and make it the state.
    CheckpointEnd {
        vote: VoteOf<Types>,
        id: CheckpointId,
    },
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RaftAnswer {
    Append(AppendEntriesResponse<Types>),
    Vote(VoteResponse<Types>),
    TransferLeader(TransferLeaderResponse<Types>),
    /// The next part of the checkpoint to send.
    CheckpointAt {
        offset: u64,
    },
    /// The checkpoint is the state now, or the vote says who leads instead.
    Checkpoint(SnapshotResponse<Types>),
    /// The replica did nothing, for this reason.
    Refused(String),
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a Raft message is empty")]
    Empty,
    #[error(
        "a Raft message of protocol version {found}, this replica speaks {PROTOCOL_VERSION}: \
         bring both nodes to the same release"
    )]
    Version { found: u8 },
    #[error("a Raft message of {size} bytes, at most {MESSAGE_MAX} are allowed")]
    TooLarge { size: usize },
    #[error("a damaged Raft message: {reason}")]
    Malformed { reason: String },
}

fn malformed(reason: impl ToString) -> MessageError {
    MessageError::Malformed { reason: reason.to_string() }
}

fn encode(value: &impl Serialize) -> Result<Bytes, MessageError> {
    let bytes = postcard::to_extend(value, vec![PROTOCOL_VERSION]).map_err(malformed)?;
    match bytes.len() {
        size if size > MESSAGE_MAX => Err(MessageError::TooLarge { size }),
        _ => Ok(bytes.into()),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(MessageError::TooLarge { size: bytes.len() });
    }
    let (version, payload) = bytes.split_first().ok_or(MessageError::Empty)?;
    if *version != PROTOCOL_VERSION {
        return Err(MessageError::Version { found: *version });
    }
    let (value, rest) = postcard::take_from_bytes(payload).map_err(malformed)?;
    match rest.len() {
        0 => Ok(value),
        more => Err(malformed(format_args!("{more} bytes follow its end"))),
    }
}

impl RaftMessage {
    pub fn encode(&self) -> Result<Bytes, MessageError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<RaftMessage, MessageError> {
        decode(bytes)
    }

    /// For logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            RaftMessage::Append(request) if request.entries.is_empty() => "heartbeat",
            RaftMessage::Append(_) => "append",
            RaftMessage::Vote(_) => "vote",
            RaftMessage::PreVote(_) => "pre-vote",
            RaftMessage::TransferLeader(_) => "transfer-leader",
            RaftMessage::CheckpointBegin { .. } => "checkpoint-begin",
            RaftMessage::CheckpointPart { .. } => "checkpoint-part",
            RaftMessage::CheckpointEnd { .. } => "checkpoint-end",
        }
    }

    /// Whether it makes the receiver wait longer before it looks for another leader.
    pub(crate) fn is_from_leader(&self) -> bool {
        !matches!(
            self,
            RaftMessage::Vote(_) | RaftMessage::PreVote(_) | RaftMessage::TransferLeader(_)
        )
    }

    /// Whether the message may be large; small ones must not wait behind it, or a leader is taken for dead.
    pub fn is_bulk(&self) -> bool {
        matches!(self.name(), "append" | "checkpoint-part")
    }
}

impl RaftAnswer {
    pub fn encode(&self) -> Result<Bytes, MessageError> {
        encode(self)
    }

    pub fn decode(bytes: &[u8]) -> Result<RaftAnswer, MessageError> {
        decode(bytes)
    }
}
