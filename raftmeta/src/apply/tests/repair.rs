//! Damage, found and corrected.

use super::*;
use crate::check::Finding;
use crate::kv::{Kv, KvRead};
use crate::records::{self, Counters, ExtentRecord, Orphan};
use crate::{apply as run, keys};

/// A file with a chunk, inline data to settle and an ACL, an open orphan, a directory.
fn sample() -> (Fs, Ino, Ino) {
    let mut fs = Fs::new();
    let directory = fs.dir(Ino::ROOT, "d");
    let file = fs.file(directory, "f");
    fs.write(file, 0, &[7; 1000]).unwrap();
    let chunk = NewExtent {
        offset: 4096,
        len: 100,
        data: ExtentData::Chunk { hash: hash(1), chunk_offset: 0 },
        receipt: Epoch(0),
    };
    let write = Write { ino: file, extents: vec![chunk], change: AttrChange::default() };
    fs.run(Command::Write(write)).unwrap();
    let gone = fs.file(Ino::ROOT, "gone");
    fs.unlink(Ino::ROOT, "gone", false, true).unwrap();
    (fs, file, gone)
}

/// Corrects until nothing more can be; returns what was found first.
fn corrected(fs: &mut Fs) -> Vec<Finding> {
    let first = check(&fs.kv).unwrap();
    for _ in 0..3 {
        let repairs: Vec<Repair> =
            check(&fs.kv).unwrap().iter().filter_map(Finding::repair).collect();
        if repairs.is_empty() {
            break;
        }
        fs.index += 1;
        let envelope = Envelope {
            session: SessionId::SERVER,
            slot: 0,
            seq: 0,
            time: Time { secs: fs.index as i64, nanos: 0 },
            command: Command::Repair(repairs),
        };
        run(&mut fs.kv, Version(fs.index), &envelope).unwrap().unwrap();
    }
    first
}

fn change<T: serde::de::DeserializeOwned + serde::Serialize>(
    fs: &mut Fs,
    key: &[u8],
    how: impl FnOnce(&mut T),
) {
    let mut record: T = records::get(&fs.kv, key).unwrap().unwrap();
    how(&mut record);
    fs.kv.put(key, &records::encode(&record)).unwrap();
}

#[test]
fn every_number_is_corrected() {
    type Damage = fn(&mut Fs, Ino, Ino);
    let damages: [(&str, Damage); 10] = [
        ("COUNTERS", |fs, _, _| {
            change::<Counters>(fs, keys::COUNTERS, |c| {
                c.inodes += 5;
                c.logical_bytes = 0;
            });
        }),
        ("REFERENCES", |fs, _, _| {
            change::<u64>(fs, &keys::references(&hash(1)), |count| *count = 9);
        }),
        ("REFERENCES", |fs, _, _| fs.kv.delete(&keys::references(&hash(1))).unwrap()),
        ("REFERENCES", |fs, _, _| {
            fs.kv.put(&keys::references(&hash(2)), &records::encode(&3u64)).unwrap();
        }),
        ("LINKS", |fs, file, _| change::<Inode>(fs, &keys::inode(file), |i| i.nlink = 4)),
        ("INODE", |fs, file, _| change::<Inode>(fs, &keys::inode(file), |i| i.allocated = 1)),
        ("INODE", |fs, file, _| change::<Inode>(fs, &keys::inode(file), |i| i.has_acl = true)),
        ("UNSETTLED", |fs, file, _| fs.kv.delete(&keys::unsettled(file, 0)).unwrap()),
        ("ORPHAN", |fs, _, gone| fs.kv.delete(&keys::orphan(gone)).unwrap()),
        ("LEFTOVERS", |fs, _, _| {
            let record = ExtentRecord { len: 1, data: ExtentData::Zero, version: Version(1) };
            let key = keys::extent(Ino(0xdead), 0);
            fs.kv.put(&key, &records::encode(&record)).unwrap();
        }),
    ];
    for (at, (code, damage)) in damages.into_iter().enumerate() {
        let (mut fs, file, gone) = sample();
        assert_eq!(check(&fs.kv).unwrap(), []);
        damage(&mut fs, file, gone);
        let found = corrected(&mut fs);
        assert!(found.iter().any(|finding| finding.code() == code), "{at}: {found:?}");
        assert_eq!(check(&fs.kv).unwrap(), [], "{at} {code}");
    }
}

#[test]
fn a_held_orphan_is_kept_and_an_abandoned_one_freed() {
    let (mut fs, _, gone) = sample();
    change::<Orphan>(&mut fs, &keys::orphan(gone), |o| o.sessions.push(SessionId(99)));
    assert!(!corrected(&mut fs).is_empty());
    assert_eq!(check(&fs.kv).unwrap(), []);
    assert!(fs.inode(gone).is_some());
    change::<Orphan>(&mut fs, &keys::orphan(gone), |o| o.sessions = vec![SessionId(99)]);
    assert!(!corrected(&mut fs).is_empty());
    assert!(fs.inode(gone).is_none());
}

#[test]
fn what_is_right_is_left_alone() {
    let (mut fs, file, gone) = sample();
    let before = fs.kv.clone();
    let repairs = vec![
        Repair::Orphan { ino: file },
        Repair::Leftovers { ino: file },
        Repair::Unsettled { ino: file, offset: 0 },
        Repair::Orphan { ino: gone },
        Repair::References { hash: hash(1), by: 0 },
    ];
    fs.server(Command::Repair(repairs)).unwrap();
    let key = keys::inode(file);
    assert_eq!(fs.kv.get(&key).unwrap(), before.get(&key).unwrap());
    assert_eq!(fs.kv, before);
}

#[test]
fn somebodys_entries_are_not_guessed() {
    let (mut fs, file, _) = sample();
    fs.kv.delete(&keys::inode(file)).unwrap();
    let found = corrected(&mut fs);
    assert!(found.iter().any(|finding| finding.code() == "NAMESPACE"));
    let left = check(&fs.kv).unwrap();
    assert!(left.iter().any(|f| matches!(f, Finding::DanglingEntry { .. })), "{left:?}");
}
