//! Random commands of several sessions: every answer is the model's, and now and then everything is looked at:
//! the tree, the bytes, the counts, and fsck.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::any::{self, Raw, SESSIONS};
use super::model::{Answer, FILE_MAX, LOCK_CELLS, Model, Outcome, chunk_byte};
use super::*;
use crate::keys;

struct Run {
    kv: MemKv,
    model: Model,
    index: u64,
    /// Chunks that inline data was settled into.
    chunks: BTreeMap<ChunkHash, Vec<u8>>,
    last: Option<(Envelope, MetaResult<Reply>)>,
}

/// What the reply says, and the inode in it must be as the model has it.
fn answer(model: &Model, reply: MetaResult<Reply>) -> Outcome {
    let same = |inode: Inode| {
        assert_eq!(inode, model.nodes[&inode.ino].inode, "the inode in the reply");
        inode.ino
    };
    Ok(match reply.map_err(without_words)? {
        Reply::Done => Answer::Done,
        Reply::Inode(inode) | Reply::Content { inode, .. } => Answer::Inode(same(inode)),
        Reply::Created { inode, new, changed } => {
            changed.into_iter().for_each(|inode| _ = same(inode));
            Answer::Created(same(inode), new)
        }
        Reply::Unlinked { inode, changed } => {
            changed.into_iter().for_each(|inode| _ = same(inode));
            Answer::Unlinked(inode)
        }
        Reply::Copied { len, inode, .. } => Answer::Copied(len, same(inode)),
        other => panic!("{other:?}"),
    })
}

/// Reasons are for people.
fn without_words(error: MetaError) -> MetaError {
    match error {
        MetaError::Invalid(_) => MetaError::Invalid(String::new()),
        other => other,
    }
}

impl Run {
    fn new() -> Run {
        let fs = Fs::new();
        let root = fs.inode(Ino::ROOT).unwrap();
        let mut model = Model::new(root);
        model.sessions.insert(S);
        let mut run =
            Run { kv: fs.kv, model, index: fs.index, chunks: BTreeMap::new(), last: None };
        for session in SESSIONS {
            run.open(session);
        }
        run
    }

    fn open(&mut self, session: SessionId) {
        if !self.model.sessions.contains(&session) {
            let info = SessionInfo {
                session,
                client: "c".into(),
                identity: "uid=0".into(),
                opened: Time::default(),
                secret: [0; 16],
            };
            self.compare(SessionId::SERVER, Command::OpenSession(info));
        }
    }

    fn envelope(&mut self, session: SessionId, command: Command) -> Envelope {
        self.index += 1;
        let (seq, time) = (self.index, Time { secs: self.index as i64, nanos: 0 });
        Envelope { session, slot: (seq % 3) as u16, seq, time, command }
    }

    fn apply(&mut self, envelope: &Envelope) -> MetaResult<Reply> {
        apply(&mut self.kv, Version(self.index), envelope).unwrap()
    }

    fn compare(&mut self, session: SessionId, command: Command) {
        let envelope = self.envelope(session, command);
        let version = Version(self.index);
        let contents = |(ino, node): (&Ino, &model::Node)| (*ino, node.inode.data_version);
        let known: BTreeMap<Ino, Version> = self.model.nodes.iter().map(contents).collect();
        let expected = self.model.apply(version, envelope.time, session, &envelope.command);
        let reply = self.apply(&envelope);
        let found = answer(&self.model, reply.clone());
        assert_eq!(found, expected.map_err(without_words), "{:?}", envelope.command);
        if let Ok(Reply::Content { inode, before } | Reply::Copied { inode, before, .. }) = &reply {
            assert_eq!(known.get(&inode.ino), Some(before), "the content's version before");
        }
        if session != SessionId::SERVER {
            self.last = Some((envelope, reply));
        }
    }

    /// The last command again: the same answer, and nothing changes.
    fn retry(&mut self) {
        let Some((envelope, reply)) = self.last.clone() else { return };
        if !self.model.sessions.contains(&envelope.session) {
            return;
        }
        let slot = keys::slot(envelope.session, envelope.slot);
        if crate::KvRead::get(&self.kv, &slot).unwrap().is_none() {
            return;
        }
        self.index += 1;
        let before = self.kv.clone();
        assert_eq!(self.apply(&envelope), reply, "a retry of {:?}", envelope.command);
        let late = Envelope { seq: envelope.seq - 1, ..envelope };
        assert_eq!(self.apply(&late), Err(MetaError::OutOfSequence));
        assert!(self.kv == before, "a retry changed something");
    }

