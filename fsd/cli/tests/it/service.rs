//! The unit of systemd, and its installation.

use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn the_unit_and_the_programs_are_installed() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    let install = || {
        let mut command = Command::new("bash");
        command.arg(root().join("scripts/install.sh")).arg("--from").arg(&from);
        command.args(["--prefix", "/opt/cfs"]).env("DESTDIR", dir.path().join("root"));
        command.output().unwrap()
    };
    let missing = install();
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cargo build"), "{missing:?}");
    // Programs that end at once, and in good order.
    for name in ["cfs", "cfsctl", "blockd"] {
        std::fs::copy("/bin/true", from.join(name)).unwrap();
    }
    for _ in 0..2 {
        let done = install();
        assert!(done.status.success(), "{done:?}");
    }
    let unit = dir.path().join("root/usr/lib/systemd/system/claudefs.service");
    let text = std::fs::read_to_string(unit).unwrap();
    assert!(text.contains("ExecStart=/opt/cfs/bin/cfs server --config"), "{text}");
    assert!(dir.path().join("root/opt/cfs/bin/blockd").exists());
    assert!(dir.path().join("root/etc/claudefs").is_dir());
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let name = "systemd_finds_nothing_wrong_with_the_unit";
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("{name} is skipped: there is no systemd-analyze");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let unit = root().join("config/systemd/claudefs.service");
    let text = std::fs::read_to_string(unit).unwrap();
    // It has to find the program that it starts.
    let text = text.replace("/usr/bin/cfs", env!("CARGO_BIN_EXE_cfs"));
    let here = dir.path().join("claudefs.service");
    std::fs::write(&here, text).unwrap();
    let mut verify = Command::new("systemd-analyze");
    // Units of this machine may be missing or wrong: they are not what is asked for.
    let verified = verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&here).output();
    let verified = verified.unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let about: Vec<&str> = said.lines().filter(|line| line.contains("claudefs")).collect();
    assert!(about.is_empty(), "{said}");
}
