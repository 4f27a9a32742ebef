//! POSIX ACLs in the form that Linux keeps in extended attributes.
//!
//! ```text
//! u32 version = 2, then per entry: u16 tag, u16 permissions, u32 id   (all little-endian)
//! ```
//!
//! The kernel checks permissions with them; here only inheritance and the tie to the mode bits.

use raftmeta_types::MetaError;

use super::state::{Step, invalid};

pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

const FORMAT: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid, not empty ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// `None` for one without entries, which means removal.
    pub fn parse(bytes: &[u8]) -> Step<Option<Acl>> {
        let Some((head, body)) = bytes.split_first_chunk::<4>() else {
            return if bytes.is_empty() { Ok(None) } else { invalid("ACL too short") };
        };
        if u32::from_le_bytes(*head) != FORMAT {
            return Err(MetaError::Unsupported("this version of POSIX ACL".into()).into());
        }
        if !body.len().is_multiple_of(8) {
            return invalid("ACL cut in the middle of an entry");
        }
        let entries: Vec<Entry> = body
            .chunks_exact(8)
            .map(|e| Entry {
                tag: u16::from_le_bytes([e[0], e[1]]),
                perm: u16::from_le_bytes([e[2], e[3]]),
                id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let known = USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER;
        let named = count(USER) + count(GROUP) > 0;
        let valid = entries.iter().all(|e| e.tag.count_ones() == 1 && e.tag & known != 0)
            && entries.iter().all(|e| e.perm <= 7)
            && entries.is_sorted_by_key(|e| e.tag)
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|&tag| count(tag) == 1)
            && count(MASK) <= 1
            && (!named || count(MASK) == 1);
        if valid { Ok(Some(Acl(entries))) } else { invalid("not a valid POSIX ACL") }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = FORMAT.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.perm.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes
    }

    /// Whether the mode bits say all that it says.
    pub fn is_mode(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// The nine permission bits that it stands for.
    pub fn mode(&self) -> u32 {
        self.bits().into_iter().map(|(at, shift)| u32::from(self.0[at].perm) << shift).sum()
    }

    /// `chmod`: owner, mask (else owning group) and other follow the mode.
    pub fn set_mode(&mut self, mode: u32) {
        for (at, shift) in self.bits() {
            self.0[at].perm = (mode >> shift & 7) as u16;
        }
    }

    /// Inheritance of a default ACL: it is narrowed by the mode asked for, and the mode by it.
    pub fn inherit(&mut self, mode: u32) -> u32 {
        let narrowed = mode & self.mode();
        self.set_mode(narrowed);
        mode & !0o777 | narrowed
    }

    /// Which entries are the mode's, and where their bits stand in it.
    fn bits(&self) -> Vec<(usize, u32)> {
        let find = |tag| self.0.iter().position(|entry| entry.tag == tag);
        let group = find(MASK).or(find(GROUP_OBJ));
        [(find(USER_OBJ), 6), (group, 3), (find(OTHER), 0)]
            .into_iter()
            .filter_map(|(at, shift)| at.map(|at| (at, shift)))
            .collect()
    }
}
