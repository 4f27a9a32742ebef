//! What one mount sees of another.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::{Mounts, eventually, noise};

#[test]
fn an_open_sees_what_was_closed_before() {
    let Some(mounts) = Mounts::new(2) else { return };
    let paths = [mounts.path(0).join("file"), mounts.path(1).join("file")];
    for round in 0..100u64 {
        let (writer, reader) = (&paths[round as usize % 2], &paths[(round as usize + 1) % 2]);
        // Sizes that shrink and grow, so that stale sizes show.
        let data = noise(round, 10 + (round as usize * 7919) % 200_000);
        fs::write(writer, &data).unwrap();
        let found = fs::read(reader).unwrap();
        assert!(found == data, "round {round}: {} bytes, not {}", found.len(), data.len());
    }
    mounts.end();
}

#[test]
fn an_open_file_shows_synced_data_of_another_mount() {
    let Some(mounts) = Mounts::new(2) else { return };
    let path = mounts.path(0).join("file");
    fs::write(&path, b"one").unwrap();
    let mut reader = File::open(mounts.path(1).join("file")).unwrap();
    let mut read = || {
        let mut found = String::new();
        reader.rewind().unwrap();
        reader.read_to_string(&mut found).unwrap();
        found
    };
    assert_eq!(read(), "one");
    let writer = File::options().write(true).open(&path).unwrap();
    writer.write_all_at(b"two!", 0).unwrap();
    writer.sync_all().unwrap();
    // Told by an event, so not at once.
    eventually("the event reaching the reader", || read() == "two!");
    drop((writer, reader));
    mounts.end();
}

#[test]
fn a_file_unlinked_elsewhere_lives_while_it_is_open() {
    let Some(mounts) = Mounts::new(2) else { return };
    let data = noise(1, 300_000);
    fs::write(mounts.path(0).join("file"), &data).unwrap();
    let path = mounts.path(0).join("file");
    let mut file = File::options().read(true).append(true).open(path).unwrap();
    fs::remove_file(mounts.path(1).join("file")).unwrap();
    assert!(File::open(mounts.path(1).join("file")).is_err());
    file.write_all(b"more").unwrap();
    file.sync_all().unwrap();
    let mut found = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut found).unwrap();
    assert!(found[..data.len()] == data && &found[data.len()..] == b"more");
    drop(file);
    eventually("the inode going", || mounts.cluster.inodes() == 1);
    mounts.end();
}

#[test]
fn a_file_replaced_elsewhere_is_found_anew() {
    let Some(mounts) = Mounts::new(2) else { return };
    let (here, there) = (mounts.path(0), mounts.path(1));
    for round in 0..50 {
        fs::write(here.join("new"), format!("round {round}")).unwrap();
        fs::rename(here.join("new"), here.join("name")).unwrap();
        // Its entry may be cached for a second: the open of what is gone makes the kernel look again.
        let known = |text: &str| (0..=round).any(|number| text == format!("round {number}"));
        let found = fs::read_to_string(there.join("name")).unwrap();
        assert!(known(&found), "{found}");
        eventually("the new file showing", || {
            fs::read_to_string(there.join("name")).unwrap() == format!("round {round}")
        });
    }
    mounts.end();
}

#[test]
fn appends_of_two_mounts_that_take_turns_add_up() {
    let Some(mounts) = Mounts::new(2) else { return };
    let mut expected = Vec::new();
    for round in 0..60u64 {
        let path = mounts.path(round as usize % 2).join("log");
        let line = noise(round, 3000);
        File::options().append(true).create(true).open(path).unwrap().write_all(&line).unwrap();
        expected.extend(line);
    }
    for mount in [0, 1] {
        assert!(fs::read(mounts.path(mount).join("log")).unwrap() == expected, "mount {mount}");
    }
    mounts.end();
}

