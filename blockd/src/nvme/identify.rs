//! What controllers and namespaces say of themselves (NVMe base 2.0 §5.17, NVM command set 1.0 §4.1.5), and what of it
//! limits the commands that we send. A device is not believed: whatever does not fit is refused.

use serde::Serialize;

use super::PAGE_BYTES;
use super::bytes::{text, u16_at, u32_at, u64_at};
use crate::engine::BLOCK_BYTES;

/// Bytes of every Identify structure.
pub const BYTES: usize = 4096;
/// Bytes of the SMART log page.
pub const SMART_BYTES: usize = 512;
/// Longest command that we send, whatever the device would take: 1 MiB, so that a PRP list fits a page.
pub const TRANSFER_BYTES_MAX: u64 = 1 << 20;
/// Bytes of zeros that one command writes to a device without Write Zeroes.
pub const ZEROS_BYTES: u64 = 128 << 10;

/// Identify Controller, CNS 01h.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    pub serial: String,
    pub model: String,
    pub firmware: String,
    /// Of the specification that it follows: major, minor and tertiary version; 0 before 1.2.
    pub version: u32,
    /// Longest transfer as a power of two of pages; 0 for no limit.
    pub mdts: u8,
    /// Aborts at once, 1's based.
    pub aborts_max: u16,
    pub namespaces: u32,
    pub has_deallocate: bool,
    pub has_write_zeroes: bool,
    /// Format NVM: whether it is there, and what of it is done to all namespaces, whichever is named.
    pub has_format: bool,
    pub formats_all: bool,
    pub erases_all: bool,
    /// It can erase by throwing its key away.
    pub has_crypto_erase: bool,
    pub volatile_cache: bool,
    /// Blocks written whole when power fails, 1's based.
    pub atomic_blocks: u32,
    /// Bounds of the sizes of queue entries, as powers of two.
    pub sq_entry: u8,
    pub cq_entry: u8,
}

impl Controller {
    /// Reads the structure.
    #[must_use]
    pub fn parse(b: &[u8; BYTES]) -> Controller {
        let commands = u16_at(b, 520);
        Controller {
            serial: text(&b[4..24]),
            model: text(&b[24..64]),
            firmware: text(&b[64..72]),
            version: u32_at(b, 80),
            mdts: b[77],
            aborts_max: u16::from(b[258]) + 1,
            namespaces: u32_at(b, 516),
            has_deallocate: commands & 1 << 2 != 0,
            has_write_zeroes: commands & 1 << 3 != 0,
            has_format: u16_at(b, 256) & 1 << 1 != 0,
            formats_all: b[524] & 1 != 0,
            erases_all: b[524] & 1 << 1 != 0,
            has_crypto_erase: b[524] & 1 << 2 != 0,
            volatile_cache: b[525] & 1 != 0,
            atomic_blocks: u32::from(u16_at(b, 528)) + 1,
            sq_entry: b[512],
            cq_entry: b[513],
        }
    }
}

/// How a namespace can be formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LbaFormat {
    /// Its number for `nvme format --lbaf`.
    pub index: u8,
    pub lba_bytes: u64,
    pub metadata_bytes: u16,
    /// 0 is best, 3 is degraded.
    pub performance: u8,
    pub in_use: bool,
}

/// Identify Namespace, CNS 00h.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub blocks: u64,
    /// Size of a block as a power of two.
    pub lba_shift: u8,
    /// Bytes of metadata of each block.
    pub metadata: u16,
    /// Atomic write unit of this namespace, where it has one of its own.
    pub atomic_blocks: Option<u32>,
    /// All that the device has, in its order.
    pub formats: Vec<LbaFormat>,
}

impl Namespace {
    /// Reads the structure; `None` if it is inactive, which is all zeros.
    #[must_use]
    pub fn parse(b: &[u8; BYTES]) -> Option<Namespace> {
        let blocks = u64_at(b, 0);
        // The index has 4 low bits, and 2 more where there are more than 16 formats.
        let formats = usize::from(b[25]) + 1;
        let low = usize::from(b[26] & 0xf);
        let index = if formats > 16 { low | usize::from(b[26] >> 5 & 3) << 4 } else { low };
        if blocks == 0 || index >= 64 {
            return None;
        }
        let at = 128 + index * 4;
        let format = |number: usize| {
            let at = 128 + number * 4;
            // A size of 0 is a format that the device has not.
            let lba_bytes = 1_u64.checked_shl(b[at + 2].into()).filter(|bytes| *bytes > 1)?;
            Some(LbaFormat {
                index: number as u8,
                lba_bytes,
                metadata_bytes: u16_at(b, at),
                performance: b[at + 3] & 3,
                in_use: number == index,
            })
        };
        let own_atomic = b[24] & 1 << 1 != 0;
        Some(Namespace {
            blocks,
            lba_shift: b[at + 2],
            metadata: u16_at(b, at),
            atomic_blocks: own_atomic.then(|| u32::from(u16_at(b, 36)) + 1),
            formats: (0..formats.min(64)).filter_map(format).collect(),
        })
    }
}

