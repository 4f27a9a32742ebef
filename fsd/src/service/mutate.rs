//! Commands of clients: allowed, stamped with who has what open, proposed, and told to the others.

use std::sync::Arc;

use fsd_rpc::message::{Event, Failure, Response};
use raftmeta::read;
use raftmeta_types::command::{Rename, RenameMode, Unlink};
use raftmeta_types::{Command, Ino, MetaError, Reply, SessionId};

use super::order::{Held, UnlinkGuard};
use super::read::{register, storage};
use super::{Answer, locks, plain};
use crate::node::Node;

/// Who asks, and under which number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub session: SessionId,
    pub slot: u16,
    pub seq: u64,
    pub durable: bool,
}

impl Numbered {
    pub async fn propose(self, node: &Node, command: Command) -> Result<Reply, Failure> {
        node.propose(self.session, self.slot, self.seq, command, self.durable).await
    }
}

pub(super) async fn mutate(
    node: &Arc<Node>,
    order: Numbered,
    command: Command,
) -> Result<Reply, Failure> {
    match command {
        Command::Unlink(unlink) => unlink_entry(node, order, unlink).await,
        Command::Rename(rename) => rename_entry(node, order, rename).await,
        Command::Create(ref create) => {
            let _held = match create.name.is_empty() {
                true => Held::default(),
                false => node.order.hold(create.parent, &create.name).await,
            };
            let open = create.open;
            let reply = simple(node, order, command).await?;
            // Before anybody can take the name away.
            if open && let Reply::Created { inode, new: true, .. } = &reply {
                register(node, order.session, inode.ino)?;
            }
            Ok(reply)
        }
        Command::Link { parent, ref name, .. } => {
            let _held = node.order.hold(parent, name).await;
            simple(node, order, command).await
        }
        Command::Lock(ref lock) => locks::command(node, order, lock.ino, command).await,
        Command::UnlockOwner { ino, .. } => locks::command(node, order, ino, command).await,
        Command::SetAttr(_)
        | Command::SetXattr { .. }
        | Command::RemoveXattr { .. }
        | Command::Write(_)
        | Command::Allocate(_)
        | Command::CopyRange(_) => simple(node, order, command).await,
        Command::Settle(_)
        | Command::Repair(_)
        | Command::OpenSession(_)
        | Command::CloseSession { .. }
        | Command::ReleaseOrphans { .. }
        | Command::Reap { .. }
        | Command::BeginDelete { .. }
        | Command::EndDelete { .. }
        | Command::InitCluster { .. }
        | Command::SetNode(_)
        | Command::CreateToken(_)
        | Command::UseToken { .. }
        | Command::RevokeCertificate { .. }
        | Command::RecordCertificate { .. }
        | Command::CreateNodeToken(_)
        | Command::JoinNode { .. }
        | Command::SetNodeState { .. }
        | Command::SetProtection(_)
        | Command::SetShards(_)
        | Command::Rotate(_)
        | Command::RenewCertificate { .. }
        | Command::RemoveLost { .. } => {
            Err(Failure::Refused("this command is the node's own".into()))
        }
    }
}

async fn simple(node: &Arc<Node>, order: Numbered, command: Command) -> Result<Reply, Failure> {
    let events = events_of(&command);
    let reply = order.propose(node, command).await;
    match &reply {
        Ok(reply) => {
            node.events.tell(order.session, events);
            if let Reply::Copied { inode, .. } = reply {
                node.events.tell(order.session, vec![Event::Inode { ino: inode.ino, data: true }]);
            }
        }
        Err(Failure::Meta(MetaError::RetryPut(hashes))) => {
            node.upkeep.hold_deletions(hashes, node.cluster.shard_count);
            node.lift(hashes).await;
        }
        Err(_) => {}
    }
    reply
}

/// What others have to hear of a command that binds no other name away.
fn events_of(command: &Command) -> Vec<Event> {
    let entry = |parent: Ino, name: &bytes::Bytes| {
        let entry = Event::Entry { parent, name: name.clone() };
        vec![entry, Event::Inode { ino: parent, data: true }]
    };
    match command {
        Command::Create(create) if create.name.is_empty() => vec![],
        Command::Create(create) => entry(create.parent, &create.name),
        Command::Link { ino, parent, name } => {
            let mut events = entry(*parent, name);
            events.push(Event::Inode { ino: *ino, data: false });
            events
        }
        Command::SetAttr(set) => vec![Event::Inode { ino: set.ino, data: set.size.is_some() }],
        Command::SetXattr { ino, .. } | Command::RemoveXattr { ino, .. } => {
            vec![Event::Inode { ino: *ino, data: false }]
        }
        Command::Write(write) => {
            vec![Event::Inode { ino: write.ino, data: !write.extents.is_empty() }]
        }
        Command::Allocate(allocate) => vec![Event::Inode { ino: allocate.ino, data: true }],
        Command::CopyRange(copy) => vec![Event::Inode { ino: copy.target, data: true }],
        Command::Unlink(_)
        | Command::Rename(_)
        | Command::Settle(_)
        | Command::Repair(_)
        | Command::Lock(_)
        | Command::UnlockOwner { .. }
        | Command::OpenSession(_)
        | Command::CloseSession { .. }
        | Command::ReleaseOrphans { .. }
        | Command::Reap { .. }
        | Command::BeginDelete { .. }
        | Command::EndDelete { .. }
        | Command::InitCluster { .. }
        | Command::SetNode(_)
        | Command::CreateToken(_)
        | Command::UseToken { .. }
        | Command::RevokeCertificate { .. }
        | Command::RecordCertificate { .. }
        | Command::CreateNodeToken(_)
        | Command::JoinNode { .. }
        | Command::SetNodeState { .. }
        | Command::SetProtection(_)
        | Command::SetShards(_)
        | Command::Rotate(_)
        | Command::RenewCertificate { .. }
        | Command::RemoveLost { .. } => vec![],
    }
}

