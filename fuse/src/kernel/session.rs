//! The threads that read `/dev/fuse`: takes requests apart, calls `ops`, writes the answers.

use std::collections::HashSet;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::message::{Event, Request, Response};
use parking_lot::Mutex;
use raftmeta_types::command::*;
use raftmeta_types::lock::{Lock, LockFamily, LockKind, LockOwner};
use raftmeta_types::{FileKind, Ino, Inode, MetaError, Reply, Time};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::abi::{self, Reader, Writer};
use super::mount::{MountError, MountOptions, attach};
use crate::ops::{Core, Result};
use crate::{Backend, BackendError, errno};

const O_TRUNC: u32 = 0o1000;
const O_EXCL: u32 = 0o200;
const O_APPEND: u32 = 0o2000;
const O_DSYNC: u32 = 0o10000;
const O_DIRECT: u32 = 0o40000;
/// How often a waiting lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// A mounted file system; serves until it is unmounted.
pub struct Session {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    mountpoint: PathBuf,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

struct Shared {
    fd: OwnedFd,
    core: Core,
    /// Lock requests that wait, and those of them that were interrupted.
    waiting: Mutex<(HashSet<u64>, HashSet<u64>)>,
}

/// Mounts the file system and starts to serve it.
pub fn mount<B: Backend>(
    options: MountOptions,
    backend: B,
) -> std::result::Result<Session, MountError> {
    let core = Core::new(Arc::new(backend), options.cache_bytes);
    let fd = attach(&options)?;
    let shared = Arc::new(Shared { fd, core, waiting: Mutex::default() });
    let weak = Arc::downgrade(&shared);
    shared.core.backend.subscribe(Box::new(move |event| {
        if let Some(shared) = weak.upgrade() {
            shared.on_event(&event);
        }
    }));
    let weak = Arc::downgrade(&shared);
    shared.core.backend.set_open_inodes(Box::new(move || {
        weak.upgrade().map(|shared| shared.core.open_inodes()).unwrap_or_default()
    }));
    let mut threads = Vec::new();
    for number in 0..options.threads.max(2) {
        let shared = shared.clone();
        let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
        threads.push(thread.spawn(move || shared.serve()).map_err(MountError::Thread)?);
    }
    Ok(Session { shared, threads, mountpoint: options.mountpoint })
}

impl Session {
    /// Drops what another session's change made stale.
    pub fn on_event(&self, event: &Event) {
        self.shared.on_event(event);
    }

    /// Unmounts; with `force` even while files are open, whose unsent data is then lost.
    pub fn unmount(&self, force: bool) -> std::result::Result<(), MountError> {
        let flags =
            if force { UnmountFlags::FORCE | UnmountFlags::DETACH } else { UnmountFlags::empty() };
        rustix::mount::unmount(&self.mountpoint, flags)
            .map_err(|error| MountError::Unmount { path: self.mountpoint.clone(), error })
    }

    /// Waits until it is unmounted.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the mount panicked");
            }
        }
        if let Err(error) = self.shared.core.sync_all() {
            tracing::warn!(%error, "last sync failed");
        }
        self.shared.core.backend.goodbye();
    }
}

/// A request's header.
#[derive(Clone, Copy)]
struct Head {
    opcode: u32,
    unique: u64,
    ino: Ino,
    uid: u32,
    gid: u32,
}

impl Shared {
    fn serve(self: Arc<Shared>) {
        let mut buffer = vec![0; abi::MAX_WRITE as usize + 8192];
        loop {
            match rustix::io::read(&self.fd, &mut buffer[..]) {
                Ok(len) => self.request(&buffer[..len]),
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return,
                Err(error) => {
                    tracing::error!(%error, "reading /dev/fuse failed");
                    return;
                }
            }
        }
    }