/// What our commands must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Size of a block of the device as a power of two: 9 to 12.
    pub lba_shift: u32,
    /// Blocks that we use; a multiple of 4096 bytes.
    pub blocks: u64,
    pub transfer_blocks_max: u32,
    /// 0 for a device without Write Zeroes.
    pub zero_blocks_max: u32,
    /// 0 for a device without Dataset Management.
    pub deallocate_blocks_max: u32,
    /// Without it, a completed write is durable.
    pub volatile_cache: bool,
}

impl Limits {
    /// Of a namespace whose Identify structures are these. `zeroes_exponent` is WZSL of CNS 06h, 0 where it is not there;
    /// `host_bytes_max` is what the way to the device allows.
    ///
    /// # Errors
    /// Says why blockd cannot use such a namespace, and what to do.
    pub fn of(
        controller: &Controller,
        namespace: &Namespace,
        zeroes_exponent: u8,
        host_bytes_max: u64,
    ) -> Result<Limits, String> {
        let shift = u32::from(namespace.lba_shift);
        if !(9..=12).contains(&shift) {
            return Err(format!(
                "its blocks have 2^{shift} bytes: format it with 512 or 4096 (`cfsctl block device format \
                 PATH --lba-size 4096` loses all that is on it)"
            ));
        }
        if namespace.metadata > 0 {
            return Err(format!(
                "its blocks carry {} bytes of metadata: format it without (`cfsctl block device format \
                 PATH --lba-size 4096` loses all that is on it)",
                namespace.metadata
            ));
        }
        let bytes = namespace.blocks.checked_mul(1 << shift).filter(|b| *b < 1 << 60);
        let bytes = bytes.ok_or("its size is impossible: the controller is broken")?;
        let pages = |exponent: u8| match exponent {
            0 => u64::MAX,
            e => 1_u64
                .checked_shl(e.into())
                .and_then(|p| p.checked_mul(PAGE_BYTES))
                .unwrap_or(u64::MAX),
        };
        let transfer = pages(controller.mdts).min(host_bytes_max).min(TRANSFER_BYTES_MAX);
        let transfer = transfer / BLOCK_BYTES * BLOCK_BYTES;
        if transfer == 0 {
            return Err("it takes less than 4096 bytes in one command".to_owned());
        }
        let blocks_of = |bytes: u64| (bytes >> shift).min(0x1_0000) as u32;
        // A device that says nothing of zeroing is asked for no more than it would be sent.
        let zero =
            if zeroes_exponent == 0 { pages(controller.mdts) } else { pages(zeroes_exponent) };
        let zero = zero / BLOCK_BYTES * BLOCK_BYTES;
        Ok(Limits {
            lba_shift: shift,
            blocks: (bytes / BLOCK_BYTES * BLOCK_BYTES) >> shift,
            transfer_blocks_max: blocks_of(transfer),
            zero_blocks_max: if controller.has_write_zeroes { blocks_of(zero) } else { 0 },
            // One range has 32 bits; less keeps a device from being busy for long.
            deallocate_blocks_max: if controller.has_deallocate {
                1 << 22 >> (shift - 9)
            } else {
                0
            },
            volatile_cache: controller.volatile_cache,
        })
    }

    /// Bytes that we use.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks << self.lba_shift
    }

    /// Blocks of zeros that one command writes.
    #[must_use]
    pub fn zeros_blocks_max(&self) -> u32 {
        self.transfer_blocks_max.min((ZEROS_BYTES >> self.lba_shift) as u32)
    }
}

