//! Reading and writing files of one mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Mounts, eventually, noise};

#[test]
fn files_of_every_size_read_back() {
    let Some(mounts) = Mounts::new(2) else { return };
    // Around the bounds of inline data, chunks, batches of puts and flushes.
    let sizes = [0, 1, 511, 512, 513, 4096, 65_535, 65_536, 65_537, 300_000, 2 << 20, 9_000_001];
    for (seed, size) in sizes.into_iter().enumerate() {
        let data = noise(seed as u64, size);
        fs::write(mounts.path(0).join(size.to_string()), &data).unwrap();
        let name = size.to_string();
        assert!(fs::read(mounts.path(0).join(&name)).unwrap() == data, "{size} here");
        assert!(fs::read(mounts.path(1).join(&name)).unwrap() == data, "{size} on another mount");
        let metadata = fs::metadata(mounts.path(1).join(&name)).unwrap();
        assert_eq!(metadata.len(), size as u64);
    }
    mounts.end();
}

#[test]
fn random_writes_and_reads_agree_with_a_model() {
    let Some(mounts) = Mounts::with(1, |options| {
        // Small, so that flushes and evictions happen all the time.
        options.dirty_bytes_max = 1 << 20;
        options.cache_bytes = 1 << 20;
    }) else {
        return;
    };
    let path = mounts.path(0).join("file");
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let buffered = options.clone().create_new(true).open(&path).unwrap();
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let direct = options.custom_flags(direct).open(&path).unwrap();
    let mut model: Vec<u8> = Vec::new();
    let random = noise(7, 8 * 600);
    for (step, bytes) in random.chunks(8).enumerate() {
        let number = u64::from_le_bytes(bytes.try_into().unwrap());
        let offset = (number % 3_000_000) as usize;
        let len = 1 + (number >> 32) as usize % 100_000;
        let file = if number >> 20 & 3 == 0 { &direct } else { &buffered };
        match number >> 60 {
            0..=7 => {
                let data = noise(step as u64, len);
                file.write_all_at(&data, offset as u64).unwrap();
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
            }
            8 => file.sync_data().unwrap(),
            9 => {
                file.set_len(offset as u64).unwrap();
                model.resize(offset, 0);
            }
            _ => {
                let mut found = vec![0; len];
                let read = file.read_at(&mut found, offset as u64).unwrap();
                let expected = model.get(offset..).unwrap_or(&[]);
                let expected = &expected[..expected.len().min(len)];
                assert!(found[..read] == *expected, "step {step}: {len} bytes at {offset}");
            }
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64, "step {step}");
    }
    drop((buffered, direct));
    assert!(fs::read(path).unwrap() == model);
    mounts.end();
}

#[test]
fn direct_io_and_the_page_cache_agree() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    let direct = |write| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).create(write);
        options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(&path).unwrap()
    };
    let data = noise(1, 64 << 10);
    direct(true).write_all_at(&data, 0).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    let buffered = File::options().write(true).open(&path).unwrap();
    buffered.write_all_at(b"over", 4096).unwrap();
    let mut found = vec![0; 8192];
    direct(false).read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found[4096..4100], b"over");
    direct(true).write_all_at(&data[..4096], 4096).unwrap();
    assert!(fs::read(&path).unwrap()[4096..8192] == data[..4096]);
    drop(buffered);
    mounts.end();
}

#[test]
fn appends_of_many_handles_do_not_overwrite_each_other() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("log");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = File::options().append(true).create(true).open(path).unwrap();
                for line in 0..50 {
                    // One write each: `writeln!` would make several.
                    file.write_all(format!("{writer} {line}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(&path).unwrap();
    for writer in 0..4 {
        let prefix = format!("{writer} ");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        let expected: Vec<String> = (0..50).map(|line| line.to_string()).collect();
        assert_eq!(lines.collect::<Vec<_>>(), expected, "writer {writer}");
    }
    mounts.end();
}

#[test]
fn attributes_set_while_dirty_are_kept() {
    let Some(mounts) = Mounts::new(2) else { return };
    let path = mounts.path(0).join("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(b"data").unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::fchown(&file, Some(12), Some(34)).unwrap();
    file.set_modified(then).unwrap();
    let check = |metadata: fs::Metadata| {
        assert_eq!(metadata.mode() & 0o7777, 0o640);
        assert_eq!((metadata.uid(), metadata.gid(), metadata.len()), (12, 34, 4));
        assert_eq!(metadata.modified().unwrap(), then);
    };
    check(file.metadata().unwrap());
    drop(file);
    check(fs::metadata(&path).unwrap());
    check(fs::metadata(mounts.path(1).join("file")).unwrap());
    // A later write stamps its own time.
    File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    eventually("the new time on the other mount", || {
        fs::metadata(mounts.path(1).join("file")).unwrap().modified().unwrap() > then
    });
    mounts.end();
}

#[test]
fn the_time_of_a_write_stays_when_it_is_sent() {
    let Some(mounts) = Mounts::new(1) else { return };
    let mut file = File::create(mounts.path(0).join("file")).unwrap();
    file.write_all(b"data").unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), before);
    drop(file);
    mounts.end();
}

#[test]
fn a_read_marks_the_time_of_access_once() {
    let Some(mounts) = Mounts::new(2) else { return };
    let path = mounts.path(0).join("file");
    fs::write(&path, b"data").unwrap();
    let written = fs::metadata(&path).unwrap().accessed().unwrap();
    fs::read(mounts.path(1).join("file")).unwrap();
    eventually("access time on the other mount", || {
        fs::metadata(&path).unwrap().accessed().unwrap() > written
    });
    mounts.end();
}

#[test]
fn truncated_bytes_do_not_come_back() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    for size in [100, 200_000] {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap();
        file.write_all(&noise(3, size)).unwrap();
        file.set_len(10).unwrap();
        file.set_len(size as u64).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert!(found[..10] == noise(3, size)[..10] && found[10..].iter().all(|byte| *byte == 0));
        assert_eq!(found.len(), size);
        drop(File::options().write(true).truncate(true).open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
    mounts.end();
}

#[test]
fn programs_run_from_it() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("true");
    // Runs by shared mappings of its pages.
    fs::copy("/bin/true", &path).unwrap();
    let status = std::process::Command::new(&path).status().unwrap();
    assert!(status.success());
    mounts.end();
}

#[test]
fn a_program_that_runs_is_not_truncated() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("sleep");
    fs::copy("/bin/sleep", &path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    let mut running = std::process::Command::new(&path).arg("60").spawn().unwrap();
    for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::RDONLY | OFlags::TRUNC] {
        let refused = rustix::fs::open(&path, flags, Mode::empty()).unwrap_err();
        assert_eq!(refused, Errno::TXTBSY, "{flags:?}");
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), length);
    assert!(running.try_wait().unwrap().is_none(), "it goes on");
    running.kill().unwrap();
    running.wait().unwrap();
    // Whoever may, truncates.
    File::options().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    mounts.end();
}

#[test]
fn files_grow_no_larger_than_an_offset_can_say() {
    let Some(mounts) = Mounts::new(1) else { return };
    let file = File::create(mounts.path(0).join("file")).unwrap();
    file.set_len(i64::MAX as u64).unwrap();
    assert_eq!(file.metadata().unwrap().len(), i64::MAX as u64);
    file.set_len(0).unwrap();
    drop(file);
    mounts.end();
}
