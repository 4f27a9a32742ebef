//! Client sessions, and the answers kept so that a retry is not done twice.

use raftmeta_types::cluster::SessionInfo;
use raftmeta_types::command::SLOTS_MAX;
use raftmeta_types::{Envelope, Ino, MetaError, MetaResult, Reply, SessionId};

use super::state::{State, Step, invalid};
use super::{locks, reap};
use crate::keys;
use crate::kv::{Kv, KvError};
use crate::records::{self, Slot};

/// The answer, if it is clear before the command runs: a retry, or a session that may not ask.
pub(super) fn answered(
    kv: &impl Kv,
    envelope: &Envelope,
) -> Result<Option<MetaResult<Reply>>, KvError> {
    if envelope.session == SessionId::SERVER {
        return Ok(None);
    }
    if kv.get(&keys::session(envelope.session))?.is_none() {
        return Ok(Some(Err(MetaError::SessionExpired)));
    }
    if envelope.slot >= SLOTS_MAX || envelope.seq == 0 {
        let reason = format!("slots are 0..{SLOTS_MAX}, sequence numbers start at 1");
        return Ok(Some(Err(MetaError::Invalid(reason))));
    }
    let key = keys::slot(envelope.session, envelope.slot);
    Ok(match records::get::<_, Slot>(kv, &key)? {
        Some(slot) if slot.seq == envelope.seq => Some(slot.answer),
        Some(slot) if slot.seq > envelope.seq => Some(Err(MetaError::OutOfSequence)),
        Some(_) | None => None,
    })
}

pub(super) fn keep_answer(
    kv: &mut impl Kv,
    envelope: &Envelope,
    answer: &MetaResult<Reply>,
) -> Result<(), KvError> {
    let session = envelope.session;
    // A session that has just closed itself keeps nothing.
    if session == SessionId::SERVER || kv.get(&keys::session(session))?.is_none() {
        return Ok(());
    }
    let slot = Slot { seq: envelope.seq, answer: answer.clone() };
    kv.put(&keys::slot(session, envelope.slot), &records::encode(&slot))
}

pub(super) fn open(state: &mut State<'_>, info: &SessionInfo) -> Step<Reply> {
    if info.session == SessionId::SERVER {
        return invalid("session 0 is the server's");
    }
    let key = keys::session(info.session);
    match state.get::<SessionInfo>(&key)? {
        Some(existing) if existing == *info => {}
        Some(_) => return Err(MetaError::Exists.into()),
        None => state.put(&key, info)?,
    }
    Ok(Reply::Done)
}

pub(super) fn close(state: &mut State<'_>, session: SessionId) -> Step<Reply> {
    locks::drop_session(state, session)?;
    let orphans = state.scan(&keys::class(b'O'), usize::MAX, false)?;
    let inos: Vec<Ino> = orphans.iter().map(|(key, _)| Ino(keys::first_number(key))).collect();
    reap::release(state, session, &inos)?;
    state.delete_range(&keys::slots(session))?;
    state.delete(&keys::session(session))?;
    Ok(Reply::Done)
}
