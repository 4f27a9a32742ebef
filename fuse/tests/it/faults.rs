//! What a mount does when the cluster refuses, loses, damages or does not answer.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::{Mounts, noise};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn garbage_collection_that_never_rests_loses_nothing() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    // A collection after every third put takes away what has been put and not committed.
    mounts.cluster.faults.gc_every.store(3, Ordering::Relaxed);
    let data = noise(1, 40 << 20);
    fs::write(&path, &data).unwrap();
    assert!(mounts.cluster.retries.load(Ordering::Relaxed) > 0, "the fault did not strike");
    assert!(fs::read(&path).unwrap() == data);
    // Overwritten piece by piece under readers of what they know from before.
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let new = noise(2, 8 << 20);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for round in 0..40 {
                let mut found = vec![0; 100_000];
                let offset = (round * 777_777) % (7 << 20);
                file.read_exact_at(&mut found, offset as u64).unwrap();
                for (at, byte) in found.iter().enumerate() {
                    let at = offset + at;
                    assert!(*byte == data[at] || *byte == new[at], "byte {at}");
                }
            }
        });
        for (number, piece) in new.chunks(1 << 20).enumerate() {
            file.write_all_at(piece, (number as u64) << 20).unwrap();
            file.sync_data().unwrap();
        }
        reader.join().unwrap();
    });
    drop(file);
    let found = fs::read(&path).unwrap();
    assert!(found[..new.len()] == new && found[new.len()..] == data[new.len()..]);
    mounts.end();
}

#[test]
fn a_full_cluster_is_told_and_deleting_makes_room() {
    let Some(mounts) = Mounts::new(1) else { return };
    let (kept, full) = (mounts.path(0).join("kept"), mounts.path(0).join("full"));
    fs::write(&kept, noise(1, 100_000)).unwrap();
    let faults = &mounts.cluster.faults;
    mounts.cluster.set(&faults.no_space, true);
    let mut file = File::create(&full).unwrap();
    file.write_all(b"small").unwrap();
    let nospc = Some(Errno::NOSPC.raw_os_error());
    assert_eq!(errno(file.sync_all()), nospc);
    // A large one hears of it while it writes.
    let mut large = File::create(mounts.path(0).join("large")).unwrap();
    let piece = noise(2, 1 << 20);
    let mut refused = None;
    for _ in 0..200 {
        if let Err(error) = large.write_all(&piece) {
            refused = error.raw_os_error();
            break;
        }
    }
    assert_eq!(refused, nospc);
    large.set_len(0).unwrap();
    fs::remove_file(&kept).unwrap();
    mounts.cluster.set(&faults.no_space, false);
    // What was refused was not forgotten.
    file.sync_all().unwrap();
    assert_eq!(fs::read(&full).unwrap(), b"small");
    drop(large);
    drop(file);
    mounts.end();
}

#[test]
fn a_failure_is_told_once_to_every_handle() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    let first = File::create(&path).unwrap();
    let second = File::options().write(true).open(&path).unwrap();
    first.write_all_at(b"data", 0).unwrap();
    let faults = &mounts.cluster.faults;
    mounts.cluster.set(&faults.lost, true);
    let io = Some(Errno::IO.raw_os_error());
    assert_eq!(errno(first.sync_all()), io);
    mounts.cluster.set(&faults.lost, false);
    first.sync_all().unwrap();
    assert_eq!(errno(second.sync_all()), io, "another handle hears of it, too");
    second.sync_all().unwrap();
    // Opened afterwards: nothing to tell.
    File::options().write(true).open(&path).unwrap().sync_all().unwrap();
    drop((first, second));
    assert_eq!(fs::read(&path).unwrap(), b"data");
    mounts.end();
}

#[test]
fn damaged_chunks_are_errors_and_never_data() {
    let Some(mut mounts) = Mounts::new(1) else { return };
    fs::write(mounts.path(0).join("file"), noise(1, 1 << 20)).unwrap();
    // Another mount, that has nothing in its cache.
    mounts.add(|_| {});
    let faults = &mounts.cluster.faults;
    mounts.cluster.set(&faults.damaged, true);
    let path = mounts.path(1).join("file");
    assert_eq!(errno(fs::read(&path)), Some(Errno::IO.raw_os_error()));
    mounts.cluster.set(&faults.damaged, false);
    assert!(fs::read(&path).unwrap() == noise(1, 1 << 20));
    mounts.end();
}

#[test]
fn a_forced_end_does_not_wait_for_a_dead_server() {
    let Some(mut mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(&noise(1, 3 << 20)).unwrap();
    let faults = &mounts.cluster.faults;
    mounts.cluster.set(&faults.hang, true);
    // These hang until the end comes, or find what lies under the mountpoint if they come late.
    let root = mounts.path(0);
    let stuck = [
        std::thread::spawn({
            let root = root.clone();
            move || drop(fs::metadata(root.join("other")))
        }),
        std::thread::spawn(move || drop(file.sync_all())),
        std::thread::spawn(move || drop(fs::read_dir(root).map(|entries| entries.count()))),
    ];
    let session = mounts.sessions.remove(0);
    session.abort();
    // It comes back although nothing will ever answer, and says that data was lost.
    assert!(matches!(session.join(), Err(fuse::MountError::LastSync(_))));
    for thread in stuck {
        thread.join().unwrap();
    }
}

#[test]
fn lost_data_is_told_at_the_end_of_the_mount() {
    let Some(mut mounts) = Mounts::new(1) else { return };
    let file = File::create(mounts.path(0).join("file")).unwrap();
    file.write_all_at(b"data", 0).unwrap();
    let faults = &mounts.cluster.faults;
    mounts.cluster.set(&faults.lost, true);
    // `close` fails, and nobody looks.
    drop(file);
    let session = mounts.sessions.remove(0);
    super::eventually("unmounting", || session.unmount().is_ok());
    assert!(matches!(session.join(), Err(fuse::MountError::LastSync(_))));
}

#[test]
fn a_slow_cluster_is_only_slow() {
    let Some(mounts) = Mounts::with(1, |options| options.dirty_bytes_max = 4 << 20) else { return };
    mounts.cluster.faults.delay_micros.store(2000, Ordering::Relaxed);
    let data = noise(1, 20 << 20);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (path, data) = (mounts.path(0).join(format!("{number}")), &data);
            scope.spawn(move || {
                fs::write(&path, data).unwrap();
                assert!(fs::read(&path).unwrap() == *data);
            });
        }
    });
    mounts.end();
}
