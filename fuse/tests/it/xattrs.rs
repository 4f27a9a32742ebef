//! Extended attributes and POSIX ACLs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::Mounts;

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 65_536];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn names(path: &Path) -> Vec<u8> {
    let mut names = vec![0; 4096];
    let len = listxattr(path, &mut names[..]).unwrap();
    names.truncate(len);
    names
}

#[test]
fn attributes_are_set_listed_and_removed() {
    let Some(mounts) = Mounts::new(2) else { return };
    let (path, other) = (mounts.path(0).join("file"), mounts.path(1).join("file"));
    fs::write(&path, b"x").unwrap();
    setxattr(&path, "user.a", b"1", XattrFlags::CREATE).unwrap();
    setxattr(&path, "user.empty", b"", XattrFlags::empty()).unwrap();
    let again = setxattr(&path, "user.a", b"2", XattrFlags::CREATE);
    assert_eq!(again, Err(Errno::EXIST));
    let missing = setxattr(&path, "user.b", b"2", XattrFlags::REPLACE);
    assert_eq!(missing, Err(Errno::NODATA));
    assert_eq!(get(&other, "user.a").unwrap(), b"1");
    assert_eq!(get(&other, "user.empty").unwrap(), b"");
    assert_eq!(names(&other), b"user.a\0user.empty\0");
    removexattr(&path, "user.a").unwrap();
    assert_eq!(get(&path, "user.a"), Err(Errno::NODATA));
    assert_eq!(removexattr(&path, "user.a"), Err(Errno::NODATA));
    let large = vec![7; 65_536];
    setxattr(&path, "user.large", &large, XattrFlags::empty()).unwrap();
    assert_eq!(getxattr(&path, "user.large", &mut [0; 100][..]), Err(Errno::RANGE));
    assert!(get(&path, "user.large").unwrap() == large);
    mounts.end();
}

/// `system.posix_acl_access`: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;

#[test]
fn acls_and_modes_follow_each_other() {
    let Some(mounts) = Mounts::new(1) else { return };
    let path = mounts.path(0).join("file");
    fs::write(&path, b"x").unwrap();
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    // u::rw- u:12:rwx g::r-- m::rwx o::---
    let access =
        acl(&[(1, 6, NOBODY), (2, 7, 12), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]);
    setxattr(&path, "system.posix_acl_access", &access, XattrFlags::empty()).unwrap();
    assert_eq!(mode(), 0o670, "the group's bits are the mask");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let narrowed =
        acl(&[(1, 6, NOBODY), (2, 7, 12), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY)]);
    assert_eq!(get(&path, "system.posix_acl_access").unwrap(), narrowed);
    removexattr(&path, "system.posix_acl_access").unwrap();
    assert_eq!(get(&path, "system.posix_acl_access"), Err(Errno::NODATA));
    mounts.end();
}

#[test]
fn default_acls_are_inherited() {
    let Some(mounts) = Mounts::new(1) else { return };
    let directory = mounts.path(0).join("d");
    fs::create_dir(&directory).unwrap();
    let default =
        acl(&[(1, 7, NOBODY), (2, 6, 12), (4, 5, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY)]);
    setxattr(&directory, "system.posix_acl_default", &default, XattrFlags::empty()).unwrap();
    fs::create_dir(directory.join("sub")).unwrap();
    assert_eq!(get(&directory.join("sub"), "system.posix_acl_default").unwrap(), default);
    fs::write(directory.join("file"), b"x").unwrap();
    let mode = fs::metadata(directory.join("file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "0666 narrowed by the default ACL, not by the umask");
    assert!(get(&directory.join("file"), "system.posix_acl_access").is_ok());
    mounts.end();
}