#[test]
fn names_made_and_removed_elsewhere_show() {
    let Some(mounts) = Mounts::new(2) else { return };
    let (here, there) = (mounts.path(0), mounts.path(1));
    assert!(!there.join("d").exists());
    fs::create_dir(here.join("d")).unwrap();
    fs::write(here.join("d/file"), b"x").unwrap();
    assert!(there.join("d/file").exists(), "what is missing is never cached");
    fs::remove_file(here.join("d/file")).unwrap();
    eventually("the entry going", || !there.join("d/file").exists());
    assert_eq!(fs::read_dir(there.join("d")).unwrap().count(), 0);
    mounts.end();
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let Some(mut mounts) = Mounts::new(1) else { return };
    fs::write(mounts.path(0).join("file"), b"data").unwrap();
    mounts.add(|options| options.read_only = true);
    let there = mounts.path(1);
    assert_eq!(fs::read(there.join("file")).unwrap(), b"data");
    let refused = [
        fs::write(there.join("file"), b"x").unwrap_err(),
        fs::write(there.join("new"), b"x").unwrap_err(),
        fs::remove_file(there.join("file")).unwrap_err(),
        fs::create_dir(there.join("d")).unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    fs::write(mounts.path(0).join("file"), b"changed").unwrap();
    assert_eq!(fs::read(there.join("file")).unwrap(), b"changed");
    mounts.end();
}

/// A file of two pages in the page cache of mount 0, open and read there; from now on no event arrives.
fn cached_without_events(mounts: &Mounts) -> File {
    let path = mounts.path(0).join("file");
    // By this mount: an event of another one's writing might still come, and make it look again.
    let made = File::create(&path).unwrap();
    made.write_all_at(&[b'a'; 2 * 4096], 0).unwrap();
    // So that an access after it is committed by itself, and not with this.
    made.sync_all().unwrap();
    drop(made);
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.read_exact_at(&mut [0; 2 * 4096], 0).unwrap();
    mounts.cluster.set(&mounts.cluster.faults.events_held, true);
    file
}

/// Writes through mount 1 and closes.
fn write_there(mounts: &Mounts, offset: u64, data: &[u8]) {
    let file = File::options().write(true).open(mounts.path(1).join("file")).unwrap();
    file.write_all_at(data, offset).unwrap();
}

#[test]
fn a_commit_does_not_hide_what_another_mount_wrote_before_it() {
    let Some(mounts) = Mounts::new(2) else { return };
    let path = mounts.path(0).join("file");
    let file = cached_without_events(&mounts);
    write_there(&mounts, 4096, &[b'b'; 4096]);
    // Follows on the other's version, not on the one whose pages the kernel has.
    file.write_all_at(b"c", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let found = fs::read(&path).unwrap();
    assert_eq!((found[0], found[1], found[4096], found.len()), (b'c', b'a', b'b', 8192));
    mounts.cluster.set(&mounts.cluster.faults.events_held, false);
    mounts.end();
}

#[test]
fn a_truncation_or_allocation_does_not_hide_it_either() {
    for round in 0..2 {
        // Anew: of a name that was used before, the second mount may not have heard yet that it is another file.
        let Some(mounts) = Mounts::new(2) else { return };
        let path = mounts.path(0).join("file");
        let file = cached_without_events(&mounts);
        write_there(&mounts, 4096, &[b'b'; 4096]);
        match round {
            0 => file.set_len(3 * 4096).unwrap(),
            _ => {
                let mode = rustix::fs::FallocateFlags::empty();
                rustix::fs::fallocate(&file, mode, 8192, 4096).unwrap();
            }
        }
        let found = fs::read(&path).unwrap();
        assert_eq!(found.len(), 3 * 4096, "round {round}");
        assert_eq!((found[0], found[4096], found[8192]), (b'a', b'b', 0), "round {round}");
        mounts.cluster.set(&mounts.cluster.faults.events_held, false);
        drop(file);
        mounts.end();
    }
}

#[test]
fn an_access_time_does_not_hide_it_either() {
    let Some(mounts) = Mounts::new(2) else { return };
    let path = mounts.path(0).join("file");
    let file = cached_without_events(&mounts);
    // The kernel has the pages; an access that is noted is one of which the mount hears.
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let other = File::options().read(true).custom_flags(direct).open(&path).unwrap();
    other.read_exact_at(&mut [0; 4096], 0).unwrap();
    write_there(&mounts, 4096, &[b'b'; 4096]);
    // The last close commits the access time, and nothing else.
    let before = mounts.cluster.inode("file").atime;
    drop((file, other));
    eventually("the access time", || mounts.cluster.inode("file").atime != before);
    assert_eq!(fs::read(path).unwrap()[4096], b'b');
    mounts.cluster.set(&mounts.cluster.faults.events_held, false);
    mounts.end();
}
