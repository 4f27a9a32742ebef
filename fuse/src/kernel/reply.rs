//! The structures of answers.

use fsd_rpc::message::StatFs;
use raftmeta_types::lock::{Lock, LockKind};
use raftmeta_types::{FileKind, Ino, Inode, NAME_MAX, Time};

use super::abi::{self, Writer};

/// How long the kernel believes entries and attributes, in seconds (`docs/decisions.md`, D6).
const VALID_SECS: u64 = 1;
/// Bytes of an entry in a listing before its name.
const DIRENT_SIZE: usize = 24;
/// `statx`: basic fields and the time of birth.
const STATX_MASK: u32 = 0x0fff;

/// `fuse_entry_out`
pub(super) fn entry(inode: &Inode) -> Vec<u8> {
    let mut out = Writer::default();
    let generation = 0;
    out.u64(inode.ino.0).u64(generation).u64(VALID_SECS).u64(VALID_SECS).u64(0);
    attr(&mut out, inode);
    debug_assert_eq!(out.0.len(), abi::ENTRY_SIZE);
    out.0
}

/// `fuse_attr_out`
pub(super) fn attributes(inode: &Inode) -> Vec<u8> {
    let mut out = Writer::default();
    out.u64(VALID_SECS).u64(0);
    attr(&mut out, inode);
    out.0
}

fn attr(out: &mut Writer, inode: &Inode) {
    out.u64(inode.ino.0).u64(inode.size).u64(blocks(inode));
    let times = [inode.atime, inode.mtime, inode.ctime];
    times.iter().for_each(|time| _ = out.u64(time.secs as u64));
    times.iter().for_each(|time| _ = out.u32(time.nanos));
    out.u32(mode_of(inode.kind) | inode.mode).u32(inode.nlink).u32(inode.uid).u32(inode.gid);
    out.u32(inode.rdev).u32(abi::MAX_WRITE).u32(0);
}

/// `fuse_statx_out`
pub(super) fn statx(inode: &Inode) -> Vec<u8> {
    let mut out = Writer::default();
    out.u64(VALID_SECS).u32(0).u32(0).zeros(16);
    out.u32(STATX_MASK).u32(abi::MAX_WRITE).u64(0);
    out.u32(inode.nlink).u32(inode.uid).u32(inode.gid);
    out.u16((mode_of(inode.kind) | inode.mode) as u16).u16(0);
    out.u64(inode.ino.0).u64(inode.size).u64(blocks(inode)).u64(0);
    let mut time = |time: Time| _ = out.u64(time.secs as u64).u32(time.nanos).u32(0);
    [inode.atime, inode.btime, inode.ctime, inode.mtime].into_iter().for_each(&mut time);
    // `rdev` is packed as `new_encode_dev` has it: 8 bits of the minor, 12 of the major, the rest.
    let (major, minor) = (inode.rdev >> 8 & 0xfff, inode.rdev & 0xff | inode.rdev >> 12 & 0xfff00);
    out.u32(major).u32(minor).u32(0).u32(0).zeros(14 * 8);
    out.0
}

fn blocks(inode: &Inode) -> u64 {
    inode.allocated.div_ceil(512)
}

/// `fuse_open_out`
pub(super) fn opened(fh: u64, keep_pages: bool) -> Vec<u8> {
    let mut out = Writer::default();
    out.u64(fh).u32(if keep_pages { abi::FOPEN_KEEP_CACHE } else { 0 }).u32(0);
    out.0
}

/// `fuse_statfs_out`
pub(super) fn statfs(fs: &StatFs) -> Vec<u8> {
    let size = u64::from(fs.block_size.max(1));
    let mut out = Writer::default();
    out.u64(fs.total_bytes / size).u64(fs.free_bytes / size).u64(fs.available_bytes / size);
    out.u64(fs.inodes.saturating_add(fs.inodes_free)).u64(fs.inodes_free);
    out.u32(fs.block_size).u32(NAME_MAX as u32).u32(fs.block_size).zeros(28);
    out.0
}

/// `fuse_lk_out`
pub(super) fn lock(found: &Lock) -> Vec<u8> {
    let kind = match found.kind {
        LockKind::Shared => abi::F_RDLCK,
        LockKind::Exclusive => abi::F_WRLCK,
        LockKind::Unlock => abi::F_UNLCK,
    };
    let mut out = Writer::default();
    out.u64(found.start).u64(found.end.min(i64::MAX as u64)).u32(kind).u32(found.pid);
    out.0
}

/// `fuse_write_out`, `fuse_getxattr_out`: a size and padding.
pub(super) fn size(size: u32) -> Vec<u8> {
    let mut out = Writer::default();
    out.u32(size).u32(0);
    out.0
}

/// An entry of a listing.
pub(super) struct Dirent<'a> {
    pub(super) ino: Ino,
    /// Where to go on behind it.
    pub(super) next: u64,
    pub(super) kind: FileKind,
    pub(super) name: &'a [u8],
}

/// Appends `fuse_dirent`, for `READDIRPLUS` behind the inode that its entry is of (zeros: not told),
/// unless that does not fit in `size`.
pub(super) fn dirent(
    out: &mut Writer,
    size: usize,
    found: &Dirent<'_>,
    plus: Option<Option<&Inode>>,
) -> bool {
    let before = if plus.is_some() { abi::ENTRY_SIZE } else { 0 };
    if out.0.len() + before + (DIRENT_SIZE + found.name.len()).next_multiple_of(8) > size {
        return false;
    }
    match plus {
        Some(Some(inode)) => out.0.extend(entry(inode)),
        Some(None) => _ = out.zeros(abi::ENTRY_SIZE),
        None => {}
    }
    out.u64(found.ino.0).u64(found.next).u32(found.name.len() as u32);
    out.u32(mode_of(found.kind) >> 12);
    out.0.extend_from_slice(found.name);
    out.0.resize(out.0.len().next_multiple_of(8), 0);
    true
}

/// `S_IFMT` bits.
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

/// What `mknod` can make.
pub(super) fn kind_of(mode: u32) -> Option<FileKind> {
    Some(match mode & 0o170000 {
        0o010000 => FileKind::Fifo,
        0o020000 => FileKind::CharDevice,
        0o060000 => FileKind::BlockDevice,
        0 | 0o100000 => FileKind::Regular,
        0o140000 => FileKind::Socket,
        _ => return None,
    })
}
