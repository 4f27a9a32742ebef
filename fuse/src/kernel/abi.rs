//! Numbers and layouts of the FUSE protocol 7.36 (`linux/fuse.h`), native byte order.

pub(crate) const MAX_WRITE: u32 = 1 << 20;
pub(crate) const IN_HEADER: usize = 40;
pub(crate) const ENTRY_SIZE: usize = 128;

/// ASYNC_READ, POSIX_LOCKS, ATOMIC_O_TRUNC, EXPORT_SUPPORT, BIG_WRITES, DONT_MASK, FLOCK_LOCKS,
/// DO_READDIRPLUS, READDIRPLUS_AUTO, PARALLEL_DIROPS, POSIX_ACL, MAX_PAGES, CACHE_SYMLINKS.
pub(crate) const INIT_FLAGS: u32 = 1
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 10
    | 1 << 13
    | 1 << 14
    | 1 << 18
    | 1 << 20
    | 1 << 22
    | 1 << 23;

pub(crate) const FOPEN_DIRECT_IO: u32 = 1;
pub(crate) const FOPEN_KEEP_CACHE: u32 = 2;
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
}
