//! What a directory really holds, and whether a crash may have left it so.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::model::{File, FileId, Model, Names, Node, is_below};

/// A tree as found. Identity of a file is its inode number.
#[derive(Debug)]
pub struct Found {
    pub names: Names,
    pub bytes: BTreeMap<FileId, Vec<u8>>,
    links: BTreeMap<String, u64>,
}

impl Found {
    /// Reads everything below `root`. Errors name the path.
    pub fn scan(root: &Path) -> io::Result<Found> {
        let mut found =
            Found { names: Names::new(), bytes: BTreeMap::new(), links: BTreeMap::new() };
        found.scan_dir(root, "")?;
        Ok(found)
    }

    fn scan_dir(&mut self, root: &Path, dir: &str) -> io::Result<()> {
        let path = root.join(dir);
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        for entry in fs::read_dir(&path).map_err(|e| named(&path, e))? {
            let name = entry.map_err(|e| named(&path, e))?.file_name();
            let name = name.into_string().map_err(|name| {
                io::Error::other(format!("{}: a name nobody gave: {name:?}", path.display()))
            })?;
            let relative = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let full = root.join(&relative);
            self.add(&full, relative).map_err(|e| named(&full, e))?;
        }
        let below: Vec<String> = self
            .names
            .iter()
            .filter(|(path, node)| **node == Node::Dir && crate::model::parent(path) == dir)
            .map(|(path, _)| path.clone())
            .collect();
        below.iter().try_for_each(|dir| self.scan_dir(root, dir))
    }

    fn add(&mut self, full: &Path, relative: String) -> io::Result<()> {
        let metadata = fs::symlink_metadata(full)?;
        let node = if metadata.is_dir() {
            Node::Dir
        } else if metadata.is_symlink() {
            let target = fs::read_link(full)?;
            Node::Symlink(target.to_string_lossy().into_owned())
        } else {
            let bytes = fs::read(full)?;
            if bytes.len() as u64 != metadata.len() {
                let told = metadata.len();
                return Err(io::Error::other(format!("stat says {told}, read {}", bytes.len())));
            }
            if let Some(other) = self.bytes.insert(metadata.ino(), bytes.clone())
                && other != bytes
            {
                return Err(io::Error::other("two names of one inode read differently"));
            }
            Node::File(metadata.ino())
        };
        self.links.insert(relative.clone(), metadata.nlink());
        self.names.insert(relative, node);
        Ok(())
    }

    /// A model in which what was found is the durable beginning. Files are numbered by their first name,
    /// so that two scans of one tree give one model.
    pub fn into_model(self, barriers: bool) -> Model {
        let mut ids: BTreeMap<FileId, FileId> = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut names = self.names;
        let mut bytes = self.bytes;
        for node in names.values_mut() {
            let Node::File(ino) = node else { continue };
            let next = ids.len() as FileId + 1;
            let id = *ids.entry(*ino).or_insert(next);
            if let Some(bytes) = bytes.remove(ino) {
                files.insert(id, File::settled(bytes));
            }
            *node = Node::File(id);
        }
        Model::new(names, files, barriers)
    }

    /// Which file of the model each inode is, if the names are these. What differs, else.
    pub fn matches(&self, names: &Names) -> Result<BTreeMap<FileId, FileId>, String> {
        let mut file_of: BTreeMap<FileId, FileId> = BTreeMap::new();
        let mut ino_of: BTreeMap<FileId, FileId> = BTreeMap::new();
        for (path, node) in names {
            let found = self.names.get(path).ok_or_else(|| format!("{path:?} is missing"))?;
            match (node, found) {
                (Node::File(file), Node::File(ino)) => {
                    let file_same = *file_of.entry(*ino).or_insert(*file) == *file;
                    let ino_same = *ino_of.entry(*file).or_insert(*ino) == *ino;
                    if !file_same || !ino_same {
                        return Err(format!("{path:?} is a link to another file"));
                    }
                }
                (expected, found) if expected == found => {}
                (expected, found) => {
                    return Err(format!("{path:?} is {found:?}, not {expected:?}"));
                }
            }
        }
        if let Some(path) = self.names.keys().find(|path| !names.contains_key(*path)) {
            return Err(format!("{path:?} should not be there"));
        }
        self.check_links(names)?;
        Ok(file_of)
    }

    fn check_links(&self, names: &Names) -> Result<(), String> {
        for (path, node) in names {
            let expected = match node {
                Node::Dir => 2 + names.iter().filter(|(p, n)| is_child_dir(p, n, path)).count(),
                Node::File(_) => names.values().filter(|other| *other == node).count(),
                Node::Symlink(_) => 1,
            };
            let told = self.links[path];
            if told != expected as u64 {
                return Err(format!("{path:?} has {told} links, not {expected}"));
            }
        }
        Ok(())
    }
}

fn is_child_dir(path: &str, node: &Node, dir: &str) -> bool {
    *node == Node::Dir && is_below(path, dir) && crate::model::parent(path) == dir
}

/// The history of one worker in a round: the names after each operation.
#[derive(Debug)]
pub struct History {
    /// With every change in it, the one under way included.
    pub model: Model,
    /// `names[n]`: after `n` operations.
    pub names: Vec<Names>,
    /// Operations that are sure to be there.
    pub durable: usize,
    /// Whether nothing may be missing: no process that held the operations' results died.
    pub exact: bool,
}

impl History {
    /// Whether `found` is what this history may leave. Returns the length of the prefix. Equal names may
    /// stand for other files at another time, so every prefix is tried.
    pub fn check(&self, found: &Found) -> Result<usize, String> {
        let first = if self.exact { self.names.len() - 1 } else { self.durable };
        let mut reasons = String::new();
        for n in (first..self.names.len()).rev() {
            let names = found.matches(&self.names[n]);
            match names.and_then(|file_of| self.check_bytes(found, &file_of)) {
                Ok(()) => return Ok(n),
                Err(why) => {
                    let _ = writeln!(reasons, "  not as after operation {n}: {why}");
                }
            }
        }
        Err(format!("no prefix of what was done\n{reasons}"))
    }

    fn check_bytes(&self, found: &Found, file_of: &BTreeMap<FileId, FileId>) -> Result<(), String> {
        for (path, node) in &found.names {
            let Node::File(ino) = node else { continue };
            let file = &self.model.files[&file_of[ino]];
            let bytes = &found.bytes[ino];
            if self.exact && *bytes != file.bytes {
                let at = bytes.iter().zip(&file.bytes).position(|(a, b)| a != b);
                let (found, expected) = (bytes.len(), file.bytes.len());
                return Err(format!(
                    "{path:?} differs at byte {at:?}; {found} bytes long, {expected} expected"
                ));
            }
            file.may_be(bytes).map_err(|why| format!("{path:?}: {why}"))?;
        }
        Ok(())
    }
}