    /// Puts the first inline extents into chunks.
    fn settle(&mut self, count: usize) {
        let mut items = Vec::new();
        for found in read::unsettled(&self.kv, None, count).unwrap() {
            let (ino, offset) = (found.ino, found.offset);
            let extents = read::extents(&self.kv, ino, offset, offset + 1, 1).unwrap();
            let ExtentData::Inline(bytes) = &extents[0].data else { panic!("inline") };
            let mut hash = ChunkHash([0xee; 32]);
            hash.0[..8].copy_from_slice(&(self.chunks.len() as u64).to_be_bytes());
            self.chunks.insert(hash, bytes.to_vec());
            items.push(Settle {
                ino,
                offset,
                len: bytes.len() as u32,
                version: found.version,
                hash,
                chunk_offset: 0,
                receipt: Epoch(0),
            });
        }
        let count = items.len() as u32;
        let envelope = self.envelope(SessionId::SERVER, Command::Settle(items));
        assert_eq!(self.apply(&envelope), Ok(Reply::Settled { count }));
    }

    fn step(&mut self, raw: &Raw) {
        let session = SESSIONS[usize::from(raw[0] / 32 % 3)];
        match raw[0] / 128 % 40 {
            0 => {
                self.compare(SessionId::SERVER, Command::CloseSession { session });
                self.open(session);
            }
            1 => {
                let reap = self.envelope(SessionId::SERVER, Command::Reap { limit: 100 });
                let nothing = Reply::Reaped { extents: 0, more: false };
                assert_eq!(self.apply(&reap), Ok(nothing));
            }
            2..5 => self.settle(usize::from(raw[1] % 5)),
            5..9 => self.retry(),
            _ => {
                let command = any::command(&self.model, session, raw);
                self.compare(session, command);
            }
        }
    }

    /// Everything.
    fn look(&self) {
        assert_eq!(check(&self.kv).unwrap(), []);
        for (&ino, node) in &self.model.nodes {
            assert_eq!(read::inode(&self.kv, ino).unwrap().as_ref(), Some(&node.inode));
            let entries = read::readdir(&self.kv, ino, b"", usize::MAX).unwrap();
            let entries: BTreeMap<_, _> =
                entries.into_iter().map(|entry| (entry.name, entry.ino)).collect();
            assert_eq!(entries, node.entries);
            let names = read::xattr_names(&self.kv, ino).unwrap();
            assert!(names.iter().eq(node.xattrs.keys()), "attributes of {ino}");
            for (name, value) in &node.xattrs {
                let found = read::xattr(&self.kv, ino, name).unwrap();
                assert_eq!(found.as_ref(), Some(value));
            }
            let (data, backed) = self.content(ino);
            assert!(data == node.data, "the bytes of {ino}");
            assert!(backed == node.backed, "the holes of {ino}");
            self.look_at_locks(ino);
        }
        let counters = read::counters(&self.kv).unwrap();
        assert_eq!(counters.inodes, self.model.nodes.len() as u64);
    }

    fn content(&self, ino: Ino) -> (Vec<u8>, Vec<bool>) {
        let (mut data, mut backed) = (vec![0; FILE_MAX], vec![false; FILE_MAX]);
        for extent in read::extents(&self.kv, ino, 0, u64::MAX, usize::MAX).unwrap() {
            for at in 0..extent.len {
                let place = extent.offset as usize + at as usize;
                backed[place] = true;
                data[place] = match &extent.data {
                    ExtentData::Inline(bytes) => bytes[at as usize],
                    ExtentData::Zero => 0,
                    ExtentData::Chunk { hash, chunk_offset } => match self.chunks.get(hash) {
                        Some(chunk) => chunk[(chunk_offset + at) as usize],
                        None => chunk_byte(hash, chunk_offset + at),
                    },
                };
            }
        }
        (data, backed)
    }

    fn look_at_locks(&self, ino: Ino) {
        let mut cells = BTreeMap::new();
        for lock in read::locks(&self.kv, ino).unwrap() {
            let held = cells.entry((lock.family, lock.owner)).or_insert([None; LOCK_CELLS]);
            let last = lock.end.min(LOCK_CELLS as u64 - 1) as usize;
            held[lock.start as usize..=last].fill(Some(lock.kind));
        }
        let mut expected = self.model.nodes[&ino].locks.clone();
        expected.retain(|_, held| held.iter().any(Option::is_some));
        assert_eq!(cells, expected, "the locks of {ino}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_state_machine_is_the_model(raws in prop::collection::vec(any::<Raw>(), 1..150)) {
        let mut run = Run::new();
        for (at, raw) in raws.iter().enumerate() {
            run.step(raw);
            if at % 25 == 24 {
                run.look();
            }
        }
        run.look();
    }
}
