//! Entries, and what inodes say of them: links, parents, sizes of directories, the way to the root.

use std::collections::{BTreeMap, HashSet};

use raftmeta_types::{FileKind, Ino, Inode};

use super::Finding;
use super::stream::{Beside, class, inodes};
use super::sums::{Sums, Suspects};
use crate::kv::{KvError, KvRead};
use crate::records::Dentry;
use crate::{apply, keys, read};

/// Directories that are remembered as within reach of the root.
const REACHED_MAX: usize = 1 << 17;

struct Entry {
    name: Vec<u8>,
    dentry: Dentry,
}

/// Every entry, by its directory.
fn entries<K: KvRead>(kv: &K) -> impl Iterator<Item = Result<(Ino, Entry), KvError>> {
    class::<Dentry, K>(kv, b'D').map(|record| {
        let (key, dentry) = record?;
        let name = keys::name(&key).to_vec();
        Ok((Ino(keys::first_number(&key)), Entry { name, dentry }))
    })
}

/// What entries count for.
#[derive(Clone, Copy)]
enum Counts {
    Links { ino: Ino, links: u32 },
    Parent { of: Ino, is: Ino },
}

impl Counts {
    fn ino(self) -> Ino {
        match self {
            Counts::Links { ino, .. } => ino,
            Counts::Parent { of, .. } => of,
        }
    }
}

/// What is counted beside parents; not as long as an inode number.
const LINKS: &[u8] = b"links";
/// The root has no entry, and `.` and `..` in itself.
const OF_THE_ROOT: Counts = Counts::Links { ino: Ino::ROOT, links: 2 };

fn counts(parent: Ino, dentry: &Dentry) -> impl Iterator<Item = Counts> {
    let ino = dentry.ino;
    let directory = dentry.kind == FileKind::Directory;
    // The entry and its own `.`; the `..` in it is a link of the parent.
    let links = Counts::Links { ino, links: if directory { 2 } else { 1 } };
    let of_directory =
        [Counts::Links { ino: parent, links: 1 }, Counts::Parent { of: ino, is: parent }];
    [links].into_iter().chain(of_directory.into_iter().filter(move |_| directory))
}

/// Whether an entry has to say the same of its parent as its record.
fn has_parent(inode: &Inode) -> bool {
    inode.kind == FileKind::Directory && inode.nlink > 0 && inode.ino != Ino::ROOT
}

fn count(sums: &mut Sums, counts: Counts) {
    let ino = counts.ino().0.to_be_bytes();
    match counts {
        Counts::Links { links, .. } => sums.counted(&ino, LINKS, links.into()),
        Counts::Parent { is, .. } => sums.counted(&ino, &is.0.to_be_bytes(), 1),
    }
}

fn say(sums: &mut Sums, inode: &Inode) {
    let ino = inode.ino.0.to_be_bytes();
    sums.said(&ino, LINKS, inode.nlink.into());
    if has_parent(inode) {
        sums.said(&ino, &inode.parent.0.to_be_bytes(), 1);
    }
}

/// Checks all entries of about so many inodes, and adds what is found in the order of entries, then of inodes.
pub(super) fn check(
    kv: &impl KvRead,
    about: u64,
    findings: &mut Vec<Finding>,
) -> Result<(), KvError> {
    let mut pass = Pass {
        kv,
        sums: Sums::new(about),
        reached: HashSet::new(),
        of_inodes: Vec::new(),
        findings,
    };
    let mut listed = Beside::new(entries(kv));
    let mut number = 0;
    count(&mut pass.sums, OF_THE_ROOT);
    for record in inodes(kv) {
        let (ino, inode) = record?;
        while let Some((parent, entry)) = listed.below(Some(ino))? {
            pass.entry(parent, entry, false)?;
        }
        let mut in_it = 0;
        while let Some(entry) = listed.at(ino)? {
            in_it += 1;
            pass.entry(ino, entry, inode.kind == FileKind::Directory)?;
        }
        pass.inode(&inode, in_it)?;
        number += 1;
    }
    while let Some((parent, entry)) = listed.below(None)? {
        pass.entry(parent, entry, false)?;
    }
    let Pass { sums, mut of_inodes, .. } = pass;
    for suspects in sums.suspects(number) {
        recount(kv, &suspects, &mut of_inodes)?;
    }
    of_inodes.sort_by_key(|(ino, place, _)| (*ino, *place));
    findings.extend(of_inodes.into_iter().map(|(_, _, finding)| finding));
    Ok(())
}

