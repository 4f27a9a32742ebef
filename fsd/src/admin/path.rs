//! The inode that an administrator's target names.

use fsd_rpc::admin::Target;
use fsd_rpc::message::Failure;
use raftmeta::KvRead;
use raftmeta::read;
use raftmeta_types::{FileKind, Ino, Inode};

use super::refused;
use crate::service::storage;

/// Longest path in bytes, as Linux has it.
const PATH_BYTES_MAX: usize = 4096;

/// The inode, or a refusal that says which part of the path is missing.
pub(super) fn resolve(kv: &impl KvRead, target: &Target) -> Result<Inode, Failure> {
    match target {
        Target::Ino(ino) => read::inode(kv, *ino).map_err(storage)?.ok_or_else(|| {
            refused("NOT_FOUND", format!("inode {ino}"), "there is no such inode", "")
        }),
        Target::Path(path) => walk(kv, path),
    }
}

fn walk(kv: &impl KvRead, path: &[u8]) -> Result<Inode, Failure> {
    let shown = path.escape_ascii().to_string();
    if path.first() != Some(&b'/') || path.len() > PATH_BYTES_MAX {
        let why =
            format!("a path in the cluster begins with / and has up to {PATH_BYTES_MAX} bytes");
        return Err(refused("INVALID", shown, why, ""));
    }
    let mut inode = read::inode(kv, Ino::ROOT)
        .map_err(storage)?
        .ok_or_else(|| refused("NOT_FOUND", "/", "there is no root directory", "cfs admin fsck"))?;
    let mut at = String::new();
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        match inode.kind {
            FileKind::Directory => {}
            FileKind::Symlink => {
                let target = inode.target.escape_ascii();
                let why = format!("{at} is a symbolic link to {target}");
                return Err(refused("INVALID", shown, why, "name the path that it leads to"));
            }
            FileKind::Regular
            | FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice
            | FileKind::BlockDevice => {
                let why = format!("{at} is not a directory");
                return Err(refused("NOT_FOUND", shown, why, ""));
            }
        }
        at.push('/');
        at.push_str(&name.escape_ascii().to_string());
        let found = read::lookup(kv, inode.ino, name).map_err(storage)?;
        inode = found.ok_or_else(|| {
            let why = format!("there is no {at} in the cluster");
            refused("NOT_FOUND", &shown, why, "a path of this host must lie in a ClaudeFS mount")
        })?;
    }
    Ok(inode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use raftmeta::{Kv, MemKv, keys, records};
    use raftmeta_types::{Time, Version};

    fn inode(ino: u64, kind: FileKind) -> Inode {
        Inode {
            ino: Ino(ino),
            kind,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            allocated: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: Time::default(),
            rdev: 0,
            version: Version(1),
            data_version: Version(1),
            parent: Ino::ROOT,
            target: Bytes::from_static(b"d"),
            has_acl: false,
        }
    }

    fn tree() -> MemKv {
        let mut kv = MemKv::new();
        let entries = [
            (Ino::ROOT, "d", inode(2, FileKind::Directory)),
            (Ino(2), "f", inode(3, FileKind::Regular)),
            (Ino::ROOT, "link", inode(4, FileKind::Symlink)),
        ];
        let root = inode(1, FileKind::Directory);
        kv.put(&keys::inode(Ino::ROOT), &records::encode(&root)).unwrap();
        for (parent, name, inode) in entries {
            let dentry = records::Dentry { ino: inode.ino, kind: inode.kind };
            kv.put(&keys::dentry(parent, name.as_bytes()), &records::encode(&dentry)).unwrap();
            kv.put(&keys::inode(inode.ino), &records::encode(&inode)).unwrap();
        }
        kv
    }

    fn found(path: &str) -> Result<u64, String> {
        let target = Target::Path(Bytes::copy_from_slice(path.as_bytes()));
        resolve(&tree(), &target).map(|inode| inode.ino.0).map_err(|failure| failure.to_string())
    }

    #[test]
    fn paths_are_walked() {
        for (path, ino) in [("/", 1), ("/d", 2), ("//d//f/", 3), ("/link", 4)] {
            assert_eq!(found(path), Ok(ino), "{path}");
        }
        assert_eq!(resolve(&tree(), &Target::Ino(Ino(3))).unwrap().ino, Ino(3));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (path, word) in [
            ("", "begins with /"),
            ("d", "begins with /"),
            ("/d/x/y", "no /d/x"),
            ("/d/f/x", "/d/f is not a directory"),
            ("/link/f", "symbolic link to d"),
            (&format!("/{}", "x".repeat(5000)), "4096"),
        ] {
            let error = found(path).unwrap_err();
            assert!(error.contains(word), "{path}: {error}");
        }
        assert!(resolve(&tree(), &Target::Ino(Ino(9))).is_err());
    }
}
