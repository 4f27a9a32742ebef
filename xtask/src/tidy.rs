//! Keeps the tree as DESIGN says: which crate may use which, where unsafe code may stand, how large
//! a file may grow, and that nothing stray is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The dependency arrows between our own crates; an arrow that is not here is refused.
const ARROWS: &[(&str, &[&str])] = &[
    ("hugepages", &[]),
    ("blockd-ipc", &["hugepages"]),
    ("blockd", &["hugepages", "blockd-ipc"]),
    ("raftmeta-types", &[]),
    ("raftmeta", &["raftmeta-types"]),
    ("fsd-rpc", &["raftmeta-types"]),
    ("fsd", &["hugepages", "blockd-ipc", "raftmeta-types", "raftmeta", "fsd-rpc"]),
    ("fuse", &["fsd-rpc", "raftmeta-types"]),
    // The binaries take plain data (`-types`) and errors of the door along with fsd and fuse.
    ("fsd-cli", &["fsd", "fuse", "fsd-rpc", "raftmeta-types"]),
    // It uses the programs, and asks them through the door.
    ("cfs-dev", &["fsd-rpc"]),
    ("benches", &[]),
    (
        "fuzz",
        &[
            "hugepages",
            "blockd-ipc",
            "blockd",
            "raftmeta-types",
            "raftmeta",
            "fsd-rpc",
            "fsd",
            "fuse",
        ],
    ),
    ("xtask", &[]),
];

/// Unsafe code stands in these places and nowhere else.
const UNSAFE_ALLOWED: &[&str] = &["hugepages/", "blockd/ipc/", "blockd/src/engine"];

/// A file longer than this has a second noun in it.
const FILE_LINES_MAX: usize = 1200;

/// Largest committed file, in bytes: golden images are small, everything else is text.
const FILE_BYTES_MAX: u64 = 512 * 1024;

pub fn check() -> Result<()> {
    let mut findings = arrows()?;
    findings.extend(files()?);
    if findings.is_empty() {
        return Ok(());
    }
    bail!("tidy: {} finding(s)\n  {}", findings.len(), findings.join("\n  "));
}

fn arrows() -> Result<Vec<String>> {
    let output = stdout("cargo", &["metadata", "--format-version=1", "--no-deps"])?;
    let metadata: serde_json::Value =
        serde_json::from_str(&output).context("reading cargo metadata")?;
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(from, to)| (*from, to.iter().copied().collect())).collect();
    let mut findings = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed_here) = allowed.get(name) else {
            findings.push(format!("package {name} is not in the table of dependency arrows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if allowed.contains_key(to) && !allowed_here.contains(to) && !for_tests {
                findings.push(format!("package {name} may not depend on {to} (DESIGN §3)"));
            }
        }
    }
    Ok(findings)
}

fn files() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in stdout("git", &["ls-files"])?.lines() {
        let Ok(metadata) = std::fs::metadata(path) else { continue };
        if metadata.len() > FILE_BYTES_MAX && !path.ends_with(".lock") {
            findings.push(format!("{path}: {} bytes, at most {FILE_BYTES_MAX}", metadata.len()));
        }
        if !path.ends_with(".rs") {
            continue;
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX && !is_test(path) {
            findings.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
        let unsafe_allowed = UNSAFE_ALLOWED.iter().any(|prefix| path.starts_with(prefix));
        if !unsafe_allowed && text.lines().any(has_unsafe_block) {
            findings.push(format!("{path}: unsafe code outside {UNSAFE_ALLOWED:?}"));
        }
        if path.ends_with("/mod.rs") {
            findings.push(format!("{path}: use `foo.rs` beside `foo/`, not `mod.rs`"));
        }
    }
    Ok(findings)
}

fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

fn has_unsafe_block(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.contains(concat!("unsafe", " {")) || code.contains(concat!("unsafe", " impl"))
}

fn stdout(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_blocks_are_seen_and_comments_are_not() {
        assert!(has_unsafe_block(concat!("    unsafe", " { read() }")));
        assert!(!has_unsafe_block(concat!("    // unsafe", " { read() }")));
        assert!(!has_unsafe_block("#![forbid(unsafe_code)]"));
    }

    #[test]
    fn arrows_never_form_a_circle() {
        let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
        fn visit<'a>(
            name: &'a str,
            arrows: &BTreeMap<&str, &'a [&'a str]>,
            path: &mut Vec<&'a str>,
        ) {
            assert!(!path.contains(&name), "circle: {path:?} -> {name}");
            path.push(name);
            arrows[name].iter().for_each(|to| visit(to, arrows, path));
            path.pop();
        }
        ARROWS.iter().for_each(|(name, _)| visit(name, &arrows, &mut Vec::new()));
    }
}