    fn request(self: &Arc<Self>, request: &[u8]) {
        let mut reader = Reader(request);
        let head = (|| {
            reader.u32()?;
            let opcode = reader.u32()?;
            let unique = reader.u64()?;
            let ino = Ino(reader.u64()?);
            let (uid, gid) = (reader.u32()?, reader.u32()?);
            reader.u64()?;
            Some(Head { opcode, unique, ino, uid, gid })
        })();
        let Some(head) = head else { return };
        debug_assert_eq!(request.len() - reader.0.len(), abi::IN_HEADER);
        match head.opcode {
            2 => self.core.forget(head.ino),
            42 => {
                let count = reader.u32().unwrap_or(0);
                reader.u32();
                for _ in 0..count {
                    let (Some(ino), Some(_)) = (reader.u64(), reader.u64()) else { return };
                    self.core.forget(Ino(ino));
                }
            }
            36 => {
                let Some(unique) = reader.u64() else { return };
                let mut waiting = self.waiting.lock();
                if waiting.0.contains(&unique) {
                    waiting.1.insert(unique);
                }
            }
            33 => self.wait_lock(head, reader),
            _ => match self.answer(head, &mut reader) {
                Some(answer) => self.reply(head.unique, answer),
                None => self.reply(head.unique, Err(Errno::INVAL)),
            },
        }
    }

