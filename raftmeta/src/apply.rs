//! The state machine: one command in, one answer out. One file per family of commands.
//!
//! A command runs over an [`Overlay`]; only if it succeeds are its writes carried over, so a refusal
//! leaves nothing behind but the stored reply of its slot.

mod acl;
mod allocate;
mod cluster;
mod copy;
mod create;
mod extents;
mod gc;
mod link;
mod locks;
mod lost;
mod nodes;
mod reap;
mod rename;
mod repair;
mod rotation;
mod sessions;
mod setattr;
mod settle;
mod state;
mod unlink;
mod write;
mod xattr;

#[cfg(test)]
mod tests;

use raftmeta_types::{Command, Envelope, MetaResult, Reply, Version};

use crate::kv::{Kv, KvError, Overlay};
use state::{State, Step, Stop};

pub use acl::{ACL_ACCESS, ACL_DEFAULT};
pub use extents::INLINE_KEEP_MAX;
pub(crate) use locks::conflict;
pub use repair::REPAIRS_MAX;
pub(crate) use state::DENTRY_SIZE;
pub use state::EXTENTS_AT_ONCE_MAX;

/// Applies the command of log entry `index`.
///
/// `Err` means that the store failed and the replica must stop. `Ok(Err(..))` is a refusal that every
/// replica computes alike; it leaves no writes but the stored reply of the session's slot.
pub fn apply(
    kv: &mut impl Kv,
    index: Version,
    envelope: &Envelope,
) -> Result<MetaResult<Reply>, KvError> {
    if let Some(answer) = sessions::answered(kv, envelope)? {
        return Ok(answer);
    }
    let mut overlay = Overlay::new(&*kv);
    let outcome = run(&mut State::new(&mut overlay, index, envelope), &envelope.command);
    let writes = overlay.into_writes();
    let answer = match outcome {
        Ok(reply) => {
            for (key, value) in writes {
                match value {
                    Some(value) => kv.put(&key, &value)?,
                    None => kv.delete(&key)?,
                }
            }
            Ok(reply)
        }
        Err(Stop::Refused(refusal)) => Err(refusal),
        Err(Stop::Store(error)) => return Err(error),
    };
    if answer != Ok(Reply::More) {
        sessions::keep_answer(kv, envelope, &answer)?;
    }
    Ok(answer)
}

fn run(state: &mut State<'_>, command: &Command) -> Step<Reply> {
    match command {
        Command::Create(create) => create::create(state, create),
        Command::Link { ino, parent, name } => link::link(state, *ino, *parent, name),
        Command::Unlink(unlink) => unlink::unlink(state, unlink),
        Command::Rename(rename) => rename::rename(state, rename),
        Command::SetAttr(set) => setattr::set_attr(state, set),
        Command::SetXattr { ino, name, value, mode } => xattr::set(state, *ino, name, value, *mode),
        Command::RemoveXattr { ino, name } => xattr::remove(state, *ino, name),
        Command::Write(write) => write::write(state, write),
        Command::Allocate(allocate) => allocate::allocate(state, allocate),
        Command::CopyRange(copy) => copy::copy_range(state, copy),
        Command::Settle(items) => settle::settle(state, items),
        Command::Lock(lock) => locks::lock(state, lock),
        Command::UnlockOwner { ino, owner } => locks::unlock_owner(state, *ino, *owner),
        Command::OpenSession(info) => sessions::open(state, info),
        Command::CloseSession { session } => sessions::close(state, *session),
        Command::ReleaseOrphans { session, inos } => reap::release(state, *session, inos),
        Command::Reap { limit } => reap::reap(state, *limit),
        Command::Repair(repairs) => repair::repair(state, repairs),
        Command::BeginDelete { shard, epoch, hashes } => {
            gc::begin_delete(state, *shard, *epoch, hashes)
        }
        Command::EndDelete { shard, epoch } => gc::end_delete(state, *shard, *epoch),
        Command::InitCluster { cluster, sealed_ca } => cluster::init(state, cluster, sealed_ca),
        Command::SetNode(node) => cluster::set_node(state, node),
        Command::CreateToken(token) => cluster::create_token(state, token),
        Command::UseToken { token_hash, certificate } => {
            cluster::use_token(state, token_hash, certificate)
        }
        Command::RevokeCertificate { serial } => cluster::revoke(state, *serial),
        Command::RecordCertificate { certificate } => {
            cluster::record_certificate(state, certificate)
        }
        Command::CreateNodeToken(token) => cluster::create_node_token(state, token),
        Command::JoinNode { token_hash, certificate, node } => {
            nodes::join(state, token_hash, certificate, node)
        }
        Command::SetNodeState { node, from, to } => nodes::set_state(state, *node, *from, *to),
        Command::SetProtection(protection) => nodes::set_protection(state, *protection),
        Command::SetShards(changes) => nodes::set_shards(state, changes),
        Command::Rotate(step) => rotation::rotate(state, step),
        Command::RenewCertificate { replaced, certificate } => {
            rotation::renew(state, *replaced, certificate)
        }
        Command::RemoveLost { node, heirs } => lost::remove_lost(state, *node, heirs),
    }
}
