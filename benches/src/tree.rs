//! A source tree of about 5,000 files: unpacked and removed, as users do it, with tar and rm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::Arguments;
use crate::measure::{Results, Unit, time};
use crate::process;
use crate::subject::Subject;

const FILES: usize = 5000;

/// Makes the archive: packages of the registry, by name, until there are enough files.
pub fn archive(registry: &Path, work: &Path) -> Result<PathBuf> {
    let registry = registry.canonicalize();
    let registry = registry.context("--registry is a directory of source trees")?;
    let mut packages = Vec::new();
    collect_packages(&registry, 2, &mut packages)?;
    packages.sort();
    let archive = work.join("tree.tar");
    let mut files = 0;
    let mut chosen = Vec::new();
    for package in packages {
        if files >= FILES {
            break;
        }
        let count = count_files(&package)?;
        // A giant alone would be half of the tree.
        if count <= FILES / 10 {
            files += count;
            chosen.push(package);
        }
    }
    ensure!(files >= FILES, "{} has {files} files, {FILES} are needed", registry.display());
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(&archive).arg("--directory").arg(&registry);
    for package in &chosen {
        tar.arg(package.strip_prefix(&registry).unwrap_or(package));
    }
    process::run(&mut tar)?;
    eprintln!("benches: the tree is {files} files of {} packages", chosen.len());
    Ok(archive)
}

/// Directories with a `Cargo.toml`, at most `depth` levels down.
fn collect_packages(dir: &Path, depth: usize, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            into.push(path);
        } else if depth > 1 && path.is_dir() {
            collect_packages(&path, depth - 1, into)?;
        }
    }
    Ok(())
}

fn count_files(dir: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(count)
}

pub fn run(
    arguments: &Arguments,
    subject: &Subject,
    dir: &Path,
    archive: &Path,
    results: &mut Results,
) -> Result<()> {
    if !arguments.wants_step("untar") && !arguments.wants_step("rm -rf") {
        return Ok(());
    }
    let name = subject.kind.to_string();
    let tree = dir.join("tree");
    fs::create_dir(&tree)?;
    let unpack = || {
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(archive).arg("--directory").arg(&tree);
        process::run(&mut tar).map(|_| ())
    };
    results.add("untar", &name, Unit::Seconds, time(unpack)?.as_secs_f64());
    let remove = || process::run(Command::new("rm").arg("-rf").arg(&tree)).map(|_| ());
    results.add("rm -rf", &name, Unit::Seconds, time(remove)?.as_secs_f64());
    Ok(())
}
