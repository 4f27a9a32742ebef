//! `cfs` as a user runs it.

#![allow(clippy::unwrap_used)]

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
}
