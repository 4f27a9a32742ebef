//! Numbers and layouts of the FUSE protocol 7.36 (`linux/fuse.h`), native byte order.

/// Version that is spoken; later kernels speak it, too.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 36;
/// Bytes of one write or read.
pub(crate) const MAX_WRITE: u32 = 1 << 20;
/// A request with the largest write, and some room for its headers.
pub(crate) const REQUEST_MAX: usize = MAX_WRITE as usize + 8192;
pub(crate) const OUT_HEADER: usize = 16;
pub(crate) const ENTRY_SIZE: usize = 128;
pub(crate) const INIT_OUT_SIZE: usize = 64;
/// Requests that the kernel keeps in the background (read-ahead, write-back), and from when on it
/// counts as congested.
pub(crate) const MAX_BACKGROUND: u16 = 64;
pub(crate) const CONGESTION: u16 = 48;

/// Kinds of requests (`enum fuse_opcode`).
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const STATX: u32 = 52;
    pub(crate) const COPY_FILE_RANGE_64: u32 = 53;
}

/// What is asked for at `INIT` (`FUSE_*`).
pub(crate) mod init {
    const ASYNC_READ: u32 = 1;
    const POSIX_LOCKS: u32 = 1 << 1;
    const EXPORT_SUPPORT: u32 = 1 << 4;
    const BIG_WRITES: u32 = 1 << 5;
    const DONT_MASK: u32 = 1 << 6;
    const FLOCK_LOCKS: u32 = 1 << 10;
    const DO_READDIRPLUS: u32 = 1 << 13;
    const READDIRPLUS_AUTO: u32 = 1 << 14;
    const ASYNC_DIO: u32 = 1 << 15;
    const PARALLEL_DIROPS: u32 = 1 << 18;
    const POSIX_ACL: u32 = 1 << 20;
    const MAX_PAGES: u32 = 1 << 22;
    const CACHE_SYMLINKS: u32 = 1 << 23;
    /// Without the write-back cache: the kernel then believes its own size and times, also when
    /// another mount has changed them. Without `ATOMIC_O_TRUNC`: with it an open that truncates reaches us
    /// before the kernel has refused it with ETXTBSY, and a program that runs loses its pages.
    pub(crate) const FLAGS: u32 = ASYNC_READ
        | POSIX_LOCKS
        | EXPORT_SUPPORT
        | BIG_WRITES
        | DONT_MASK
        | FLOCK_LOCKS
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | POSIX_ACL
        | MAX_PAGES
        | CACHE_SYMLINKS;
}

/// Valid fields of `fuse_setattr_in` (`FATTR_*`).
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// The kernel's pages of the file stay.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// `fuse_write_in`: from the page cache, through whatever handle.
pub(crate) const WRITE_CACHE: u32 = 1;
/// `fuse_release_in`: drop the `flock` locks of this owner.
pub(crate) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `fuse_lk_in`: a `flock` lock.
pub(crate) const LK_FLOCK: u32 = 1;
/// `fuse_rename2_in`, as `renameat2` has them.
pub(crate) const RENAME_NOREPLACE: u32 = 1;
pub(crate) const RENAME_EXCHANGE: u32 = 2;
/// `fuse_setxattr_in`, as `setxattr` has them.
pub(crate) const XATTR_CREATE: u32 = 1;
pub(crate) const XATTR_REPLACE: u32 = 2;
/// `fuse_fallocate_in`, as `fallocate` has them.
pub(crate) mod fallocate {
    pub(crate) const KEEP_SIZE: u32 = 1;
    pub(crate) const PUNCH_HOLE: u32 = 2;
    pub(crate) const COLLAPSE_RANGE: u32 = 8;
    pub(crate) const ZERO_RANGE: u32 = 0x10;
    pub(crate) const INSERT_RANGE: u32 = 0x20;
}
/// `fuse_lseek_in`.
pub(crate) const SEEK_DATA: u32 = 3;
pub(crate) const SEEK_HOLE: u32 = 4;
/// `fuse_lk_in`, as `fcntl` has them.
pub(crate) const F_RDLCK: u32 = 0;
pub(crate) const F_WRLCK: u32 = 1;
pub(crate) const F_UNLCK: u32 = 2;

/// Messages to the kernel that answer nothing (`enum fuse_notify_code`).
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;
pub(crate) const NOTIFY_INVAL_ENTRY: i32 = 3;

/// Takes a request apart; reading past its end yields `None`.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    /// Passes over `len` bytes.
    pub(crate) fn skip(&mut self, len: usize) -> Option<()> {
        self.bytes(len).map(drop)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// A name that ends with NUL.
    pub(crate) fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|byte| *byte == 0)?;
        let name = self.bytes(len)?;
        self.bytes(1)?;
        Some(name)
    }
}

/// Builds an answer.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn zeros(&mut self, len: usize) -> &mut Self {
        self.0.resize(self.0.len() + len, 0);
        self
    }
}