/// What is wrong by the SMART log page, 02h (§5.16.1.3); `None` if nothing is.
#[must_use]
pub fn smart_warning(b: &[u8; SMART_BYTES]) -> Option<String> {
    let words = [
        "spare space is low",
        "temperature is out of its range",
        "reliability is degraded",
        "it is read-only",
        "the backup of its volatile memory has failed",
        "its persistent memory is unreliable",
    ];
    let set: Vec<&str> =
        words.iter().enumerate().filter(|(i, _)| b[0] & 1 << i != 0).map(|(_, w)| *w).collect();
    (!set.is_empty()).then(|| format!("SMART: {}", set.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::bytes::{put16, put64};

    fn controller() -> Controller {
        let mut b = [0; BYTES];
        b[4..24].copy_from_slice(b"serial              ");
        b[24..31].copy_from_slice(b"model\x01 ");
        b[64..68].copy_from_slice(b"1.0 ");
        b[77] = 7;
        b[80..84].copy_from_slice(&0x1_0400_u32.to_le_bytes());
        b[258] = 3;
        put16(&mut b, 520, 1 << 2 | 1 << 3);
        b[525] = 1;
        put16(&mut b, 528, 7);
        Controller::parse(&b)
    }

    fn namespace(format: u8, shift: u8, metadata: u16) -> Namespace {
        let mut b = [0; BYTES];
        put64(&mut b, 0, 1001);
        b[25] = format.max(1);
        b[26] = if b[25] >= 16 { format & 0xf | format >> 4 << 5 } else { format };
        b[128 + usize::from(format) * 4 + 2] = shift;
        put16(&mut b, 128 + usize::from(format) * 4, metadata);
        Namespace::parse(&b).unwrap()
    }

    #[test]
    fn structures_are_read() {
        let c = controller();
        assert_eq!(
            (c.serial.as_str(), c.model.as_str(), c.firmware.as_str()),
            ("serial", "model?", "1.0")
        );
        assert!(c.has_deallocate && c.has_write_zeroes && c.volatile_cache);
        assert_eq!((c.atomic_blocks, c.aborts_max), (8, 4));
        for format in [0, 3, 17, 40] {
            let n = namespace(format, 12, 0);
            assert_eq!((n.lba_shift, n.blocks, n.atomic_blocks), (12, 1001, None), "{format}");
        }
        assert_eq!(Namespace::parse(&[0; BYTES]), None);
        assert_eq!(c.version, 0x1_0400);
        let formats = namespace(3, 12, 8).formats;
        let used = LbaFormat {
            index: 3,
            lba_bytes: 4096,
            metadata_bytes: 8,
            performance: 0,
            in_use: true,
        };
        assert_eq!(formats, [used], "those of no size are none");
        assert_eq!(namespace(0, 200, 0).formats, [], "an impossible size");
    }

    #[test]
    fn limits_of_both_block_sizes() {
        let small = Limits::of(&controller(), &namespace(0, 9, 0), 0, u64::MAX).unwrap();
        // 1001 blocks of 512 bytes are 125 of ours and a rest.
        assert_eq!((small.lba_shift, small.blocks, small.bytes()), (9, 1000, 125 * 4096));
        assert_eq!(small.transfer_blocks_max, 1024);
        let large = Limits::of(&controller(), &namespace(1, 12, 0), 5, 508 << 10).unwrap();
        assert_eq!(
            (large.blocks, large.transfer_blocks_max, large.zero_blocks_max),
            (1001, 127, 32)
        );
        assert_eq!(large.zeros_blocks_max(), 32);
        let endless = Controller { mdts: 0, ..controller() };
        let limits = Limits::of(&endless, &namespace(1, 9, 0), 0, u64::MAX).unwrap();
        assert_eq!((limits.transfer_blocks_max, limits.zero_blocks_max), (2048, 0x1_0000));
    }

    #[test]
    fn what_cannot_be_used_says_so() {
        let of = |n: &Namespace| Limits::of(&controller(), n, 0, u64::MAX).unwrap_err();
        assert!(of(&namespace(0, 12, 8)).contains("metadata"));
        assert!(of(&namespace(0, 13, 0)).contains("512 or 4096"));
        assert!(of(&namespace(0, 0, 0)).contains("512 or 4096"));
        assert!(of(&namespace(0, 255, 0)).contains("512 or 4096"));
        let huge = Namespace { blocks: u64::MAX, ..namespace(0, 9, 0) };
        assert!(of(&huge).contains("impossible"));
    }

    #[test]
    fn smart_warnings_have_words() {
        let mut b = [0; SMART_BYTES];
        assert_eq!(smart_warning(&b), None);
        b[0] = 1 | 1 << 3;
        assert_eq!(smart_warning(&b).unwrap(), "SMART: spare space is low, it is read-only");
    }
}
