//! The mount table of this process (`/proc/self/mountinfo`, proc(5)), and where a path lies in it.
//!
//! Nothing here touches a mounted file system, so it works while one hangs.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Type of our mounts in the table.
pub const KIND: &str = "fuse.claudefs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`; the minor number is that of the FUSE connection.
    pub device: String,
    /// Directory of the file system that is mounted, `/` unless it is a bind mount.
    pub root: PathBuf,
    pub mountpoint: PathBuf,
    pub kind: String,
    /// For ours `CLUSTER@UUID`, the latter cut to 8 digits.
    pub source: String,
    pub read_only: bool,
}

/// Reads the table, in the order of mounting.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Lines that are not as proc(5) says are left out.
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |at: usize| Some(String::from_utf8_lossy(fields.get(at)?).into_owned());
    let path = |at: usize| Some(PathBuf::from(OsString::from_vec(unescape(fields.get(at)?))));
    let read_only = fields.get(5)?.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount {
        device: text(2)?,
        root: path(3)?,
        mountpoint: path(4)?,
        kind: text(dash + 1)?,
        source: String::from_utf8_lossy(&unescape(fields.get(dash + 2)?)).into_owned(),
        read_only,
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(is_octal));
        match digits {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |n, digit| n * 8 + u32::from(digit - b'0'));
                plain.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

fn is_octal(byte: &u8) -> bool {
    (b'0'..=b'7').contains(byte)
}

/// The mount that covers an absolute path: the deepest mountpoint, of several there the last.
pub fn covering<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &Mount| mount.mountpoint.components().count();
    mounts.iter().filter(|mount| path.starts_with(&mount.mountpoint)).max_by_key(|m| depth(m))
}

/// What is mounted exactly there; of several the last, which hides the others.
pub fn at<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.mountpoint == path)
}

/// Absolute, without `.` and `..`, taken by the letter: no link is followed, nothing is asked.
pub fn lexical(path: &Path) -> io::Result<PathBuf> {
    let mut plain = PathBuf::from("/");
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    Ok(plain)
}

impl Mount {
    pub fn is_ours(&self) -> bool {
        self.kind == KIND
    }

    /// Path in the mounted file system of a path below the mountpoint.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.mountpoint).ok()?;
        Some(if below.as_os_str().as_bytes().is_empty() {
            self.root.clone()
        } else {
            self.root.join(below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
50 22 0:45 / /mnt/my\\040files rw,nosuid - fuse.claudefs dev@7f3c0011 rw,user_id=0
51 22 0:46 / /mnt/b ro,nosuid shared:9 - fuse.claudefs dev@7f3c0011 ro
52 51 0:47 / /mnt/b/tmp rw - tmpfs tmpfs rw
53 22 0:45 /sub /mnt/bind rw - fuse.claudefs dev@7f3c0011 rw
garbage
";

    #[test]
    fn the_table_is_read() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 6);
        let ours = at(&mounts, Path::new("/mnt/my files")).unwrap();
        assert!(ours.is_ours() && !ours.read_only);
        assert_eq!((ours.source.as_str(), ours.device.as_str()), ("dev@7f3c0011", "0:45"));
        assert!(at(&mounts, Path::new("/mnt/b")).unwrap().read_only);
        assert!(at(&mounts, Path::new("/mnt")).is_none());
    }

    #[test]
    fn a_path_lies_on_the_deepest_mount() {
        let mounts = parse(TABLE);
        let kind = |path: &str| covering(&mounts, Path::new(path)).unwrap().kind.clone();
        assert_eq!(kind("/mnt/b/x"), KIND);
        assert_eq!(kind("/mnt/b/tmp/x"), "tmpfs");
        assert_eq!(kind("/mnt/bb"), "ext4");
        let inside =
            |path: &str| covering(&mounts, Path::new(path)).unwrap().inside(Path::new(path));
        assert_eq!(inside("/mnt/b").unwrap(), Path::new("/"));
        assert_eq!(inside("/mnt/b/x/y").unwrap(), Path::new("/x/y"));
        assert_eq!(inside("/mnt/bind/y").unwrap(), Path::new("/sub/y"));
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape(b"a\\040b\\134c"), b"a b\\c");
        assert_eq!(unescape(b"a\\9\\04"), b"a\\9\\04");
    }

    #[test]
    fn paths_are_normalised_by_the_letter() {
        assert_eq!(lexical(Path::new("/a/./b/../c//d/")).unwrap(), Path::new("/a/c/d"));
        assert_eq!(lexical(Path::new("/../..")).unwrap(), Path::new("/"));
        assert!(lexical(Path::new("x")).unwrap().is_absolute());
    }
}
