//! The certificate authority and its replacement by a new one, one step at a time.
//!
//! ```text
//!   Begin ─▶ Introduced ─ all nodes trust both ─▶ Issuing ─ no client needs the old one, or Finish ─▶ Showing
//!                                                                                                       │
//!   authority := the new one, everything of the old one forgotten ◀──── all nodes show new certificates ┘
//! ```
//! The leader takes each step when it may; what is checked here keeps a step from being taken twice, and two
//! replacements from running at once. Each step counts `authority_step` up, by which nodes tell how far they are.

use bytes::Bytes;
use raftmeta_types::cluster::{CertificateInfo, Rotation, RotationStage};
use raftmeta_types::command::RotateStep;
use raftmeta_types::{MetaError, Reply};

use super::cluster::record_certificate;
use super::state::{State, Step, invalid};
use crate::keys;

fn rotation(state: &State<'_>) -> Step<Rotation> {
    state.get(keys::ROTATION)?.ok_or(MetaError::NotFound.into())
}

pub(super) fn rotate(state: &mut State<'_>, step: &RotateStep) -> Step<Reply> {
    match step {
        RotateStep::Begin { sealed } => begin(state, sealed),
        RotateStep::Finish => {
            let rotation = rotation(state)?;
            state.put(keys::ROTATION, &Rotation { finish: true, ..rotation })?;
            Ok(Reply::Done)
        }
        RotateStep::Advance { from } => advance(state, *from),
    }
}

fn begin(state: &mut State<'_>, sealed: &Bytes) -> Step<Reply> {
    if state.has(keys::ROTATION)? {
        return Err(MetaError::Exists.into());
    }
    if sealed.is_empty() {
        return invalid("a new authority is not empty");
    }
    let (stage, begun) = (RotationStage::Introduced, state.now);
    let rotation = Rotation { stage, begun, sealed: sealed.clone(), finish: false };
    state.put(keys::ROTATION, &rotation)?;
    count(state)
}

fn advance(state: &mut State<'_>, from: RotationStage) -> Step<Reply> {
    let now = rotation(state)?;
    if now.stage != from {
        return Err(MetaError::Superseded.into());
    }
    match from {
        RotationStage::Introduced => {
            mark_old_certificates(state)?;
            state.put(keys::ROTATION, &Rotation { stage: RotationStage::Issuing, ..now })?;
        }
        RotationStage::Issuing => {
            state.put(keys::ROTATION, &Rotation { stage: RotationStage::Showing, ..now })?;
        }
        RotationStage::Showing => {
            revoke_old_certificates(state)?;
            state.put(keys::AUTHORITY, &now.sealed)?;
            state.delete(keys::ROTATION)?;
            state.delete_range(&keys::class(keys::OLD_CERTIFICATE))?;
        }
    }
    count(state)
}

/// Those of clients: nodes make themselves new ones.
fn mark_old_certificates(state: &mut State<'_>) -> Step<()> {
    for (key, _) in state.scan(&keys::class(b'C'), usize::MAX, false)? {
        let info: CertificateInfo = state.get(&key)?.ok_or(MetaError::NotFound)?;
        if !info.revoked && info.subject.starts_with("client:") && info.expires > state.now {
            state.put(&keys::old_certificate(info.serial), &())?;
        }
    }
    Ok(())
}

/// Those that nobody has renewed: connections that were made with them end.
fn revoke_old_certificates(state: &mut State<'_>) -> Step<()> {
    for (key, _) in state.scan(&keys::class(keys::OLD_CERTIFICATE), usize::MAX, false)? {
        let key = keys::certificate(keys::first_number(&key));
        if let Some(info) = state.get::<CertificateInfo>(&key)? {
            state.put(&key, &CertificateInfo { revoked: true, ..info })?;
        }
    }
    Ok(())
}

fn count(state: &mut State<'_>) -> Step<Reply> {
    let steps: u64 = state.get(keys::AUTHORITY_STEP)?.unwrap_or(0);
    state.put(keys::AUTHORITY_STEP, &(steps + 1))?;
    Ok(Reply::Done)
}

/// A client has a new certificate in the place of this one.
pub(super) fn renew(
    state: &mut State<'_>,
    replaced: u64,
    certificate: &CertificateInfo,
) -> Step<Reply> {
    record_certificate(state, certificate)?;
    no_more(state, replaced)?;
    Ok(Reply::Done)
}

/// Nobody has to wait for this certificate any more.
pub(super) fn no_more(state: &mut State<'_>, serial: u64) -> Step<()> {
    let key = keys::old_certificate(serial);
    if state.has(&key)? {
        state.delete(&key)?;
    }
    Ok(())
}
