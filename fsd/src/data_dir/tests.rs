use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn the_second_server_is_told_who_holds_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b");
    let held = DataDir::lock(&path).unwrap();
    let error = DataDir::lock(&path).unwrap_err();
    let DataDirError::InUse { pid, .. } = &error else { panic!("{error}") };
    assert_eq!(*pid, Some(std::process::id()));
    assert!(error.to_string().contains("a/b"), "{error}");
    drop(held);
    DataDir::lock(&path).unwrap();
}

#[test]
fn it_is_for_its_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data");
    let _held = DataDir::lock(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn blank_until_something_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let held = DataDir::lock(directory.path()).unwrap();
    assert!(held.is_blank().unwrap());
    std::fs::write(held.path().join("log"), "x").unwrap();
    assert!(!held.is_blank().unwrap());
}

#[test]
fn a_file_in_its_place_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, "x").unwrap();
    let error = DataDir::lock(&path).unwrap_err().to_string();
    assert!(error.contains("file") && error.contains("making it"), "{error}");
}
