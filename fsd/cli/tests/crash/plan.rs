//! What a worker does next: random, and the same again for the same seed and the same tree.

use cfs_dev::random::Random;

use crate::model::{Model, Node, is_below};

/// Descriptors that a worker holds at most.
pub const SLOTS: usize = 4;
/// Names in a worker's directory at most; then something is removed first.
const NAMES_MAX: usize = 48;
/// Directories stand in directories at most so deep.
const DEPTH_MAX: usize = 3;
/// Largest file, in bytes.
const FILE_BYTES_MAX: usize = 700 << 10;
/// Contents that all workers share, so that their chunks are stored once.
const SHARED_CONTENTS: usize = 6;

/// How a descriptor writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Acknowledged before it is durable.
    Buffered,
    /// `O_SYNC`.
    Synchronous,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create { path: String, slot: usize, append: bool, pace: Pace },
    Open { path: String, slot: usize, append: bool, pace: Pace, truncate: bool },
    Write { slot: usize, offset: usize, len: usize, number: u64 },
    Fsync { slot: usize, data_only: bool },
    Close { slot: usize },
    Truncate { path: String, size: usize },
    Read { path: String },
    Rename { from: String, to: String },
    Exchange { a: String, b: String },
    Link { from: String, to: String },
    Symlink { path: String, target: String },
    Unlink { path: String },
    Mkdir { path: String },
    Rmdir { path: String },
    FsyncDir { path: String },
}

/// The next operation; it succeeds on a file system that works.
pub fn next(model: &Model, random: &mut Random) -> Op {
    loop {
        if let Some(op) = attempt(model, random) {
            return op;
        }
    }
}

fn attempt(model: &Model, random: &mut Random) -> Option<Op> {
    let crowded = model.names.len() >= NAMES_MAX;
    match random.below(100) {
        0..=29 => write(model, random),
        30..=41 => open(model, random, crowded),
        42..=49 => Some(Op::Close { slot: open_slot(model, random)? }),
        50..=54 => {
            let slot = open_slot(model, random)?;
            Some(Op::Fsync { slot, data_only: random.chance(40) })
        }
        55..=57 => Some(Op::FsyncDir { path: directory(model, random, DEPTH_MAX)? }),
        58..=60 => {
            let path = file(model, random)?;
            let len = model.files[&model.file_at(&path)?].bytes.len();
            Some(Op::Truncate { path, size: random.below(len + len / 4 + 5000) })
        }
        61..=66 => Some(Op::Read { path: file(model, random)? }),
        67..=74 => rename(model, random),
        75..=77 => exchange(model, random),
        78..=81 if !crowded => {
            Some(Op::Link { from: file(model, random)?, to: free_name(model, random)? })
        }
        82..=83 if !crowded => {
            let target = format!("target-{}", random.below(1000));
            Some(Op::Symlink { path: free_name(model, random)?, target })
        }
        84..=89 if !crowded => {
            let dir = directory(model, random, DEPTH_MAX - 1)?;
            let path = join(&dir, &name(random));
            (!model.names.contains_key(&path)).then_some(Op::Mkdir { path })
        }
        90..=92 => {
            let path = any(model, random, |node| *node == Node::Dir)?;
            model.is_empty_dir(&path).then_some(Op::Rmdir { path })
        }
        _ => Some(Op::Unlink { path: any(model, random, |node| *node != Node::Dir)? }),
    }
}

fn write(model: &Model, random: &mut Random) -> Option<Op> {
    let slot = open_slot(model, random)?;
    let open = model.open[slot].as_ref()?;
    let size = model.files[&open.file].bytes.len();
    let len = match random.below(10) {
        0..=4 => 1 + random.below(3000),
        5..=7 => 1 + random.below(20_000),
        8 => 1 + random.below(150_000),
        _ => 4096 * (1 + random.below(64)),
    };
    let offset = match random.below(4) {
        0 => 0,
        1 => random.below(size + 1),
        2 => size,
        _ => random.below(size + 30_000),
    };
    let number = match random.below(3) {
        0 => random.below(SHARED_CONTENTS) as u64,
        _ => random.draw(),
    };
    (size.max(offset) + len <= FILE_BYTES_MAX).then_some(Op::Write { slot, offset, len, number })
}

