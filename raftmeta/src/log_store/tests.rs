use openraft::vote::RaftLeaderId;
use raftmeta_types::{Command, Envelope, SessionId, Time};

use super::recover;
use super::segment;
use super::writer::{Found, Writer};
use super::*;
use crate::group::LogPayload;

fn id(index: u64) -> LogIdOf<Types> {
    LogIdOf::<Types>::new(openraft::impls::leader_id_adv::LeaderId::new(1, 1).to_committed(), index)
}

fn entry(index: u64, bytes: usize) -> EntryOf<Types> {
    let command = Command::RemoveXattr { ino: raftmeta_types::Ino(1), name: vec![7; bytes].into() };
    let envelope =
        Envelope { session: SessionId(0), slot: 0, seq: 0, time: Time::default(), command };
    let payload = EntryPayload::Normal(LogPayload { envelope, durable: false });
    openraft::Entry { log_id: id(index), payload }
}

fn indexes(writer: &Writer, from: u64, to: u64) -> Vec<u64> {
    match writer.find(from, to) {
        Found::Entries(entries) => entries.iter().map(|entry| entry.log_id.index).collect(),
        Found::Located(located) => located
            .iter()
            .map(|(at, file, path)| read_entry(at, file, path).unwrap().log_id.index)
            .collect(),
    }
}

fn append(writer: &mut Writer, indexes: std::ops::Range<u64>, bytes: usize) {
    writer.append(indexes.map(|index| entry(index, bytes)).collect(), 0).unwrap();
}

#[test]
fn entries_come_back_after_truncate_purge_and_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path()).unwrap();
    append(&mut writer, 0..10, 100);
    writer.truncate(Some(id(6)), 0).unwrap();
    append(&mut writer, 7..9, 100);
    writer.purge(id(2), 0).unwrap();
    let expected: Vec<u64> = (3..9).collect();
    assert_eq!(indexes(&writer, 0, 100), expected);
    drop(writer);
    let mut writer = Writer::open(dir.path()).unwrap();
    assert_eq!(indexes(&writer, 0, 100), expected);
    assert_eq!(indexes(&writer, 4, 6), [4, 5]);
    assert_eq!((writer.purged(), writer.last()), (Some(id(2)), Some(id(8))));
    // Beyond the last: the store was ahead of the log.
    writer.purge(id(20), 0).unwrap();
    append(&mut writer, 21..23, 1);
    drop(writer);
    let writer = Writer::open(dir.path()).unwrap();
    assert_eq!(indexes(&writer, 0, 100), [21, 22]);
}

#[test]
fn segments_follow_each_other_and_go_when_they_are_purged() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path()).unwrap();
    for index in 0..6 {
        append(&mut writer, index..index + 1, 6 << 20);
    }
    let count = || std::fs::read_dir(dir.path()).unwrap().count();
    assert!(count() >= 3);
    drop(writer);
    let mut writer = Writer::open(dir.path()).unwrap();
    assert_eq!(indexes(&writer, 0, 100), [0, 1, 2, 3, 4, 5]);
    writer.purge(id(5), 0).unwrap();
    writer.drop_segments().unwrap();
    assert_eq!(count(), 1);
    drop(writer);
    let mut writer = Writer::open(dir.path()).unwrap();
    assert_eq!((indexes(&writer, 0, 100), writer.last()), (vec![], Some(id(5))));
    append(&mut writer, 6..7, 1);
}

#[test]
fn a_missing_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path()).unwrap();
    for index in 0..6 {
        append(&mut writer, index..index + 1, 6 << 20);
    }
    drop(writer);
    // The first is small and holds no entries.
    for numbers in [&[2][..], &[1, 2]] {
        let aside = tempfile::tempdir().unwrap();
        for &number in numbers {
            let path = recover::segment_path(dir.path(), number);
            std::fs::rename(&path, recover::segment_path(aside.path(), number)).unwrap();
        }
        let error = Writer::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains(".log"), "{error}");
        for &number in numbers {
            let path = recover::segment_path(dir.path(), number);
            std::fs::rename(recover::segment_path(aside.path(), number), &path).unwrap();
        }
    }
    std::fs::write(dir.path().join("stranger"), b"x").unwrap();
    let error = Writer::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("stranger"), "{error}");
}

#[test]
fn a_large_batch_becomes_several_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(dir.path()).unwrap();
    append(&mut writer, 0..5, 3 << 20);
    drop(writer);
    let writer = Writer::open(dir.path()).unwrap();
    assert_eq!(indexes(&writer, 0, 9), [0, 1, 2, 3, 4]);
    assert!(writer.used_bytes() > 15 << 20 && writer.used_bytes() < 3 * segment::SIZE);
}
