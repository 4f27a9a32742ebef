//! Which pages an arena really has, as `/proc/self/smaps` tells.
//!
//! ```text
//! 7f2c40000000-7f2c44000000 rw-s 00000000 00:01 2057      /memfd:claudefs (deleted)
//! Rss:               65536 kB        touched so far
//! ShmemPmdMapped:     8192 kB        of it in transparent huge pages
//! ```
//! Whether the kernel makes shared memory huge is its administrator's choice
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`), and even then only where it finds 2 MiB in one piece.

use std::fmt;

/// The pages behind an arena at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// 2 MiB pages that were reserved for it.
    Hugetlb,
    /// Ordinary memory: of the bytes that have pages at all, how many are in huge ones.
    Ordinary { resident_bytes: u64, huge_bytes: u64 },
    /// Ordinary memory, and `/proc/self/smaps` does not say more.
    Unknown,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Pages::Hugetlb => f.write_str("hugetlb 2 MiB"),
            Pages::Ordinary { huge_bytes: 0, .. } => f.write_str("4 KiB"),
            Pages::Ordinary { resident_bytes, huge_bytes } if huge_bytes >= resident_bytes => {
                f.write_str("transparent 2 MiB")
            }
            Pages::Ordinary { resident_bytes, huge_bytes } => {
                let (huge, all) = (huge_bytes >> 20, resident_bytes.div_ceil(1 << 20));
                write!(f, "transparent 2 MiB ({huge} of {all} MiB) and 4 KiB")
            }
            Pages::Unknown => f.write_str("transparent or 4 KiB"),
        }
    }
}

/// What `smaps` says of the mapping that starts at this address.
pub(crate) fn of_mapping(smaps: &str, start: usize) -> Pages {
    let head = format!("{start:08x}-");
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
    let (mut resident, mut huge) = (None, None);
    // Until the head of the next mapping, the only lines whose first word is not a name.
    for line in lines.by_ref() {
        let Some((name, value)) = line.split_once(':').filter(|(name, _)| !name.contains(' '))
        else {
            break;
        };
        let kib = || value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok());
        match name {
            "Rss" => resident = kib(),
            "ShmemPmdMapped" => huge = kib(),
            _ => {}
        }
    }
    match (resident, huge) {
        (Some(resident), Some(huge)) => {
            Pages::Ordinary { resident_bytes: resident << 10, huge_bytes: huge << 10 }
        }
        _ => Pages::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00401000 r-xp 00000000 fe:00 1    /bin/x
Rss:                   4 kB
ShmemPmdMapped:        0 kB
VmFlags: rd ex
7f2c40000000-7f2c44000000 rw-s 00000000 00:01 2057                       /memfd:claudefs (deleted)
Size:              65536 kB
Rss:               65536 kB
ShmemPmdMapped:     8192 kB
VmFlags: rd wr sh
7f2c44000000-7f2c44200000 rw-s 00000000 00:01 2058                       /memfd:claudefs (deleted)
Rss:                2048 kB
ShmemPmdMapped:     2048 kB
VmFlags: rd wr sh
";

    #[test]
    fn the_mapping_is_found_and_read() {
        let at = |start| of_mapping(SMAPS, start).to_string();
        assert_eq!(at(0x0040_0000), "4 KiB");
        assert_eq!(at(0x7f2c_4000_0000), "transparent 2 MiB (8 of 64 MiB) and 4 KiB");
        assert_eq!(at(0x7f2c_4400_0000), "transparent 2 MiB");
        assert_eq!(at(0x1000), "transparent or 4 KiB");
        assert_eq!(of_mapping("", 0), Pages::Unknown);
    }
}
