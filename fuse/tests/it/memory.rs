//! A cluster in memory: the real state machine over a map, a map of chunks with receipts and gc epochs,
//! and switches for everything that can go wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fsd_rpc::message::{ChunkPut, DirEntry, Event, Failure, Limits, Request, Response, StatFs};
use fuse::{Backend, BackendError};
use raftmeta::{MemKv, apply, read};
use raftmeta_types::cluster::{ClusterInfo, SessionInfo};
use raftmeta_types::*;

const SHARDS: u32 = 16;
const BLOCK_SIZE: u32 = 4096;
const CAPACITY_BYTES: u64 = 64 << 30;

type CallResult<T> = Result<T, BackendError>;

/// What goes wrong; off to begin with.
#[derive(Default)]
pub struct Faults {
    /// Garbage is collected after every so many puts, before they can be committed. 0: never.
    pub gc_every: AtomicU64,
    /// Puts and inline writes are refused.
    pub no_space: AtomicBool,
    /// No call has an answer.
    pub lost: AtomicBool,
    /// Calls wait until this is off, or their mount is aborted.
    pub hang: AtomicBool,
    /// Chunks are read back with a bit flipped.
    pub damaged: AtomicBool,
    /// Events stay where they are until this is off.
    pub events_held: AtomicBool,
    /// Microseconds that every call takes longer.
    pub delay_micros: AtomicU64,
}

#[derive(Default)]
pub struct Cluster {
    pub faults: Faults,
    state: Mutex<State>,
    /// A fault was switched off, or a mount aborted.
    changed: Condvar,
    puts: AtomicU64,
    /// How many commands were refused with `RetryPut`.
    pub retries: AtomicU64,
}

#[derive(Default)]
struct State {
    kv: MemKv,
    index: u64,
    time: Time,
    sessions: u64,
    open: BTreeMap<Ino, BTreeSet<SessionId>>,
    chunks: HashMap<ChunkHash, Bytes>,
    subscribers: Vec<(SessionId, mpsc::Sender<Event>)>,
}

/// One session: what a mount uses.
pub struct Member {
    cluster: Arc<Cluster>,
    session: SessionId,
    /// Free slots and the number of their next command.
    slots: Mutex<Vec<(u16, u64)>>,
    aborted: AtomicBool,
}

fn failed(error: impl Into<Failure>) -> BackendError {
    BackendError::Failed(error.into())
}

impl Cluster {
    pub fn new() -> Arc<Cluster> {
        let cluster = Arc::new(Cluster::default());
        let info = ClusterInfo {
            uuid: uuid::Uuid::from_u128(1),
            name: "memory".into(),
            site: 1,
            shard_count: SHARDS,
            created: Time::default(),
        };
        let init = Command::InitCluster { cluster: info, sealed_ca: Bytes::new() };
        cluster.state().apply_as_server(init);
        cluster
    }

