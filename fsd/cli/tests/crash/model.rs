//! What a worker's directory holds by the operations it did, and what a crash may have left of it.
//!
//! * The *namespace* after a crash is that after some prefix of the operations: no shorter than the last
//!   operation that was acknowledged as durable, no longer than the one under way.
//! * The *bytes* of a file are, each by itself, those that were last acknowledged as durable or any
//!   written since; zero where the file was shorter at some time since. The size lies between the
//!   smallest and the largest since.

use std::collections::BTreeMap;

use cfs_dev::random::{Random, fill};

use crate::plan::{Op, Pace, SLOTS};

/// The bytes of content number `number`: half of the numbers give text that compresses well, half noise.
pub fn content(number: u64, len: usize) -> Vec<u8> {
    if number & 1 == 0 {
        let word = format!("content {number} of the crash test, line by line\n").into_bytes();
        return word.into_iter().cycle().take(len).collect();
    }
    let mut bytes = Vec::with_capacity(len + 8);
    fill(&mut bytes, &mut Random::new(number), len);
    bytes
}

/// Identity of a file, under whatever names.
pub type FileId = u64;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    File(FileId),
    Symlink(String),
}

/// Names relative to the worker's directory, without the directory itself.
pub type Names = BTreeMap<String, Node>;

#[derive(Clone, Debug)]
pub enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Size(usize),
}

/// One file: as it reads now, and what of it is sure to survive.
#[derive(Clone, Debug, Default)]
pub struct File {
    pub bytes: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
    /// Something was changed since the last acknowledgement that covered the file: `close` has to wait.
    pending: bool,
}

/// An open descriptor.
#[derive(Clone, Debug)]
pub struct Open {
    pub file: FileId,
    pub append: bool,
    pub pace: Pace,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub names: Names,
    pub files: BTreeMap<FileId, File>,
    pub open: Vec<Option<Open>>,
    next_file: FileId,
    /// Whether `close`, too, is durable, and whatever is durable makes all before it durable. ClaudeFS promises
    /// that; ext4 promises a file that was fsynced and no more.
    barriers: bool,
}

impl File {
    pub fn settled(bytes: Vec<u8>) -> File {
        File { durable: bytes.clone(), bytes, ..File::default() }
    }

    fn write(&mut self, offset: usize, bytes: Vec<u8>) {
        overwrite(&mut self.bytes, offset, &bytes);
        self.changes.push(Change::Write { offset, bytes });
        self.pending = true;
    }

    fn resize(&mut self, size: usize) {
        self.bytes.resize(size, 0);
        self.changes.push(Change::Size(size));
        self.pending = true;
    }

    fn settle(&mut self, acknowledged: bool) -> bool {
        if acknowledged {
            self.durable.clone_from(&self.bytes);
            self.changes.clear();
            self.pending = false;
        }
        acknowledged
    }

    /// Whether a crash may have left `found`; why not, else.
    pub fn may_be(&self, found: &[u8]) -> Result<(), String> {
        if found == self.bytes {
            return Ok(());
        }
        let (mut size, mut least, mut most) =
            (self.durable.len(), self.durable.len(), self.durable.len());
        for change in &self.changes {
            size = match change {
                Change::Write { offset, bytes } => size.max(offset + bytes.len()),
                Change::Size(size) => *size,
            };
            least = least.min(size);
            most = most.max(size);
        }
        if !(least..=most).contains(&found.len()) {
            return Err(format!("{} bytes long, not from {least} to {most}", found.len()));
        }
        let wrong = (0..found.len()).find(|&at| !self.byte_may_be(at, found[at], least));
        wrong.map_or(Ok(()), |at| {
            Err(format!(
                "byte {at} is {:#04x}; {:?} is durable there, {} changes since",
                found[at],
                self.durable.get(at),
                self.changes.len()
            ))
        })
    }

    fn byte_may_be(&self, at: usize, found: u8, least: usize) -> bool {
        let written = |change: &Change| match change {
            Change::Write { offset, bytes } => {
                at.checked_sub(*offset).and_then(|within| bytes.get(within)) == Some(&found)
            }
            Change::Size(_) => false,
        };
        self.durable.get(at) == Some(&found)
            || (found == 0 && at >= least)
            || self.changes.iter().any(written)
    }
}

/// `pwrite`, with a hole of zeros if it starts behind the end.
fn overwrite(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if into.len() < offset + bytes.len() {
        into.resize(offset + bytes.len(), 0);
    }
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}

pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Whether `path` lies in the directory `dir`, at any depth.
pub fn is_below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

