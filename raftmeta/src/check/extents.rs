//! Extents, the index of unsettled data, and what inodes say of their extents.

use raftmeta_types::{Extent, ExtentData, Ino, Version};

use super::Finding;
use super::stream::{Beside, class, inodes};
use super::sums::Sums;
use crate::apply::INLINE_KEEP_MAX;
use crate::keys;
use crate::kv::{KvError, KvRead};
use crate::records::ExtentRecord;

type Place = (Ino, u64);

fn place(key: &[u8]) -> Place {
    (Ino(keys::first_number(key)), keys::second_number(key))
}

/// Every extent, by inode and offset.
pub(super) fn extents<K: KvRead>(kv: &K) -> impl Iterator<Item = Result<(Place, Extent), KvError>> {
    class::<ExtentRecord, K>(kv, b'E').map(|record| {
        let (key, ExtentRecord { len, data, version }) = record?;
        let (ino, offset) = place(&key);
        Ok(((ino, offset), Extent { offset, len, data, version }))
    })
}

/// Checks extents and their index of unsettled data. Adds to `references` what they refer to; returns how many there
/// are.
pub(super) fn check(
    kv: &impl KvRead,
    references: &mut Sums,
    findings: &mut Vec<Finding>,
) -> Result<u64, KvError> {
    let unsettled = class::<Version, _>(kv, b'U').map(|record| {
        let (key, version) = record?;
        Ok((place(&key), version))
    });
    let dead = class::<Version, _>(kv, b'B')
        .map(|record| record.map(|(key, version)| (Ino(keys::first_number(&key)), version)));
    let mut pass = Pass {
        inodes: Beside::new(inodes(kv).map(|record| {
            let (ino, inode) = record?;
            Ok((ino, inode.allocated))
        })),
        dead: Beside::new(dead),
        unsettled: Beside::new(unsettled),
        file: File::default(),
        allocated: Vec::new(),
        left: Vec::new(),
        findings,
    };
    let mut number = 0;
    for record in extents(kv) {
        let ((ino, _), extent) = record?;
        number += 1;
        if let ExtentData::Chunk { hash, .. } = &extent.data {
            references.counted(&hash.0, b"", 1);
        }
        if pass.file.ino != Some(ino) {
            pass.begin(ino)?;
        }
        pass.extent(ino, &extent)?;
    }
    pass.end()?;
    let Pass { left, allocated, .. } = pass;
    findings.extend(left);
    findings.extend(allocated);
    Ok(number)
}

/// The file that the pass is at.
#[derive(Default)]
struct File {
    ino: Option<Ino>,
    /// What the inode says, if there is one.
    recorded: Option<u64>,
    dead: bool,
    allocated: u64,
    end: u64,
}

struct Pass<'f, I: Iterator, B: Iterator, U: Iterator> {
    inodes: Beside<I>,
    dead: Beside<B>,
    unsettled: Beside<U>,
    file: File,
    allocated: Vec<Finding>,
    /// Index records without an extent.
    left: Vec<Finding>,
    findings: &'f mut Vec<Finding>,
}

impl<I, B, U> Pass<'_, I, B, U>
where
    I: Iterator<Item = Result<(Ino, u64), KvError>>,
    B: Iterator<Item = Result<(Ino, Version), KvError>>,
    U: Iterator<Item = Result<(Place, Version), KvError>>,
{
    fn compare(&mut self, ino: Ino, recorded: u64, counted: u64) {
        if recorded != counted {
            self.allocated.push(Finding::Allocated { ino, recorded, counted });
        }
    }

    fn finish(&mut self) {
        let File { ino, recorded, allocated, .. } = std::mem::take(&mut self.file);
        if let (Some(ino), Some(recorded)) = (ino, recorded) {
            self.compare(ino, recorded, allocated);
        }
    }

    /// Inodes without extents, up to this one.
    fn without(&mut self, to: Option<Ino>) -> Result<(), KvError> {
        while let Some((ino, recorded)) = self.inodes.below(to)? {
            self.compare(ino, recorded, 0);
        }
        Ok(())
    }

    fn begin(&mut self, ino: Ino) -> Result<(), KvError> {
        self.finish();
        self.without(Some(ino))?;
        while self.dead.below(Some(ino))?.is_some() {}
        self.file = File {
            ino: Some(ino),
            recorded: self.inodes.at(ino)?,
            dead: self.dead.at(ino)?.is_some(),
            ..File::default()
        };
        Ok(())
    }

    fn extent(&mut self, ino: Ino, extent: &Extent) -> Result<(), KvError> {
        let Extent { offset, len, data, version } = extent;
        let (offset, len) = (*offset, *len);
        if let Some(reason) = damage(extent) {
            self.findings.push(Finding::Extent { ino, offset, reason });
        }
        if offset < self.file.end {
            self.findings.push(Finding::Overlap { ino, offset });
        }
        self.file.end = offset.saturating_add(u64::from(len));
        self.file.allocated = self.file.allocated.saturating_add(u64::from(len));
        let waits = matches!(data, ExtentData::Inline(_)) && len > INLINE_KEEP_MAX;
        self.left_below(Some((ino, offset)))?;
        let listed = self.unsettled.at((ino, offset))?;
        if self.file.dead {
            return Ok(());
        }
        if listed != waits.then_some(*version) {
            self.findings.push(Finding::Unsettled { ino, offset });
        }
        if self.file.recorded.is_none() {
            self.findings.push(Finding::NoInode { ino, class: 'E' });
        }
        Ok(())
    }

    fn left_below(&mut self, to: Option<Place>) -> Result<(), KvError> {
        while let Some(((ino, offset), _)) = self.unsettled.below(to)? {
            self.left.push(Finding::Unsettled { ino, offset });
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), KvError> {
        self.finish();
        self.without(None)?;
        self.left_below(None)
    }
}

fn damage(extent: &Extent) -> Option<&'static str> {
    if extent.len == 0 {
        return Some("empty");
    }
    if extent.offset.checked_add(u64::from(extent.len)).is_none() {
        return Some("beyond the largest offset");
    }
    match &extent.data {
        ExtentData::Inline(bytes) if bytes.len() != extent.len as usize => Some("length of data"),
        _ => None,
    }
}
