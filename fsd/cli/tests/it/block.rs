//! `cfsctl block` against a blockd of its own: every verb, what is refused, and what survives.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{told, wait_for};

const HOST: &str = "nqn.2014-08.org.example:host";
const NQN: &str = "nqn.2025-01.org.example:disk";
const MIB: u64 = 1 << 20;

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_cfsctl")).with_file_name(name)
}

struct Bed {
    directory: tempfile::TempDir,
    blockd: Option<Child>,
}

impl Bed {
    /// No daemon yet.
    fn new() -> Bed {
        Bed { directory: tempfile::tempdir().unwrap(), blockd: None }
    }

    fn start(more: &str) -> Bed {
        let mut bed = Bed::new();
        let config = format!(
            "ipc_socket = {:?}\nadmin_socket = {:?}\ncores = 2\n\
             [[device]]\npath = {:?}\nsize = {}\ncreate = true\n{more}",
            bed.path("ipc"),
            bed.path("admin"),
            bed.path("pool"),
            256 * MIB,
        );
        std::fs::write(bed.path("blockd.toml"), config).unwrap();
        bed.restart();
        bed
    }

    /// With a target whose exports made at run time are kept.
    fn with_target(more: &str) -> Bed {
        let file = "exports_file = 'exports'";
        Bed::start(&format!("{more}[nvmet]\nlisten = ['127.0.0.1:0']\ndiscovery = []\n{file}\n"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn restart(&mut self) {
        self.kill();
        let log = File::options().append(true).create(true).open(self.path("log")).unwrap();
        let child = Command::new(program("blockd"))
            .args(["--config", "blockd.toml"])
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.blockd = Some(child);
        let log = self.path("log");
        wait_for("blockd", || {
            let ended = self.blockd.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{}", std::fs::read_to_string(&log).unwrap());
            UnixStream::connect(self.directory.path().join("admin")).ok()
        });
    }

    /// `kill -9`.
    fn kill(&mut self) {
        if let Some(mut child) = self.blockd.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cfsctl"));
        command.arg("block").args(arguments).current_dir(self.directory.path());
        // The node's socket is another one: its variable must not lead here.
        command.env("CFS_SOCKET", "/nonexistent/fsd.sock").env("CFS_RUNTIME_DIR", self.path("run"));
        command.env("CFS_BLOCKD_SOCKET", self.path("admin")).stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.output(arguments);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        for word in words {
            assert!(told.contains(word), "{arguments:?} does not say `{word}`: {told}");
        }
    }

    fn volumes(&self) -> Vec<(String, u64)> {
        let list = self.json(&["volume", "list"]);
        let of =
            |v: &Value| (v["name"].as_str().unwrap().to_owned(), v["size_bytes"].as_u64().unwrap());
        list["items"].as_array().unwrap().iter().map(of).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut child) = self.blockd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn volumes_come_and_go() {
    let mut bed = Bed::start("");
    let made = bed.json(&["volume", "create", "thin", "--size", "10G", "--thin"]);
    assert_eq!((&made["kind"], &made["version"]), (&json!("block-volume"), &json!(1)));
    assert_eq!((&made["size_bytes"], &made["allocated_bytes"]), (&json!(10_u64 << 30), &json!(0)));
    assert_eq!(bed.ok(&["volume", "create", "thick", "--size", "5M", "-o", "name"]), "thick\n");
    assert_eq!(bed.volumes(), [("thin".to_owned(), 10 << 30), ("thick".to_owned(), 8 * MIB)]);
    bed.fails(&["volume", "create", "thick", "--size", "5M"], 6, &["thick", "EXISTS"]);
    bed.fails(&["volume", "create", "big", "--size", "1T"], 1, &["NO_SPACE", "--thin"]);
    bed.fails(&["volume", "create", "a/b", "--size", "1M"], 2, &["name", "INVALID"]);
    bed.fails(&["volume", "create", "x", "--size", "lots"], 2, &["lots"]);
    bed.fails(&["volume", "create", "x", "--size", "1M", "--device", "/d"], 5, &["/d"]);

    let grown = bed.json(&["volume", "resize", "thick", "--size", "64M"]);
    assert_eq!(grown["size_bytes"], 64 * MIB);
    bed.fails(&["volume", "resize", "thick", "--size", "4M"], 6, &["lost", "--confirm thick"]);
    bed.fails(&["volume", "resize", "thick", "--size", "4M", "--confirm", "thin"], 6, &["thin"]);
    bed.fails(&["volume", "resize", "nosuch", "--size", "4M"], 5, &["nosuch", "volume list"]);
    bed.ok(&["volume", "resize", "thick", "--size", "4M", "--confirm", "thick"]);
    bed.fails(&["volume", "delete", "thin"], 6, &["lost", "--confirm thin"]);
    bed.fails(&["volume", "delete", "nosuch", "--confirm", "nosuch"], 5, &["nosuch"]);

    bed.restart();
    assert_eq!(bed.volumes(), [("thin".to_owned(), 10 << 30), ("thick".to_owned(), 4 * MIB)]);
    bed.ok(&["volume", "delete", "thin", "--confirm", "thin"]);
    bed.restart();
    assert_eq!(bed.volumes(), [("thick".to_owned(), 4 * MIB)]);
    assert!(bed.ok(&["volume", "list"]).contains("thick"));
}

#[test]
fn what_the_configuration_makes_comes_back_and_that_is_told() {
    let bed = Bed::start("[[volume]]\nname = 'fixed'\nsize = 4194304\n");
    let output = bed.output(&["volume", "delete", "fixed", "--confirm", "fixed"]);
    assert!(output.status.success() && told(&output).contains("configuration"), "{output:?}");
    bed.fails(&["export", "fixed", "--any-host"], 6, &["[nvmet]", "NO_TARGET"]);
}

#[test]
fn exports_survive_a_kill_and_hosts_change() {
    let mut bed = Bed::with_target("");
    for name in ["one", "two"] {
        bed.ok(&["volume", "create", name, "--size", "8M"]);
    }
    bed.fails(&["export", "one"], 2, &["--host", "--any-host"]);
    bed.fails(&["export", "nosuch", "--any-host"], 5, &["nosuch"]);
    bed.fails(&["export", "one", "--host", "iqn.x"], 2, &["iqn.x"]);
    bed.fails(&["export", "one", "--host", HOST, "--secret", "DHHC-1:00:x:"], 2, &["seen", "file"]);
    bed.fails(&["export", "one", "--host", HOST, "--secret", "none"], 2, &["none"]);
    std::fs::write(bed.path("bad"), "secret").unwrap();
    bed.fails(&["export", "one", "--host", HOST, "--secret", "bad"], 2, &["bad", "DHHC-1"]);
    assert!(bed.json(&["hosts"])["items"].as_array().unwrap().is_empty(), "nothing was opened");

    // 32 bytes of key and their CRC-32, as `nvme gen-dhchap-key` writes them.
    let secret = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    std::fs::write(bed.path("secret"), secret).unwrap();
    let arguments = ["export", "one", "--nqn", NQN, "--host", HOST, "--secret", "secret"];
    let made = bed.json(&arguments);
    assert_eq!((&made["nqn"], &made["nsid"]), (&json!(NQN), &json!(1)));
    let arguments = ["export", "two", "--nqn", NQN, "--host", HOST, "--secret", "secret"];
    assert_eq!(bed.json(&arguments)["nsid"], 2);
    bed.fails(&["export", "two", "--nqn", NQN, "--any-host"], 2, &["other hosts"]);

    bed.fails(&["volume", "delete", "one", "--confirm", "one"], 6, &[NQN, "unexport one"]);
    bed.fails(&["volume", "resize", "one", "--size", "16M"], 6, &[NQN, "unexport"]);
    let before = bed.json(&["hosts"]);
    assert_eq!(before["items"][0]["hosts"][0]["authenticated"], true);
    assert!(!bed.ok(&["hosts", "-o", "json"]).contains("DHHC-1"), "secrets are not shown");
    bed.restart();
    assert_eq!(bed.json(&["hosts"]), before);

    bed.fails(&["hosts", "nosuch", "--any-host"], 5, &["nosuch"]);
    bed.fails(&["hosts", "--any-host"], 2, &["Name it"]);
    let other = "nqn.2014-08.org.example:other";
    let changed = bed.json(&["hosts", "two", "--host", other]);
    assert_eq!(changed["items"][0]["hosts"][0]["nqn"], other);
    bed.restart();
    assert_eq!(bed.json(&["hosts", NQN]), changed);
    assert!(bed.ok(&["hosts"]).contains(other));

    bed.ok(&["unexport", "one"]);
    bed.fails(&["unexport", "one"], 5, &["not exported"]);
    bed.restart();
    let left = bed.json(&["hosts"]);
    assert_eq!(left["items"][0]["namespaces"].as_array().unwrap().len(), 1);
    bed.ok(&["unexport", "two", "--nqn", NQN]);
    bed.ok(&["volume", "delete", "two", "--confirm", "two"]);
}

#[test]
fn a_volume_is_measured_and_kept() {
    let bed = Bed::start("");
    bed.ok(&["volume", "create", "scratch", "--size", "16M"]);
    let bench = |rw: &'static str| vec!["bench", "scratch", "--rw", rw, "--qd", "8", "--time", "1"];
    let report = bed.json(&bench("mix"));
    assert_eq!((&report["kind"], &report["engine"]), (&json!("block-bench"), &json!("ipc")));
    for of in ["read", "write"] {
        let at = |name: &str| report[of][name].as_u64().unwrap();
        let order = ["p50_ns", "p90_ns", "p99_ns", "p99.9_ns", "p99.99_ns", "max_ns"].map(at);
        assert!(order.is_sorted() && order[0] > 0, "{report}");
    }
    assert!(report["iops"].as_f64().unwrap() > 0.0);
    assert!(report["blockd_cpu_ns_per_operation"].as_f64().unwrap() > 0.0, "{report}");
    let sums = bed.json(&["stats"]);
    let writes = |v: &Value| {
        v["cores"].as_array().unwrap().iter().map(|c| c["writes"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(writes(&sums), report["write"]["operations"].as_u64().unwrap());

    bed.fails(&bench("randwrite"), 6, &["NOT_BLANK", "scratch", "--confirm"]);
    assert_eq!(writes(&bed.json(&["stats"])), writes(&sums), "nothing was written");
    bed.ok(&[&bench("write")[..], &["--confirm", "scratch"]].concat());
    assert!(bed.ok(&bench("randread")).contains("p99.99"));

    bed.fails(&["bench", "nosuch"], 5, &["nosuch"]);
    bed.fails(&["bench", "scratch", "--bs", "1000"], 2, &["4096"]);
    bed.fails(&["bench", "scratch", "--qd", "5000"], 2, &["1024"]);
    bed.fails(&["bench"], 2, &["NAME"]);
    bed.fails(&["bench", "--engine", "uring"], 2, &["--path"]);
    bed.fails(&["bench", "--engine", "warp", "--path", "x"], 2, &["warp"]);
    bed.fails(&["bench", "--engine", "uring", "--path", "pool"], 6, &["in use"]);
    let memory =
        bed.json(&["bench", "--engine", "mem", "--size", "64M", "--rw", "write", "--time", "1"]);
    assert_eq!(
        (&memory["engine"], &memory["blockd_cpu_ns_per_operation"]),
        (&json!("mem"), &Value::Null)
    );

    let watched = bed.ok(&["stats", "--watch=100ms", "--count", "2", "-o", "json"]);
    assert_eq!(watched.lines().count(), 2);
    for line in watched.lines() {
        let document: Value = serde_json::from_str(line).unwrap();
        assert!(document["interval_seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(document["cores"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn devices_with_and_without_a_blockd() {
    let mut bed = Bed::start("");
    let listed = bed.json(&["device", "list"]);
    assert_eq!(
        (&listed["items"][0]["engine"], &listed["items"][0]["state"]),
        (&json!("uring"), &json!("ok"))
    );
    assert!(bed.ok(&["device", "list", "-o", "wide"]).contains("POOL"));
    bed.ok(&["volume", "create", "v", "--size", "8M"]);
    let own = bed.json(&["device", "identify", "pool"]);
    assert_eq!((&own["used_by"], &own["kind"]), (&json!("this blockd"), &json!("file")));
    assert_eq!(own["contents"]["volumes"], json!(["v"]));
    bed.fails(&["device", "identify", "nosuch"], 5, &["nosuch"]);
    bed.fails(&["device", "format", "pool"], 6, &["--confirm pool"]);
    bed.fails(&["device", "format", "pool", "--confirm", "pool"], 6, &["volumes v", "--force"]);
    assert!(bed.ok(&["device", "format", "pool", "--dry-run"]).contains("nothing was changed"));
    assert_eq!(bed.volumes().len(), 1, "a rehearsal changes nothing");
    bed.ok(&["device", "format", "pool", "--confirm", "pool", "--force"]);
    assert!(bed.volumes().is_empty());
    bed.ok(&["volume", "create", "w", "--size", "8M"]);
    let wiped = bed.output(&["device", "wipe", "pool", "--confirm", "pool"]);
    assert!(wiped.status.success() && told(&wiped).contains("restart"), "{wiped:?}");
    bed.fails(&["volume", "create", "x", "--size", "8M"], 1, &["wiped"]);
    bed.restart();
    assert!(bed.volumes().is_empty(), "made anew");

    // Another device, first beside the daemon, then without one.
    let spare = bed.path("spare");
    let foreign = || {
        let mut bytes = vec![0; 32 << 20];
        bytes[0x438..0x43a].copy_from_slice(b"\x53\xef");
        std::fs::write(&spare, bytes).unwrap();
    };
    for served in [true, false] {
        foreign();
        if !served {
            bed.kill();
        }
        let ctl = |arguments: &[&str]| {
            let mut command = bed.command(arguments);
            if !served {
                command.env_remove("CFS_BLOCKD_SOCKET");
            }
            command.output().unwrap()
        };
        let identity = ctl(&["device", "identify", "spare"]);
        assert!(String::from_utf8_lossy(&identity.stdout).contains("ext4"), "{}", told(&identity));
        let refused = ctl(&["device", "format", "spare", "--confirm", "spare"]);
        assert_eq!(refused.status.code(), Some(6), "{}", told(&refused));
        assert!(told(&refused).contains("ext4") && told(&refused).contains("--force"));
        let rehearsed = ctl(&["device", "format", "spare", "--dry-run", "-o", "json"]);
        let rehearsed: Value = serde_json::from_slice(&rehearsed.stdout).unwrap();
        assert_eq!((&rehearsed["dry_run"], &rehearsed["plan"]), (&json!(true), &Value::Null));
        assert_eq!(rehearsed["contents"]["what"], "foreign");
        // A file has no controller to format it, and nothing of NVMe to show.
        for wish in [["--lba-size", "4096"], ["--lbaf", "0"], ["--secure-erase", "user-data"]] {
            let arguments = ["device", "format", "spare", "--force", "--confirm", "spare"];
            let refused = ctl(&[&arguments[..], &wish[..]].concat());
            assert_eq!(refused.status.code(), Some(6), "{}", told(&refused));
            assert!(told(&refused).contains("passthru and vfio"), "{}", told(&refused));
        }
        let refused = ctl(&["device", "identify", "spare", "--raw"]);
        assert_eq!(refused.status.code(), Some(2), "{}", told(&refused));
        for arguments in [
            &["device", "format", "spare", "--confirm", "spare", "--force"][..],
            &["device", "wipe", "spare", "--confirm", "spare", "--zero"],
        ] {
            let done = ctl(arguments);
            assert!(done.status.success(), "{}", told(&done));
        }
        let identity = ctl(&["device", "identify", "spare", "-o", "json"]);
        let identity: Value = serde_json::from_slice(&identity.stdout).unwrap();
        assert_eq!(identity["contents"], json!({ "what": "blank" }));
    }
    // One that was named is not done without.
    bed.fails(&["device", "identify", "spare"], 6, &["NO_BLOCKD", "blockd --config"]);
    bed.fails(&["volume", "list", "--socket", "elsewhere"], 6, &["elsewhere"]);
}

/// Changes run while blockd is killed: each that was acknowledged is there after the restart, the one that was under
/// way is there whole or not at all.
#[test]
fn killed_in_the_middle_of_changes() {
    let mut bed = Bed::with_target("");
    bed.ok(&["volume", "create", "exported", "--size", "4M"]);
    let mut volumes = vec![("exported".to_owned(), 4 * MIB)];
    let mut exported = false;
    for round in 0..6_u64 {
        // What the changes of this round come to, one after the other.
        let sizes = [8, 24, 12, 32, 4].map(|mib| mib * MIB);
        let name = format!("v{round}");
        let mut steps: Vec<Vec<String>> = Vec::new();
        let mut states = vec![(volumes.clone(), exported)];
        let mut step = |arguments: &[&str], volumes: &[(String, u64)], exported| {
            steps.push(arguments.iter().map(|word| (*word).to_owned()).collect());
            states.push((volumes.to_vec(), exported));
        };
        volumes.push((name.clone(), sizes[0]));
        step(&["volume", "create", &name, "--size", "8M"], &volumes, exported);
        for size in &sizes[1..] {
            volumes.last_mut().unwrap().1 = *size;
            let size = size.to_string();
            step(
                &["volume", "resize", &name, "--size", &size, "--confirm", &name],
                &volumes,
                exported,
            );
            exported = !exported;
            let arguments: &[&str] = if exported {
                &["export", "exported", "--any-host"]
            } else {
                &["unexport", "exported"]
            };
            step(arguments, &volumes, exported);
        }

        let acknowledged = AtomicUsize::new(0);
        let mut child = bed.blockd.take().unwrap();
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                for arguments in &steps {
                    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                    if !bed.output(&arguments).status.success() {
                        break;
                    }
                    acknowledged.fetch_add(1, Ordering::AcqRel);
                }
            });
            // A different moment each round, of the change that comes after some were acknowledged.
            wait_for("some changes", || {
                let enough = acknowledged.load(Ordering::Acquire) as u64 > round;
                (enough || changes.is_finished()).then_some(())
            });
            std::thread::sleep(Duration::from_millis(round * 3));
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let acknowledged = acknowledged.load(Ordering::Acquire);
        bed.restart();
        let is_exported = !bed.json(&["hosts"])["items"].as_array().unwrap().is_empty();
        let now = (bed.volumes(), is_exported);
        let allowed = &states[acknowledged..states.len().min(acknowledged + 2)];
        assert!(allowed.contains(&now), "round {round}: {now:?}, not one of {allowed:?}");
        (volumes, exported) = now;
    }
}

#[test]
fn huge_pages_are_reserved_told_and_released() {
    let root = tempfile::tempdir().unwrap();
    let pages = |place: &str| {
        let dir = root.path().join(place).join("hugepages/hugepages-2048kB");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("nr_hugepages"), "3\n").unwrap();
        std::fs::write(dir.join("free_hugepages"), "1\n").unwrap();
        dir.join("nr_hugepages")
    };
    let all = pages("sys/kernel/mm");
    let node = pages("sys/devices/system/node/node1");
    let script = |arguments: &[&str]| {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/hugepages"))
            .args(arguments)
            .env("HUGEPAGES_ROOT", root.path())
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text.into_owned())
    };
    let (code, text) = script(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.lines().any(|l| l.split_whitespace().eq(["1", "3", "2", "1", "6", "MiB"])),
        "{text}"
    );
    let (code, text) = script(&["--pages", "64", "--node", "1"]);
    assert_eq!((code, text.contains("node 1: 3 -> 64")), (Some(0), true), "{text}");
    assert_eq!(std::fs::read_to_string(node).unwrap().trim(), "64");
    assert_eq!(script(&["--release"]).0, Some(0));
    assert_eq!(std::fs::read_to_string(all).unwrap().trim(), "0");
    for (arguments, word) in [
        (&["--pages", "many"][..], "many"),
        (&["--pages"], "number"),
        (&["--pages", "1", "--release"], "exclude"),
        (&["--colour"], "--colour"),
    ] {
        let (code, text) = script(arguments);
        assert!(code == Some(2) && text.contains(word), "{code:?} {text}");
    }
    let (code, text) = script(&["--pages", "1", "--node", "7"]);
    assert!(code == Some(1) && text.contains("node 7"), "{text}");
}