impl Model {
    /// A tree in which everything is durable.
    pub fn new(names: Names, files: BTreeMap<FileId, File>, barriers: bool) -> Model {
        let next_file = files.last_key_value().map_or(1, |(last, _)| last + 1);
        Model { names, files, open: vec![None; SLOTS], next_file, barriers }
    }

    pub fn file_at(&self, path: &str) -> Option<FileId> {
        match self.names.get(path) {
            Some(Node::File(file)) => Some(*file),
            Some(Node::Dir | Node::Symlink(_)) | None => None,
        }
    }

    pub fn is_empty_dir(&self, path: &str) -> bool {
        self.names.get(path) == Some(&Node::Dir) && !self.names.keys().any(|p| is_below(p, path))
    }

    /// Does the operation; returns whether it made itself and everything before it durable. One that was
    /// not acknowledged makes nothing durable.
    pub fn apply(&mut self, op: &Op, acknowledged: bool) -> bool {
        match op {
            Op::Create { path, slot, append, pace } => {
                let file = self.next_file;
                self.next_file += 1;
                self.files.insert(file, File::default());
                self.names.insert(path.clone(), Node::File(file));
                self.open[*slot] = Some(Open { file, append: *append, pace: *pace });
            }
            Op::Open { path, slot, append, pace, truncate } => {
                let file = self.file_at(path).expect("the plan opens files");
                if *truncate {
                    self.file(file).resize(0);
                }
                self.open[*slot] = Some(Open { file, append: *append, pace: *pace });
            }
            Op::Write { slot, offset, len, number } => {
                let Open { file, append, pace } = self.opened(*slot);
                let file = self.file(file);
                let offset = if append { file.bytes.len() } else { *offset };
                let bytes = content(*number, *len);
                let durable = pace == Pace::Synchronous && acknowledged;
                if durable {
                    // Of this range only: what others wrote to the file stays as it was.
                    overwrite(&mut file.durable, offset, &bytes);
                }
                file.write(offset, bytes);
                // Nothing is left for `close` to wait for.
                file.pending &= !durable;
                return durable;
            }
            Op::Fsync { slot, .. } => {
                let file = self.opened(*slot).file;
                return self.file(file).settle(acknowledged);
            }
            Op::Close { slot } => {
                let file = self.opened(*slot).file;
                self.open[*slot] = None;
                let durable = self.barriers && self.file(file).pending;
                return self.file(file).settle(durable && acknowledged);
            }
            Op::Truncate { path, size } => {
                let file = self.file_at(path).expect("the plan truncates files");
                let file = self.file(file);
                file.resize(*size);
                // The worker opens it for that: its own close covers the file, and a later one owes nothing.
                file.pending = false;
            }
            Op::FsyncDir { .. } => return acknowledged,
            Op::Read { .. } => {}
            Op::Rename { .. } | Op::Exchange { .. } | Op::Link { .. } | Op::Unlink { .. } => {
                self.apply_names(op);
            }
            Op::Symlink { path, target } => {
                self.names.insert(path.clone(), Node::Symlink(target.clone()));
            }
            Op::Mkdir { path } => {
                self.names.insert(path.clone(), Node::Dir);
            }
            Op::Rmdir { path } => {
                self.names.remove(path);
            }
        }
        false
    }

    fn apply_names(&mut self, op: &Op) {
        match op {
            // Two names of one file: POSIX says that nothing happens.
            Op::Rename { from, to }
                if self.file_at(from).is_some() && self.file_at(from) == self.file_at(to) => {}
            Op::Rename { from, to } => {
                self.names.remove(to);
                self.relocate(&[(from, to)]);
            }
            Op::Exchange { a, b } => self.relocate(&[(a, b), (b, a)]),
            Op::Link { from, to } => {
                let node = self.names[from].clone();
                self.names.insert(to.clone(), node);
            }
            Op::Unlink { path } => {
                self.names.remove(path);
            }
            other => unreachable!("{other:?} changes no names"),
        }
    }

    /// Renames at once, each with what is below it.
    fn relocate(&mut self, moves: &[(&String, &String)]) {
        let names = std::mem::take(&mut self.names);
        for (path, node) in names {
            let moved = moves.iter().find_map(|(from, to)| {
                let rest = path.strip_prefix(from.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
            });
            self.names.insert(moved.unwrap_or(path), node);
        }
    }

    fn opened(&self, slot: usize) -> Open {
        self.open[slot].clone().expect("the plan uses open slots")
    }

    fn file(&mut self, file: FileId) -> &mut File {
        self.files.get_mut(&file).expect("a file is kept for as long as the model")
    }
}
