//! `cfs` as a user runs it.

#![allow(clippy::unwrap_used)]

mod block;
mod mount;
mod node;
mod service;
mod world;

use std::process::{Command, Output};

fn cfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cfs")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_shipped_configuration_is_good() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/dev.toml");
    let output = cfs(&["server", "--config", file, "--check-config"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("node dev"));
}

#[test]
fn a_bad_configuration_fails_with_its_name_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.toml");
    std::fs::write(&path, "[node]\nname = \"n\"\ncolour = 3\n").unwrap();
    let output = cfs(&["server", "--config", path.to_str().unwrap(), "--check-config"]);
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(error.contains("bad.toml") && error.contains("colour"), "{error}");
}

#[test]
fn a_missing_configuration_is_named() {
    let output = cfs(&["server", "--config", "/nonexistent/n.toml", "--check-config"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/n.toml"));
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [&["frobnicate"][..], &["server"], &[]] {
        assert_eq!(cfs(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn completion_and_manual_page_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = cfs(&["completion", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("check-config"), "{shell}");
    }
    let output = cfs(&["man"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(".TH cfs"));
    let output = cfs(&["man", "admin", "token", "create"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("ttl"), "{}", stderr(&output));
    assert_eq!(cfs(&["man", "frobnicate"]).status.code(), Some(5));
    let output = cfs(&["man", "admin", "block", "volume", "create"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("thin"), "{}", stderr(&output));
    let directory = tempfile::tempdir().unwrap();
    let output = cfs(&["man", "--dir", directory.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    for page in ["cfs.1", "cfs-mount.1", "cfsctl-status.1", "mount.cfs.1"] {
        assert!(directory.path().join(page).exists(), "{page}");
    }
    for of in ["cfsctl", "mount.cfs"] {
        let output = cfs(&["completion", "bash", "--of", of]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn cfsctl_is_cfs_admin() {
    let ctl = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_cfsctl")).args(arguments).output().unwrap()
    };
    let help = ctl(&["--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("fsck"));
    let absent = ctl(&["--socket", "/nonexistent/fsd.sock", "status"]);
    assert_eq!(absent.status.code(), Some(6));
    assert!(stderr(&absent).contains("/nonexistent/fsd.sock"));
}