fn open(model: &Model, random: &mut Random, crowded: bool) -> Option<Op> {
    let slot = (0..SLOTS).find(|&slot| model.open[slot].is_none())?;
    let append = random.chance(25);
    let pace = if random.chance(15) { Pace::Synchronous } else { Pace::Buffered };
    if random.chance(60) && !crowded {
        let path = free_name(model, random)?;
        return Some(Op::Create { path, slot, append, pace });
    }
    let path = file(model, random)?;
    Some(Op::Open { path, slot, append, pace, truncate: random.chance(20) })
}

fn rename(model: &Model, random: &mut Random) -> Option<Op> {
    let from = any(model, random, |_| true)?;
    let to =
        if random.chance(50) { any(model, random, |_| true)? } else { free_name(model, random)? };
    if is_below(&to, &from) || is_below(&from, &to) || from == to {
        return None;
    }
    let fits = match (&model.names[&from], model.names.get(&to)) {
        (Node::Dir, Some(Node::Dir)) => model.is_empty_dir(&to),
        (Node::Dir, Some(_)) | (_, Some(Node::Dir)) => false,
        (Node::Dir, None) => depth(model, &from) + to.matches('/').count() < DEPTH_MAX,
        (Node::File(_) | Node::Symlink(_), _) => true,
    };
    fits.then_some(Op::Rename { from, to })
}

fn exchange(model: &Model, random: &mut Random) -> Option<Op> {
    let (a, b) = (any(model, random, |_| true)?, any(model, random, |_| true)?);
    let apart = a != b && !is_below(&a, &b) && !is_below(&b, &a);
    let files = model.names[&a] != Node::Dir && model.names[&b] != Node::Dir;
    let level = a.matches('/').count() == b.matches('/').count();
    // Two names of one file: a success that changes nothing.
    (apart && (files || level)).then_some(Op::Exchange { a, b })
}

/// Levels of directories from `path` down.
fn depth(model: &Model, path: &str) -> usize {
    let own = path.matches('/').count();
    let below = model.names.keys().filter(|p| is_below(p, path));
    below.map(|p| p.matches('/').count() - own).max().unwrap_or(0)
}

fn open_slot(model: &Model, random: &mut Random) -> Option<usize> {
    let slot = random.below(SLOTS);
    model.open[slot].as_ref().map(|_| slot)
}

fn any(model: &Model, random: &mut Random, wanted: impl Fn(&Node) -> bool) -> Option<String> {
    let fitting: Vec<&String> =
        model.names.iter().filter(|(_, node)| wanted(node)).map(|(path, _)| path).collect();
    (!fitting.is_empty()).then(|| (*random.pick(&fitting)).clone())
}

fn file(model: &Model, random: &mut Random) -> Option<String> {
    any(model, random, |node| matches!(node, Node::File(_)))
}

/// A directory, the worker's own included, that is less than `depth` deep.
fn directory(model: &Model, random: &mut Random, depth: usize) -> Option<String> {
    if random.chance(40) {
        return Some(String::new());
    }
    let path = any(model, random, |node| *node == Node::Dir)?;
    (path.matches('/').count() < depth).then_some(path)
}

fn name(random: &mut Random) -> String {
    match random.below(40) {
        0 => "n".repeat(255),
        1 => "ein Name mit Leerzeichen, ö und \u{1f980}".to_owned(),
        n => format!("n{n}"),
    }
}

fn free_name(model: &Model, random: &mut Random) -> Option<String> {
    let path = join(&directory(model, random, DEPTH_MAX)?, &name(random));
    (!model.names.contains_key(&path)).then_some(path)
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}