/// An inode that is about to lose a name, and who has it open.
struct Losing<'a> {
    ino: Ino,
    open_by: Vec<SessionId>,
    _guard: UnlinkGuard<'a>,
}

/// Stamps the inode that the entry names, if there is one. The name is held.
fn losing<'a>(node: &'a Node, parent: Ino, name: &[u8]) -> Result<Option<Losing<'a>>, Failure> {
    let entry = read::dentry(&node.group.view(), parent, name).map_err(storage)?;
    Ok(entry.map(|entry| {
        // First say so, then ask who has it open.
        let guard = node.order.unlinking(entry.ino);
        let open_by = node.sessions.lock().holders(entry.ino);
        Losing { ino: entry.ino, open_by, _guard: guard }
    }))
}

impl Losing<'_> {
    fn stamp(&self) -> Vec<(Ino, Vec<SessionId>)> {
        match self.open_by.is_empty() {
            true => Vec::new(),
            false => vec![(self.ino, self.open_by.clone())],
        }
    }

    /// After the command: who was stamped and has closed it meanwhile would never let go of it.
    async fn settle(self, node: &Node, reply: &Reply) -> Result<(), Failure> {
        let Reply::Unlinked { inode: Some(inode), .. } = reply else { return Ok(()) };
        if inode.nlink > 0 {
            return Ok(());
        }
        if self.open_by.is_empty() {
            // It is gone, and its locks with it.
            node.order.locks.wake(inode.ino);
            node.upkeep.kick();
            return Ok(());
        }
        let closed: Vec<SessionId> = {
            let sessions = node.sessions.lock();
            self.open_by.iter().copied().filter(|id| !sessions.holds(*id, self.ino)).collect()
        };
        for session in closed {
            release(node, session, vec![self.ino]).await?;
        }
        Ok(())
    }
}

async fn release(node: &Node, session: SessionId, inos: Vec<Ino>) -> Result<(), Failure> {
    let freed = inos.clone();
    node.command(Command::ReleaseOrphans { session, inos }, false).await?;
    freed.iter().for_each(|ino| node.order.locks.wake(*ino));
    node.upkeep.kick();
    Ok(())
}

async fn unlink_entry(
    node: &Arc<Node>,
    order: Numbered,
    mut unlink: Unlink,
) -> Result<Reply, Failure> {
    let _held = node.order.hold(unlink.parent, &unlink.name).await;
    let losing = losing(node, unlink.parent, &unlink.name)?;
    unlink.open_by = losing.as_ref().map(Losing::stamp).unwrap_or_default();
    let mut events = vec![
        Event::Entry { parent: unlink.parent, name: unlink.name.clone() },
        Event::Inode { ino: unlink.parent, data: true },
    ];
    events.extend(losing.iter().map(|losing| Event::Inode { ino: losing.ino, data: false }));
    let reply = order.propose(node, Command::Unlink(unlink)).await?;
    node.events.tell(order.session, events);
    if let Some(losing) = losing {
        losing.settle(node, &reply).await?;
    }
    Ok(reply)
}

async fn rename_entry(
    node: &Arc<Node>,
    order: Numbered,
    mut rename: Rename,
) -> Result<Reply, Failure> {
    let old = (rename.parent, &rename.name[..]);
    let new = (rename.new_parent, &rename.new_name[..]);
    let _held = node.order.hold_both(old, new).await;
    let replaced = match rename.mode {
        RenameMode::Replace => losing(node, rename.new_parent, &rename.new_name)?,
        RenameMode::NoReplace | RenameMode::Exchange => None,
    };
    rename.open_by = replaced.as_ref().map(Losing::stamp).unwrap_or_default();
    let events = match node.events.has_others(order.session) {
        true => events_of_rename(node, &rename)?,
        false => Vec::new(),
    };
    let reply = order.propose(node, Command::Rename(rename)).await?;
    node.events.tell(order.session, events);
    if let Some(replaced) = replaced {
        replaced.settle(node, &reply).await?;
    }
    Ok(reply)
}

fn events_of_rename(node: &Node, rename: &Rename) -> Result<Vec<Event>, Failure> {
    let view = node.group.view();
    let mut events = Vec::new();
    for (parent, name) in [(rename.parent, &rename.name), (rename.new_parent, &rename.new_name)] {
        events.push(Event::Entry { parent, name: name.clone() });
        events.push(Event::Inode { ino: parent, data: true });
        let entry = read::dentry(&view, parent, name).map_err(storage)?;
        events.extend(entry.map(|entry| Event::Inode { ino: entry.ino, data: false }));
    }
    Ok(events)
}

/// `Request::Close`.
pub(super) async fn close(node: &Arc<Node>, session: SessionId, inos: &[Ino]) -> Answer {
    {
        let mut sessions = node.sessions.lock();
        inos.iter().for_each(|ino| sessions.close(session, *ino));
    }
    // An unlink under way that has stamped this session sees the close afterwards.
    let held: Vec<Ino> = {
        let view = node.group.view();
        let mut held = Vec::new();
        for ino in inos {
            if read::is_held(&view, *ino, session).map_err(storage)? {
                held.push(*ino);
            }
        }
        held
    };
    if !held.is_empty() {
        release(node, session, held).await?;
    }
    plain(Response::Done)
}
