//! Names: directories, links, rename, unlink.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Mounts, eventually};

#[test]
fn names_are_as_long_as_posix_allows() {
    let Some(mounts) = Mounts::new(1) else { return };
    let root = mounts.path(0);
    let longest = "n".repeat(255);
    fs::write(root.join(&longest), b"x").unwrap();
    assert_eq!(fs::read(root.join(&longest)).unwrap(), b"x");
    let too_long = root.join("n".repeat(256));
    let refused = fs::write(&too_long, b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    let refused = fs::metadata(&too_long).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    let refused = symlink("t".repeat(4096), root.join("link")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    mounts.end();
}

#[test]
fn rename_replaces_exchanges_and_refuses() {
    let Some(mounts) = Mounts::new(1) else { return };
    let root = mounts.path(0);
    let (a, b) = (root.join("a"), root.join("b"));
    let rename = |flags| renameat_with(CWD, &a, CWD, &b, flags);
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"b".to_vec(), b"a".to_vec()));
    rename(RenameFlags::empty()).unwrap();
    assert_eq!(fs::read(&b).unwrap(), b"b");
    assert_eq!(fs::metadata(&a).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(rename(RenameFlags::EXCHANGE), Err(Errno::NOENT));
    fs::create_dir_all(root.join("d/e")).unwrap();
    let into_itself = fs::rename(root.join("d"), root.join("d/e/f")).unwrap_err();
    assert_eq!(into_itself.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    assert_eq!(fs::rename(root.join("d/e"), &b).unwrap_err().kind(), ErrorKind::NotADirectory);
    mounts.end();
}

#[test]
fn hard_links_are_one_file() {
    let Some(mounts) = Mounts::new(2) else { return };
    let root = mounts.path(0);
    fs::write(root.join("a"), b"one").unwrap();
    fs::hard_link(root.join("a"), root.join("b")).unwrap();
    assert_eq!(fs::metadata(root.join("a")).unwrap().nlink(), 2);
    fs::write(root.join("b"), b"two").unwrap();
    assert_eq!(fs::read(root.join("a")).unwrap(), b"two");
    fs::remove_file(root.join("a")).unwrap();
    assert_eq!(fs::read(mounts.path(1).join("b")).unwrap(), b"two");
    assert_eq!(fs::metadata(root.join("b")).unwrap().nlink(), 1);
    mounts.end();
}

#[test]
fn symbolic_links_and_special_files() {
    let Some(mounts) = Mounts::new(1) else { return };
    let root = mounts.path(0);
    symlink("target/that/is not", root.join("link")).unwrap();
    assert_eq!(fs::read_link(root.join("link")).unwrap().to_str(), Some("target/that/is not"));
    assert_eq!(fs::symlink_metadata(root.join("link")).unwrap().len(), 18);
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, mode, 0).unwrap();
    let device = rustix::fs::makedev(300, 70_000);
    rustix::fs::mknodat(CWD, root.join("dev"), FileType::CharacterDevice, mode, device).unwrap();
    assert!(fs::metadata(root.join("fifo")).unwrap().file_type().is_fifo());
    let metadata = fs::metadata(root.join("dev")).unwrap();
    assert!(metadata.file_type().is_char_device());
    assert_eq!(metadata.rdev(), device);
    let socket = root.join("s");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(fs::metadata(socket).unwrap().file_type().is_socket());
    mounts.end();
}

#[test]
fn large_directories_list_whole_while_they_are_emptied() {
    let Some(mounts) = Mounts::new(1) else { return };
    let directory = mounts.path(0).join("d");
    fs::create_dir(&directory).unwrap();
    // More than the window of the listing.
    let count = 3000;
    for number in 0..count {
        File::create(directory.join(format!("{number:05}"))).unwrap();
    }
    let names = |directory| -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let mut listed = names(&directory);
    listed.sort();
    assert_eq!(listed, (0..count).map(|n| format!("{n:05}")).collect::<Vec<_>>());
    fs::remove_dir(&directory).unwrap_err();
    // `rm -r`: every entry shows up though those before it are gone.
    for entry in fs::read_dir(&directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&directory).unwrap();
    mounts.end();
}

#[test]
fn seekdir_finds_its_way_back() {
    let Some(mounts) = Mounts::new(1) else { return };
    let directory = mounts.path(0).join("d");
    fs::create_dir(&directory).unwrap();
    (0..3000).for_each(|n| drop(File::create(directory.join(format!("{n:05}"))).unwrap()));
    let mut stream = rustix::fs::Dir::new(File::open(&directory).unwrap()).unwrap();
    let mut all = Vec::new();
    while let Some(entry) = stream.read() {
        let entry = entry.unwrap();
        all.push((entry.offset(), entry.file_name().to_owned()));
    }
    assert_eq!(all.len(), 3002);
    for at in [2000, 0, 2999, 700, 2600] {
        stream.seek(all[at].0).unwrap();
        let next = stream.read().unwrap().unwrap();
        assert_eq!(next.file_name(), all[at + 1].1.as_c_str(), "after {at}");
    }
    drop(stream);
    mounts.end();
}

#[test]
fn dot_dot_is_the_parent() {
    let Some(mounts) = Mounts::new(1) else { return };
    let root = mounts.path(0);
    fs::create_dir_all(root.join("a/b")).unwrap();
    let ino = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    let mut stream = rustix::fs::Dir::new(File::open(root.join("a/b")).unwrap()).unwrap();
    let mut found = Vec::new();
    while let Some(entry) = stream.read() {
        let entry = entry.unwrap();
        found.push((entry.file_name().to_str().unwrap().to_owned(), entry.ino()));
    }
    assert_eq!(found, [(".".to_owned(), ino("a/b")), ("..".to_owned(), ino("a"))]);
    drop(stream);
    mounts.end();
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"before ").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"after").unwrap();
    file.sync_all().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.nlink()), (12, 0));
    let mut found = String::new();
    std::os::unix::fs::FileExt::read_at(&file, &mut [0; 1], 0).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut found).unwrap();
    assert_eq!(found, "before after");
    assert_eq!(mounts.cluster.inodes(), 2);
    drop(file);
    eventually("the inode going", || mounts.cluster.inodes() == 1);
    mounts.end();
}

#[test]
fn an_unnamed_file_is_linked_or_goes() {
    let Some(mounts) = Mounts::new(1) else { return };
    let root = mounts.path(0);
    let open = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        File::from(rustix::fs::open(&root, flags, Mode::from_raw_mode(0o600)).unwrap())
    };
    let mut file = open();
    file.write_all(b"made whole").unwrap();
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    let fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    rustix::fs::linkat(CWD, fd, CWD, root.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    drop(file);
    assert_eq!(fs::read(root.join("named")).unwrap(), b"made whole");
    drop(open());
    eventually("the unnamed inode going", || mounts.cluster.inodes() == 2);
    mounts.end();
}

#[test]
fn many_threads_work_in_one_directory() {
    let Some(mounts) = Mounts::new(2) else { return };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let root = mounts.path(thread % 2);
            scope.spawn(move || {
                for number in 0..100 {
                    let (a, b) = (format!("{thread}-{number}"), format!("{thread}-{number}-b"));
                    fs::write(root.join(&a), a.as_bytes()).unwrap();
                    fs::rename(root.join(&a), root.join(&b)).unwrap();
                    assert_eq!(fs::read(root.join(&b)).unwrap(), a.as_bytes());
                    if number % 2 == 0 {
                        fs::remove_file(root.join(&b)).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(fs::read_dir(mounts.path(0)).unwrap().count(), 400);
    mounts.end();
}