    /// Opens a session.
    pub fn connect(self: &Arc<Cluster>) -> Member {
        let mut state = self.state();
        state.sessions += 1;
        let session = SessionId(state.sessions);
        state.apply_as_server(Command::OpenSession(SessionInfo {
            session,
            client: "memory".into(),
            identity: "uid=0".into(),
            opened: Time::default(),
            secret: [0; 16],
        }));
        drop(state);
        let slots = Mutex::new((0..64).map(|slot| (slot, 1)).collect());
        Member { cluster: self.clone(), session, slots, aborted: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sets a fault, and wakes those that wait for its end.
    pub fn set(&self, fault: &AtomicBool, on: bool) {
        let _state = self.state();
        fault.store(on, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn wait_while(&self, fault: &AtomicBool) {
        let is_on = |_: &mut State| fault.load(Ordering::SeqCst);
        drop(self.changed.wait_while(self.state(), is_on).unwrap());
    }

    /// Problems that fsck of the namespace finds.
    pub fn check(&self) -> Vec<String> {
        let report = raftmeta::check::check(&self.state().kv).unwrap();
        report.iter().map(|finding| format!("{finding:?}")).collect()
    }

    /// How many inodes there are, the root included.
    pub fn inodes(&self) -> u64 {
        read::counters(&self.state().kv).unwrap().inodes
    }

    /// The file with this name in the root.
    pub fn inode(&self, name: &str) -> Inode {
        read::lookup(&self.state().kv, Ino::ROOT, name.as_bytes()).unwrap().unwrap()
    }

    /// Its extents.
    pub fn extents(&self, name: &str) -> Vec<Extent> {
        let inode = self.inode(name);
        read::extents(&self.state().kv, inode.ino, 0, u64::MAX, usize::MAX).unwrap()
    }
}

impl State {
    fn apply_as_server(&mut self, command: Command) -> Reply {
        self.apply(SessionId::SERVER, (0, 0), command).unwrap()
    }

    fn apply(
        &mut self,
        session: SessionId,
        (slot, seq): (u16, u64),
        command: Command,
    ) -> MetaResult<Reply> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Time { secs: since.as_secs() as i64, nanos: since.subsec_nanos() };
        self.time = self.time.max(now);
        self.index += 1;
        let envelope = Envelope { session, slot, seq, time: self.time, command };
        apply(&mut self.kv, Version(self.index), &envelope).unwrap()
    }

    fn inode(&self, ino: Ino) -> CallResult<Inode> {
        read::inode(&self.kv, ino).unwrap().ok_or_else(|| failed(MetaError::Stale))
    }

    fn holders(&self, ino: Ino) -> (Ino, Vec<SessionId>) {
        (ino, self.open.get(&ino).map(|set| set.iter().copied().collect()).unwrap_or_default())
    }

    /// What a leader stamps into a command.
    fn stamp(&self, command: &mut Command) {
        let named = |parent, name: &Bytes| read::dentry(&self.kv, parent, name).unwrap();
        match command {
            Command::Unlink(unlink) => {
                let entry = named(unlink.parent, &unlink.name);
                unlink.open_by = entry.iter().map(|entry| self.holders(entry.ino)).collect();
            }
            Command::Rename(rename) => {
                let entry = named(rename.new_parent, &rename.new_name);
                rename.open_by = entry.iter().map(|entry| self.holders(entry.ino)).collect();
            }
            _ => {}
        }
    }

    fn close(&mut self, session: SessionId, ino: Ino) {
        if let Some(holders) = self.open.get_mut(&ino) {
            holders.remove(&session);
            if holders.is_empty() {
                self.open.remove(&ino);
            }
        }
        if read::orphans_of(&self.kv, session).unwrap().contains(&ino) {
            self.apply_as_server(Command::ReleaseOrphans { session, inos: vec![ino] });
        }
    }

    fn tell_others(&mut self, session: SessionId, events: Vec<Event>) {
        self.subscribers.retain(|(id, subscriber)| {
            *id == session || events.iter().all(|event| subscriber.send(event.clone()).is_ok())
        });
    }

    /// Deletes every chunk that nothing refers to, as the leader and the shards do it.
    fn collect_garbage(&mut self) {
        for number in 0..SHARDS {
            let shard = ShardId(number as u16);
            let of_shard = self.chunks.keys().filter(|hash| hash.shard(SHARDS) == shard);
            let hashes: Vec<ChunkHash> = of_shard.copied().collect();
            let epoch = Epoch(read::shard(&self.kv, shard).unwrap().unwrap().gc_epoch.0 + 1);
            let begin = Command::BeginDelete { shard, epoch, hashes };
            let Reply::Deleting { hashes, .. } = self.apply_as_server(begin) else { panic!() };
            for hash in hashes {
                self.chunks.remove(&hash);
            }
            self.apply_as_server(Command::EndDelete { shard, epoch });
        }
    }
}

fn events_of(command: &Command) -> Vec<Event> {
    let entry = |parent: Ino, name: &Bytes| Event::Entry { parent, name: name.clone() };
    let inode = |ino: Ino, data: bool| Event::Inode { ino, data };
    match command {
        Command::Create(create) => vec![entry(create.parent, &create.name)],
        Command::Link { ino, parent, name } => vec![entry(*parent, name), inode(*ino, false)],
        Command::Unlink(unlink) => vec![entry(unlink.parent, &unlink.name)],
        Command::Rename(rename) => {
            vec![entry(rename.parent, &rename.name), entry(rename.new_parent, &rename.new_name)]
        }
        Command::SetAttr(set) => vec![inode(set.ino, set.size.is_some())],
        Command::SetXattr { ino, .. } | Command::RemoveXattr { ino, .. } => {
            vec![inode(*ino, false)]
        }
        Command::Write(write) => vec![inode(write.ino, !write.extents.is_empty())],
        Command::Allocate(allocate) => vec![inode(allocate.ino, true)],
        Command::CopyRange(copy) => vec![inode(copy.target, true)],
        _ => Vec::new(),
    }
}

impl Member {
    /// Suffers what is switched on; answers with the state if the call gets through.
    fn enter(&self) -> CallResult<MutexGuard<'_, State>> {
        let faults = &self.cluster.faults;
        let delay = faults.delay_micros.load(Ordering::Relaxed);
        if delay > 0 {
            std::thread::sleep(Duration::from_micros(delay));
        }
        let mut state = self.cluster.state();
        while faults.hang.load(Ordering::SeqCst) && !self.aborted.load(Ordering::SeqCst) {
            state = self.cluster.changed.wait(state).unwrap();
        }
        if self.aborted.load(Ordering::SeqCst) {
            return Err(BackendError::Lost("aborted".into()));
        }
        if faults.lost.load(Ordering::SeqCst) {
            return Err(BackendError::Lost("switched off".into()));
        }
        Ok(state)
    }

    fn put(&self, state: &mut State, chunks: &[ChunkPut], data: &[&[u8]]) -> CallResult<Response> {
        let faults = &self.cluster.faults;
        if faults.no_space.load(Ordering::SeqCst) {
            return Err(failed(Failure::NoSpace));
        }
        let bytes = data.concat();
        let mut at = 0;
        let mut receipts = Vec::new();
        for chunk in chunks {
            let chunk_bytes = &bytes[at..at + chunk.len as usize];
            at += chunk.len as usize;
            assert_eq!(blake3::hash(chunk_bytes).as_bytes(), &chunk.hash.0, "a wrong name");
            assert!((1..=CHUNK_MAX).contains(&chunk_bytes.len()));
            state.chunks.insert(chunk.hash, Bytes::copy_from_slice(chunk_bytes));
            let shard = read::shard(&state.kv, chunk.hash.shard(SHARDS)).unwrap().unwrap();
            receipts.push(shard.gc_epoch);
        }
        assert_eq!(at, bytes.len(), "data that belongs to no chunk");
        let puts = self.cluster.puts.fetch_add(1, Ordering::Relaxed) + 1;
        let every = faults.gc_every.load(Ordering::Relaxed);
        if every > 0 && puts.is_multiple_of(every) {
            state.collect_garbage();
        }
        Ok(Response::Receipts(receipts))
    }

    fn chunk(&self, state: &State, hash: &ChunkHash) -> CallResult<Bytes> {
        let chunk = state.chunks.get(hash).ok_or_else(|| failed(Failure::NoChunk(*hash)))?;
        if !self.cluster.faults.damaged.load(Ordering::SeqCst) {
            return Ok(chunk.clone());
        }
        let mut bytes = chunk.to_vec();
        bytes[0] ^= 1;
        Ok(bytes.into())
    }

    fn extents(
        &self,
        state: &State,
        ino: Ino,
        (offset, len): (u64, u64),
        chunk_bytes_max: u32,
    ) -> CallResult<(Response, Bytes)> {
        let inode = state.inode(ino)?;
        let to = offset.saturating_add(len);
        let extents = read::extents(&state.kv, ino, offset, to, usize::MAX).unwrap();
        let mut chunks: Vec<ChunkPut> = Vec::new();
        let mut data = Vec::new();
        for extent in &extents {
            let ExtentData::Chunk { hash, .. } = &extent.data else { continue };
            if chunks.iter().any(|chunk| chunk.hash == *hash) {
                continue;
            }
            let chunk = self.chunk(state, hash)?;
            if data.len() + chunk.len() > chunk_bytes_max as usize {
                break;
            }
            data.extend_from_slice(&chunk);
            chunks.push(ChunkPut { hash: *hash, len: chunk.len() as u32 });
        }
        Ok((Response::Extents { inode, extents, end: to, chunks }, data.into()))
    }

    fn answer(
        &self,
        state: &mut State,
        request: &Request,
        data: &[&[u8]],
    ) -> CallResult<(Response, Bytes)> {
        let response = match request {
            Request::Lookup { parent, name } => {
                let found = read::lookup(&state.kv, *parent, name).unwrap();
                Response::Inode(found.ok_or_else(|| failed(MetaError::NotFound))?)
            }
            Request::GetAttr { ino } => Response::Inode(state.inode(*ino)?),
            Request::Open { ino } => {
                let inode = state.inode(*ino)?;
                let held = read::orphans_of(&state.kv, self.session).unwrap().contains(ino);
                if inode.nlink == 0 && !held {
                    return Err(failed(MetaError::Stale));
                }
                state.open.entry(*ino).or_default().insert(self.session);
                Response::Inode(inode)
            }
            Request::Close { inos } => {
                inos.iter().for_each(|ino| state.close(self.session, *ino));
                Response::Done
            }
            Request::ReadLink { ino } => Response::Target(state.inode(*ino)?.target),
            Request::ReadDir { ino, after, limit } => {
                let found = read::readdir(&state.kv, *ino, after, *limit as usize).unwrap();
                let end = found.len() < *limit as usize;
                let entry = |entry: read::Entry| {
                    let inode = state.inode(entry.ino)?;
                    Ok(DirEntry {
                        name: entry.name.into(),
                        ino: entry.ino,
                        kind: entry.kind,
                        inode,
                    })
                };
                let entries = found.into_iter().map(entry).collect::<CallResult<_>>()?;
                Response::Entries { entries, end }
            }
            Request::GetXattr { ino, name } => {
                let value = read::xattr(&state.kv, *ino, name).unwrap();
                Response::Xattr(value.ok_or_else(|| failed(MetaError::NoXattr))?.into())
            }
            Request::ListXattr { ino } => {
                let names = read::xattr_names(&state.kv, *ino).unwrap();
                Response::Xattrs(names.into_iter().map(Bytes::from).collect())
            }
            Request::Extents { ino, offset, len, with_chunks, chunk_bytes_max } => {
                let max = if *with_chunks { *chunk_bytes_max } else { 0 };
                return self.extents(state, *ino, (*offset, *len), max);
            }
            Request::StatFs => {
                let used: u64 = state.chunks.values().map(|chunk| chunk.len() as u64).sum();
                let free = CAPACITY_BYTES - used;
                Response::StatFs(StatFs {
                    block_size: BLOCK_SIZE,
                    total_bytes: CAPACITY_BYTES,
                    free_bytes: free,
                    available_bytes: free,
                    inodes: read::counters(&state.kv).unwrap().inodes,
                    inodes_free: 1 << 32,
                })
            }
            Request::GetLock(lock) => Response::Lock(read::get_lock(&state.kv, lock).unwrap()),
            Request::Sync | Request::Ping => Response::Done,
            Request::PutChunks { chunks } => self.put(state, chunks, data)?,
            Request::GetChunks { hashes } => {
                let chunks = hashes.iter().map(|hash| self.chunk(state, hash));
                let chunks = chunks.collect::<CallResult<Vec<Bytes>>>()?;
                let list = hashes.iter().zip(&chunks);
                let put = |(hash, chunk): (&ChunkHash, &Bytes)| ChunkPut {
                    hash: *hash,
                    len: chunk.len() as u32,
                };
                return Ok((Response::Chunks(list.map(put).collect()), chunks.concat().into()));
            }
            other => panic!("a mount does not ask for {other:?}"),
        };
        Ok((response, Bytes::new()))
    }
}

impl Backend for Member {
    fn call(&self, request: &Request, data: &[&[u8]]) -> CallResult<(Response, Bytes)> {
        self.answer(&mut *self.enter()?, request, data)
    }

    fn mutate(&self, _durable: bool, mut command: Command) -> CallResult<Reply> {
        let mut state = self.enter()?;
        if let Command::Write(write) = &command
            && !write.extents.is_empty()
            && self.cluster.faults.no_space.load(Ordering::SeqCst)
        {
            return Err(failed(Failure::NoSpace));
        }
        let (slot, seq) = self.slots.lock().unwrap().pop().expect("fewer callers than slots");
        state.stamp(&mut command);
        let events = events_of(&command);
        let opens = matches!(&command, Command::Create(create) if create.open);
        let answer = state.apply(self.session, (slot, seq), command);
        if opens && let Ok(Reply::Created { inode, new: true, .. }) = &answer {
            state.open.entry(inode.ino).or_default().insert(self.session);
        }
        self.slots.lock().unwrap().push((slot, seq + 1));
        if answer.is_ok() {
            state.tell_others(self.session, events);
        }
        if let Err(MetaError::RetryPut(_)) = &answer {
            self.cluster.retries.fetch_add(1, Ordering::Relaxed);
        }
        answer.map_err(failed)
    }

    fn limits(&self) -> Limits {
        Limits {
            shard_count: SHARDS,
            chunk_min: 16 << 10,
            chunk_avg: 64 << 10,
            chunk_max: 256 << 10,
            inline_max: 64 << 10,
            lease_ms: 30_000,
        }
    }

    fn session(&self) -> SessionId {
        self.session
    }

    fn subscribe(&self, notify: Box<dyn Fn(Event) + Send>) {
        let (sender, receiver) = mpsc::channel();
        self.cluster.state().subscribers.push((self.session, sender));
        let cluster = self.cluster.clone();
        std::thread::spawn(move || {
            for event in receiver {
                cluster.wait_while(&cluster.faults.events_held);
                notify(event);
            }
        });
    }

    fn abort(&self) {
        let _state = self.cluster.state();
        self.aborted.store(true, Ordering::SeqCst);
        self.cluster.changed.notify_all();
    }

    fn goodbye(&self) {
        let mut state = self.cluster.state();
        let session = self.session;
        state.subscribers.retain(|(id, _)| *id != session);
        state.open.values_mut().for_each(|holders| _ = holders.remove(&session));
        state.apply_as_server(Command::CloseSession { session });
    }
}