/// With the place among the findings of one inode.
type OfInodes = Vec<(Ino, Place, Finding)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Links,
    Size,
    Parent,
    Reach,
}

struct Pass<'a, K> {
    kv: &'a K,
    sums: Sums,
    reached: HashSet<Ino>,
    of_inodes: OfInodes,
    findings: &'a mut Vec<Finding>,
}

impl<K: KvRead> Pass<'_, K> {
    fn entry(&mut self, parent: Ino, entry: Entry, in_directory: bool) -> Result<(), KvError> {
        let Entry { name, dentry } = entry;
        let (name, ino) = (name.escape_ascii().to_string(), dentry.ino);
        if !in_directory {
            self.findings.push(Finding::EntryOutsideDirectory { parent, name: name.clone() });
        }
        match read::inode(self.kv, ino)? {
            None => self.findings.push(Finding::DanglingEntry { parent, name, ino }),
            Some(inode) if inode.kind != dentry.kind => {
                self.findings.push(Finding::EntryKind { parent, name, ino });
            }
            Some(_) => {}
        }
        counts(parent, &dentry).for_each(|counts| count(&mut self.sums, counts));
        Ok(())
    }

    fn inode(&mut self, inode: &Inode, entries: u64) -> Result<(), KvError> {
        say(&mut self.sums, inode);
        if inode.kind != FileKind::Directory || inode.nlink == 0 {
            return Ok(());
        }
        let ino = inode.ino;
        let counted = entries * apply::DENTRY_SIZE;
        if inode.size != counted {
            let finding = Finding::DirectorySize { ino, recorded: inode.size, counted };
            self.of_inodes.push((ino, Place::Size, finding));
        }
        if !self.reaches_root(inode)? {
            self.of_inodes.push((ino, Place::Reach, Finding::Unreachable { ino }));
        }
        Ok(())
    }

    /// Follows the parents. A circle is noticed as Brent does: one of them stands still and is met again.
    fn reaches_root(&mut self, inode: &Inode) -> Result<bool, KvError> {
        let mut path = Vec::new();
        let (mut at, mut parent) = (inode.ino, inode.parent);
        let (mut stands, mut steps, mut steps_max) = (at, 0u64, 1u64);
        while at != Ino::ROOT && !self.reached.contains(&at) {
            if path.len() < REACHED_MAX {
                path.push(at);
            }
            at = parent;
            if at == stands {
                return Ok(false);
            }
            steps += 1;
            if steps == steps_max {
                (stands, steps, steps_max) = (at, 0, steps_max * 2);
            }
            if at != Ino::ROOT && !self.reached.contains(&at) {
                match read::inode(self.kv, at)? {
                    Some(inode) => parent = inode.parent,
                    None => return Ok(false),
                }
            }
        }
        if self.reached.len() + path.len() > REACHED_MAX {
            self.reached.clear();
        }
        self.reached.extend(path);
        Ok(true)
    }
}

#[derive(Default)]
struct Counted {
    links: u32,
    parents: Vec<Ino>,
}

/// Counts links and parents of the suspects one by one.
fn recount(kv: &impl KvRead, suspects: &Suspects, findings: &mut OfInodes) -> Result<(), KvError> {
    let suspect = |ino: Ino| suspects.contains(&ino.0.to_be_bytes());
    let mut counted: BTreeMap<Ino, Counted> = BTreeMap::new();
    let mut add = |counts: Counts| {
        if !suspect(counts.ino()) {
            return;
        }
        let of = counted.entry(counts.ino()).or_default();
        match counts {
            Counts::Links { links, .. } => of.links += links,
            Counts::Parent { is, .. } => of.parents.push(is),
        }
    };
    add(OF_THE_ROOT);
    for record in entries(kv) {
        let (parent, entry) = record?;
        counts(parent, &entry.dentry).for_each(&mut add);
    }
    for record in inodes(kv) {
        let (ino, inode) = record?;
        if !suspect(ino) {
            continue;
        }
        let Counted { links, parents } = counted.remove(&ino).unwrap_or_default();
        if inode.nlink != links {
            let finding = Finding::Links { ino, recorded: inode.nlink, counted: links };
            findings.push((ino, Place::Links, finding));
        }
        if has_parent(&inode) && parents != [inode.parent] {
            let finding = Finding::Parent { ino, recorded: inode.parent, found: parents };
            findings.push((ino, Place::Parent, finding));
        }
    }
    Ok(())
}
