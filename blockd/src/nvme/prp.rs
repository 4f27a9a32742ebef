//! Physical region pages: where the data of a command is (NVMe base 2.0 §4.1.1).
//!
//! ```text
//! one page      PRP 1
//! two pages     PRP 1, PRP 2
//! more          PRP 1, PRP 2 → list of the second page and all after it
//! ```
//!
//! Data is contiguous in the device's addresses, so the entries are an arithmetic sequence.

use super::PAGE_BYTES;
use super::command::Data;

/// Entries of a list that is one page.
pub const LIST_ENTRIES: usize = (PAGE_BYTES / 8) as usize;

/// The pointers for `len` bytes at `address`; what belongs into the list at `list_address` goes to `entry`, in order.
/// The list must not cross a page, so at most [`LIST_ENTRIES`] pages follow the first.
///
/// # Panics
/// On data that is empty, not aligned to 4 bytes, or longer than a list: the caller has cut it.
pub fn build(address: u64, len: u64, list_address: u64, mut entry: impl FnMut(usize, u64)) -> Data {
    assert!(len > 0 && address.is_multiple_of(4), "{len} bytes at {address:#x}");
    assert!(list_address.is_multiple_of(PAGE_BYTES), "a list at {list_address:#x}");
    let first = PAGE_BYTES - address % PAGE_BYTES;
    if len <= first {
        return Data { prp1: address, prp2: 0 };
    }
    let second = address + first;
    let pages = (len - first).div_ceil(PAGE_BYTES) as usize;
    if pages == 1 {
        return Data { prp1: address, prp2: second };
    }
    assert!(pages <= LIST_ENTRIES, "{pages} pages behind the first");
    for index in 0..pages {
        entry(index, second + index as u64 * PAGE_BYTES);
    }
    Data { prp1: address, prp2: list_address }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: u64 = 0x7000;

    /// The bytes that a controller would touch, as (address, length) by page.
    fn walk(data: Data, list: &[u64], len: u64) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        let mut rest = len;
        let mut take = |address: u64| {
            let n = (PAGE_BYTES - address % PAGE_BYTES).min(rest);
            rest -= n;
            pieces.push((address, n));
            rest
        };
        let after_first = take(data.prp1);
        if after_first > 0 && after_first <= PAGE_BYTES {
            take(data.prp2);
        } else if after_first > 0 {
            assert_eq!(data.prp2, LIST);
            for address in list {
                assert_eq!(address % PAGE_BYTES, 0, "only the first may have an offset");
                take(*address);
            }
        }
        pieces
    }

    proptest! {
        #[test]
        fn all_bytes_once_and_in_order(page in 1_u64..1000, offset in 0_u64..1024, len in 1_u64..=1 << 20) {
            let address = page * PAGE_BYTES + offset * 4;
            let mut list = Vec::new();
            let data = build(address, len, LIST, |index, entry| {
                assert_eq!(index, list.len());
                list.push(entry);
            });
            let mut next = address;
            for (at, n) in walk(data, &list, len) {
                prop_assert_eq!(at, next);
                next += n;
            }
            prop_assert_eq!(next, address + len);
        }
    }

    #[test]
    fn the_border_cases() {
        let none = |_, _| panic!("no list");
        assert_eq!(build(0x1000, 4096, LIST, none), Data { prp1: 0x1000, prp2: 0 });
        assert_eq!(build(0x1004, 4096, LIST, none), Data { prp1: 0x1004, prp2: 0x2000 });
        assert_eq!(build(0x1000, 8192, LIST, none), Data { prp1: 0x1000, prp2: 0x2000 });
        let mut entries = 0;
        build(0x1000, 8196, LIST, |_, _| entries += 1);
        assert_eq!(entries, 2);
    }
}
