//! The files of the metadata store, each of them altered. The check refuses or accepts, before fjall sees
//! them; what it has accepted it accepts again.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use raftmeta::fuzz::{intact, make_store};

use super::with_scratch;
use crate::cursor::Cursor;

pub const DICTIONARY: &[&[u8]] =
    &[b"FJL\x03", b"SFA!\x01\x00", b"TOC!", b"tables", &[1], &[2], &[3], &[0xff; 8]];

/// Longest part of a file that is kept, so that the zeros at the end of a journal cost nothing.
const FILE_LEN_MAX: usize = 64 << 10;

/// Names, relative, and contents of an intact store.
fn files() -> &'static [(PathBuf, Vec<u8>)] {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = super::temp_dir();
        let store = dir.path().join("kv");
        make_store(&store, 5, 5).unwrap();
        let mut found = Vec::new();
        walk(&store, &store, &mut found);
        found.sort();
        found
    })
}

fn walk(root: &Path, dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(root, &path, found);
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(FILE_LEN_MAX);
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if path.extension().is_some_and(|extension| extension == "jnl") {
            bytes.truncate(used + 16);
        }
        found.push((path.strip_prefix(root).unwrap().to_owned(), bytes));
    }
}

/// Number of the file, then its new contents.
pub fn seeds() -> Vec<Vec<u8>> {
    (0..).zip(files()).map(|(number, (_, bytes))| [&[number][..], bytes].concat()).collect()
}

pub fn target(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let altered = usize::from(cursor.u8()) % files().len();
    with_scratch(|dir| {
        let store = dir.join("kv");
        for (number, (name, contents)) in files().iter().enumerate() {
            let path = store.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, if number == altered { cursor.0 } else { contents }).unwrap();
        }
        if let Ok(commit) = intact(&store) {
            assert_eq!(intact(&store), Ok(commit));
        }
    });
}