    fn reply(&self, unique: u64, answer: Result<Vec<u8>>) {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error(), Vec::new()),
        };
        self.send(unique, error, &body);
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) {
        let mut head = Writer::default();
        head.u32(16 + body.len() as u32).u32(error as u32).u64(unique);
        // ENOENT: the request was interrupted and forgotten, or nothing of the sort is cached.
        if let Err(error) =
            rustix::io::writev(&self.fd, &[IoSlice::new(&head.0), IoSlice::new(body)])
            && error != Errno::NOENT
        {
            tracing::debug!(%error, unique, "answer not taken");
        }
    }

    fn inval_inode(&self, ino: Ino, data: bool) {
        let mut body = Writer::default();
        // A negative offset drops the attributes only.
        body.u64(ino.0).u64(if data { 0 } else { u64::MAX }).u64(0);
        self.send(0, abi::NOTIFY_INVAL_INODE, &body.0);
    }

    fn on_event(&self, event: &Event) {
        match event {
            Event::Inode { ino, data } => {
                if *data {
                    self.core.invalidate(*ino);
                }
                self.inval_inode(*ino, *data);
            }
            Event::Entry { parent, name } => {
                let mut body = Writer::default();
                body.u64(parent.0).u32(name.len() as u32).u32(0);
                body.0.extend_from_slice(name);
                body.0.push(0);
                self.send(0, abi::NOTIFY_INVAL_ENTRY, &body.0);
            }
            Event::Overflow => self.core.invalidate_all(),
            Event::Stopping => {}
        }
    }

    /// Waits in a thread of its own, so that the unlock it waits for always finds a free worker.
    fn wait_lock(self: &Arc<Self>, head: Head, mut reader: Reader<'_>) {
        let Some(lock) = self.lock_in(head, &mut reader) else {
            return self.reply(head.unique, Err(Errno::INVAL));
        };
        self.waiting.lock().0.insert(head.unique);
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("fuse-lock".to_owned());
        let spawned = thread.spawn(move || {
            let result = loop {
                match shared.set_lock(&lock) {
                    Err(Errno::AGAIN) => {}
                    other => break other,
                }
                if shared.waiting.lock().1.contains(&head.unique) {
                    break Err(Errno::INTR);
                }
                std::thread::sleep(LOCK_RETRY);
            };
            {
                let mut waiting = shared.waiting.lock();
                waiting.0.remove(&head.unique);
                waiting.1.remove(&head.unique);
            }
            shared.reply(head.unique, result.map(|()| Vec::new()));
        });
        if spawned.is_err() {
            self.waiting.lock().0.remove(&head.unique);
            self.reply(head.unique, Err(Errno::NOLCK));
        }
    }

    fn lock_in(&self, head: Head, r: &mut Reader<'_>) -> Option<Lock> {
        let (_, owner, start, end) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let (kind, pid, flags) = (r.u32()?, r.u32()?, r.u32()?);
        Some(Lock {
            ino: head.ino,
            family: if flags & 1 != 0 { LockFamily::Flock } else { LockFamily::Posix },
            owner: LockOwner { session: self.core.backend.session(), owner },
            kind: match kind {
                0 => LockKind::Shared,
                1 => LockKind::Exclusive,
                2 => LockKind::Unlock,
                _ => return None,
            },
            start,
            end: if end >= i64::MAX as u64 { u64::MAX } else { end },
            pid,
        })
    }

    /// Unlocking commits what was written under the lock; locking makes the next read ask again.
    fn set_lock(&self, lock: &Lock) -> Result<()> {
        if lock.kind == LockKind::Unlock {
            self.core.commit(lock.ino)?;
        }
        match self.core.backend.mutate(false, Command::Lock(lock.clone())) {
            Ok(_) => {}
            Err(BackendError::Failed(fsd_rpc::message::Failure::Meta(MetaError::WouldBlock))) => {
                return Err(Errno::AGAIN);
            }
            Err(error) => return Err(errno::of(&error)),
        }
        if lock.kind != LockKind::Unlock {
            self.core.invalidate(lock.ino);
            self.inval_inode(lock.ino, true);
        }
        Ok(())
    }

    /// `None`: the request is malformed.
    fn answer(&self, head: Head, r: &mut Reader<'_>) -> Option<Result<Vec<u8>>> {
        let core = &self.core;
        let ino = head.ino;
        Some(match head.opcode {
            1 => core.lookup(ino, r.name()?).map(|inode| entry(&inode)),
            3 => core.getattr(ino).map(|inode| attr_out(&inode)),
            4 => core.setattr(setattr_in(ino, r)?).map(|inode| attr_out(&inode)),
            5 => core.call(&Request::ReadLink { ino }).and_then(|answer| match answer.0 {
                Response::Target(target) => Ok(target.to_vec()),
                _ => Err(Errno::IO),
            }),
            6 => {
                let (name, target) = (r.name()?, r.name()?);
                let mut create = create(head, name, FileKind::Symlink, 0o777, 0);
                create.target = Bytes::copy_from_slice(target);
                core.create(create).map(|made| entry(&made.0))
            }
            8 => {
                let (mode, rdev, umask, _) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
                let mut create = create(head, r.name()?, kind_of(mode)?, mode, umask);
                create.rdev = rdev;
                core.create(create).map(|made| entry(&made.0))
            }
            9 => {
                let (mode, umask) = (r.u32()?, r.u32()?);
                let create = create(head, r.name()?, FileKind::Directory, mode, umask);
                core.create(create).map(|made| entry(&made.0))
            }
            10 | 11 => done(core.mutate(Command::Unlink(Unlink {
                parent: ino,
                name: Bytes::copy_from_slice(r.name()?),
                directory: head.opcode == 11,
                open_by: Vec::new(),
            }))),
            12 | 45 => {
                let new_parent = Ino(r.u64()?);
                let flags = if head.opcode == 45 { (r.u32()?, r.u32()?).0 } else { 0 };
                let mode = match flags {
                    0 => RenameMode::Replace,
                    1 => RenameMode::NoReplace,
                    2 => RenameMode::Exchange,
                    _ => return Some(Err(Errno::INVAL)),
                };
                done(core.mutate(Command::Rename(Rename {
                    parent: ino,
                    name: Bytes::copy_from_slice(r.name()?),
                    new_parent,
                    new_name: Bytes::copy_from_slice(r.name()?),
                    mode,
                    open_by: Vec::new(),
                })))
            }
            13 => core.link(Ino(r.u64()?), ino, r.name()?).map(|inode| entry(&inode)),
            14 => {
                let flags = r.u32()?;
                core.open(ino, flags & O_TRUNC != 0, false)
                    .map(|(fh, keep)| open_out(fh, keep, flags))
            }
            15 => {
                let (fh, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
                core.read(fh, offset, size)
            }
            16 => {
                let (fh, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
                let (_, _, flags, _) = (r.u32()?, r.u64()?, r.u32()?, r.u32()?);
                let data = r.bytes(size as usize)?;
                let (append, sync) = (flags & O_APPEND != 0, flags & O_DSYNC != 0);
                core.write(fh, offset, data, append, sync).map(|()| words(&[size, 0]))
            }
            17 => core.call(&Request::StatFs).and_then(|answer| match answer.0 {
                Response::StatFs(fs) => {
                    let size = u64::from(fs.block_size.max(1));
                    let mut out = Writer::default();
                    out.u64(fs.total_bytes / size).u64(fs.free_bytes / size);
                    out.u64(fs.available_bytes / size).u64(fs.inodes).u64(fs.inodes_free);
                    out.u32(fs.block_size).u32(255).u32(fs.block_size).u32(0);
                    out.0.extend_from_slice(&[0; 24]);
                    Ok(out.0)
                }
                _ => Err(Errno::IO),
            }),
            18 => {
                let (fh, _, flags, owner) = (r.u64()?, r.u32()?, r.u32()?, r.u64()?);
                if flags & 2 != 0 {
                    let unlock = Lock {
                        ino,
                        family: LockFamily::Flock,
                        owner: LockOwner { session: core.backend.session(), owner },
                        kind: LockKind::Unlock,
                        start: 0,
                        end: u64::MAX,
                        pid: 0,
                    };
                    if let Err(error) = self.set_lock(&unlock) {
                        tracing::warn!(ino = ino.0, %error, "unlock at close failed");
                    }
                }
                core.release(fh);
                Ok(Vec::new())
            }
            20 => core.sync(r.u64()?).map(|()| Vec::new()),
            25 => {
                let (fh, _, owner) = (r.u64()?, r.u64()?, r.u64()?);
                let flushed = core.sync(fh);
                // The kernel asks at every close; POSIX drops the process's locks then.
                let unlocked = core.mutate(Command::UnlockOwner { ino, owner });
                flushed.and(unlocked).map(|_| Vec::new())
            }
            21 => {
                let (size, flags, name) = (r.u32()?, r.u32()?, r.name()?);
                done(core.mutate(Command::SetXattr {
                    ino,
                    name: Bytes::copy_from_slice(name),
                    value: Bytes::copy_from_slice(r.bytes(size as usize)?),
                    mode: match flags {
                        1 => XattrMode::Create,
                        2 => XattrMode::Replace,
                        _ => XattrMode::Set,
                    },
                }))
            }
            22 => {
                let (size, _, name) = (r.u32()?, r.u32()?, r.name()?);
                let name = Bytes::copy_from_slice(name);
                core.call(&Request::GetXattr { ino, name }).and_then(|answer| match answer.0 {
                    Response::Xattr(value) => sized(size, value.to_vec()),
                    _ => Err(Errno::IO),
                })
            }
            23 => {
                let size = r.u32()?;
                core.call(&Request::ListXattr { ino }).and_then(|answer| match answer.0 {
                    Response::Xattrs(names) => sized(
                        size,
                        names.iter().flat_map(|name| name.iter().copied().chain([0])).collect(),
                    ),
                    _ => Err(Errno::IO),
                })
            }
            24 => {
                let name = Bytes::copy_from_slice(r.name()?);
                done(core.mutate(Command::RemoveXattr { ino, name }))
            }
            26 => {
                let (_, minor, readahead, flags) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
                let mut out = Writer::default();
                out.u32(7).u32(minor.min(36)).u32(readahead).u32(flags & abi::INIT_FLAGS);
                out.u16(64).u16(48).u32(abi::MAX_WRITE).u32(1);
                out.u16((abi::MAX_WRITE / 4096) as u16).u16(0).u32(0);
                out.0.resize(64, 0);
                Ok(out.0)
            }
            27 => Ok(open_out(core.opendir(), false, 0)),
            28 | 44 => {
                let (fh, offset, size) = (r.u64()?, r.u64()?, r.u32()?);
                self.readdir(ino, fh, offset, size as usize, head.opcode == 44)
            }
            29 => {
                core.releasedir(r.u64()?);
                Ok(Vec::new())
            }
            30 => core.call(&Request::Sync).map(|_| Vec::new()),
            50 => core.sync_all().map(|()| Vec::new()),
            31 => {
                let lock = self.lock_in(head, r)?;
                core.call(&Request::GetLock(lock.clone())).and_then(|answer| match answer.0 {
                    Response::Lock(found) => {
                        let mut out = Writer::default();
                        let found = found.unwrap_or(Lock { kind: LockKind::Unlock, ..lock });
                        let kind = match found.kind {
                            LockKind::Shared => 0,
                            LockKind::Exclusive => 1,
                            LockKind::Unlock => 2,
                        };
                        out.u64(found.start)
                            .u64(found.end.min(i64::MAX as u64))
                            .u32(kind)
                            .u32(found.pid);
                        Ok(out.0)
                    }
                    _ => Err(Errno::IO),
                })
            }
            32 => {
                let lock = self.lock_in(head, r)?;
                self.set_lock(&lock).map(|()| Vec::new())
            }
            34 => Ok(Vec::new()),
            35 | 51 => {
                let (flags, mode, umask, _) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
                let name = r.name().unwrap_or_default();
                // The name the kernel shows for an unnamed file is its own invention.
                let name = if head.opcode == 51 { &[][..] } else { name };
                let mut create = create(head, name, FileKind::Regular, mode, umask);
                create.exclusive = flags & O_EXCL != 0;
                core.create(create).and_then(|(inode, new)| {
                    let truncate = !new && flags & O_TRUNC != 0;
                    let (fh, keep) = core.open(inode.ino, truncate, true)?;
                    let mut out = entry(&inode);
                    out.extend(open_out(fh, keep, flags));
                    Ok(out)
                })
            }
            38 => Ok(Vec::new()),
            43 => {
                let (_, offset, len, mode) = (r.u64()?, r.u64()?, r.u64()?, r.u32()?);
                let keep_size = mode & 1 != 0;
                let mode = match mode & !1 {
                    0 => AllocateMode::Reserve,
                    2 => AllocateMode::PunchHole,
                    0x10 => AllocateMode::ZeroRange,
                    8 => AllocateMode::Collapse,
                    0x20 => AllocateMode::Insert,
                    _ => return Some(Err(Errno::OPNOTSUPP)),
                };
                done(
                    core.change(
                        ino,
                        Command::Allocate(Allocate { ino, mode, offset, len, keep_size }),
                    ),
                )
            }
            46 => {
                let (_, offset, whence) = (r.u64()?, r.u64()?, r.u32()?);
                match whence {
                    3 | 4 => {
                        core.seek(ino, offset, whence == 3).map(|at| at.to_ne_bytes().to_vec())
                    }
                    _ => Err(Errno::INVAL),
                }
            }
            47 => {
                let (_, source_offset, target, _) = (r.u64()?, r.u64()?, Ino(r.u64()?), r.u64()?);
                let (target_offset, len) = (r.u64()?, r.u64()?.min(1 << 30));
                let copy = CopyRange { source: ino, source_offset, target, target_offset, len };
                core.commit(ino)
                    .and_then(|()| core.change(target, Command::CopyRange(copy)))
                    .and_then(|reply| match reply {
                        Reply::Copied { len, .. } => Ok(words(&[len as u32, 0])),
                        _ => Err(Errno::IO),
                    })
            }
            _ => Err(Errno::NOSYS),
        })
    }

    fn readdir(&self, ino: Ino, fh: u64, offset: u64, size: usize, plus: bool) -> Result<Vec<u8>> {
        let mut out = Writer::default();
        let mut full = false;
        if offset == 0 {
            self.core.rewind(fh);
        }
        // Offset n: after the nth entry, of which `.` and `..` are the first two.
        for (number, name) in [(0u64, &b"."[..]), (1, b"..")] {
            if offset <= number {
                full |= !dirent(&mut out, size, ino, number + 1, 4, name, plus.then_some(None));
            }
        }
        if full {
            return Ok(out.0);
        }
        self.core.readdir(ino, fh, offset.saturating_sub(2) as usize, |at, found| {
            let kind = mode_of(found.kind) >> 12;
            let inode = plus.then_some(Some(&found.inode));
            dirent(&mut out, size, found.ino, at as u64 + 3, kind, &found.name, inode)
        })?;
        Ok(out.0)
    }
}

/// Appends an entry unless it does not fit in `size`. `plus`: with the inode, if one is known.
fn dirent(
    out: &mut Writer,
    size: usize,
    ino: Ino,
    offset: u64,
    kind: u32,
    name: &[u8],
    plus: Option<Option<&Inode>>,
) -> bool {
    let before = if plus.is_some() { abi::ENTRY_SIZE } else { 0 };
    if out.0.len() + before + (24 + name.len()).next_multiple_of(8) > size {
        return false;
    }
    match plus {
        Some(Some(inode)) => out.0.extend(entry(inode)),
        Some(None) => out.0.extend_from_slice(&[0; abi::ENTRY_SIZE]),
        None => {}
    }
    out.u64(ino.0).u64(offset).u32(name.len() as u32).u32(kind);
    out.0.extend_from_slice(name);
    out.0.resize(out.0.len().next_multiple_of(8), 0);
    true
}

fn done(result: Result<Reply>) -> Result<Vec<u8>> {
    result.map(|_| Vec::new())
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Answer of the xattr calls: the length if `size` is 0, else the bytes if they fit.
fn sized(size: u32, value: Vec<u8>) -> Result<Vec<u8>> {
    match size as usize {
        0 => Ok(words(&[value.len() as u32, 0])),
        size if size < value.len() => Err(Errno::RANGE),
        _ => Ok(value),
    }
}

fn create(head: Head, name: &[u8], kind: FileKind, mode: u32, umask: u32) -> Create {
    Create {
        parent: head.ino,
        name: Bytes::copy_from_slice(name),
        kind,
        mode: mode & 0o7777,
        umask,
        uid: head.uid,
        gid: head.gid,
        rdev: 0,
        target: Bytes::new(),
        exclusive: true,
    }
}

fn setattr_in(ino: Ino, r: &mut Reader<'_>) -> Option<SetAttr> {
    let (valid, _, _, size, _) = (r.u32()?, r.u32()?, r.u64()?, r.u64()?, r.u64()?);
    let (atime, mtime, _) = (r.u64()?, r.u64()?, r.u64()?);
    let (atime_nanos, mtime_nanos, _) = (r.u32()?, r.u32()?, r.u32()?);
    let (mode, _, uid, gid) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |set: bool, now: bool, secs: u64, nanos: u32| match (set, now) {
        (_, true) => Some(SetTime::Now),
        (true, _) => Some(SetTime::At(Time { secs: secs as i64, nanos })),
        _ => None,
    };
    Some(SetAttr {
        ino,
        change: AttrChange {
            mode: has(1).then_some(mode & 0o7777),
            uid: has(2).then_some(uid),
            gid: has(4).then_some(gid),
            atime: time(has(16), has(128), atime, atime_nanos),
            mtime: time(has(32), has(256), mtime, mtime_nanos),
        },
        size: has(8).then_some(size),
    })
}

fn open_out(fh: u64, keep: bool, flags: u32) -> Vec<u8> {
    let mut out = Writer::default();
    let keep = if keep { abi::FOPEN_KEEP_CACHE } else { 0 };
    let direct = if flags & O_DIRECT != 0 { abi::FOPEN_DIRECT_IO } else { 0 };
    out.u64(fh).u32(keep | direct).u32(0);
    out.0
}

/// `fuse_entry_out`, valid for 1 s.
fn entry(inode: &Inode) -> Vec<u8> {
    let mut out = Writer::default();
    out.u64(inode.ino.0).u64(0).u64(1).u64(1).u64(0);
    attr(&mut out, inode);
    out.0
}

/// `fuse_attr_out`, valid for 1 s.
fn attr_out(inode: &Inode) -> Vec<u8> {
    let mut out = Writer::default();
    out.u64(1).u64(0);
    attr(&mut out, inode);
    out.0
}

fn attr(out: &mut Writer, inode: &Inode) {
    out.u64(inode.ino.0).u64(inode.size).u64(inode.allocated.div_ceil(512));
    let times = [inode.atime, inode.mtime, inode.ctime];
    times.iter().for_each(|time| _ = out.u64(time.secs as u64));
    times.iter().for_each(|time| _ = out.u32(time.nanos));
    out.u32(mode_of(inode.kind) | inode.mode).u32(inode.nlink).u32(inode.uid).u32(inode.gid);
    out.u32(inode.rdev).u32(abi::MAX_WRITE).u32(0);
}

fn mode_of(kind: FileKind) -> u32 {
    match kind {
        FileKind::Fifo => 0o010000,
        FileKind::CharDevice => 0o020000,
        FileKind::Directory => 0o040000,
        FileKind::BlockDevice => 0o060000,
        FileKind::Regular => 0o100000,
        FileKind::Symlink => 0o120000,
        FileKind::Socket => 0o140000,
    }
}

fn kind_of(mode: u32) -> Option<FileKind> {
    Some(match mode & 0o170000 {
        0o010000 => FileKind::Fifo,
        0o020000 => FileKind::CharDevice,
        0o060000 => FileKind::BlockDevice,
        0 | 0o100000 => FileKind::Regular,
        0o140000 => FileKind::Socket,
        _ => return None,
    })
}
