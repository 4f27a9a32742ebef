//! A node from its first start to its end, as an administrator and a client of the network see it.

use std::path::Path;
use std::process::Command;

use crate::world::{World, can_mount, is_mounted, told, wait_for};

/// Sources that this test can be sure of.
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../raftmeta");

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// Until every small write is in a chunk.
fn settled(world: &World) {
    wait_for("small writes to settle", || {
        let pending = world.json(&["admin", "gc", "--dry-run"]);
        (pending["pending"]["unsettled_extents"] == 0).then_some(())
    });
}

fn number(value: &serde_json::Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}

#[test]
fn enrol_mount_write_measure_collect_check_unmount() {
    if !can_mount("enrol_mount_write_measure_collect_check_unmount") {
        return;
    }
    let mut world = World::start();
    let token = world.ok(&["admin", "token", "create", "-o", "name"]);
    let tcp = world.tcp.clone();
    let over_tls = ["--server", &tcp, "--token", token.trim()];
    let mount = world.mount("net", &over_tls);
    assert!(world.path("home/.cfs/credentials.toml").exists());

    let status = world.json(&["admin", "status"]);
    assert_eq!(status["health"]["word"], "HEALTH_OK");
    assert_eq!(number(&status, "clients"), 1);
    // Which pages there are is the machine's affair; that status knows is not.
    let memory = status["blockd"]["memory"].as_str().unwrap();
    assert!(
        ["hugetlb 2 MiB", "transparent 2 MiB", "4 KiB"].iter().any(|kind| memory.starts_with(kind))
    );
    let clients = world.json(&["admin", "client", "list"]);
    assert!(clients["items"][0]["identity"].as_str().unwrap().starts_with("client:"));
    let shards = world.json(&["admin", "node", "list", "--show-shards"]);
    assert_eq!(shards["items"][0]["shards"].as_array().unwrap().len(), 16);

    copy(Path::new(TREE), &mount.join("one"));
    settled(&world);
    // A path inside the mount and the path in the cluster are the same.
    let first = world.json(&["admin", "du", mount.join("one").to_str().unwrap()]);
    assert_eq!(first, world.json(&["admin", "du", ":/one"]));
    assert!(first["compression_ratio"].as_f64().unwrap() >= 2.0, "{first}");
    copy(Path::new(TREE), &mount.join("two"));
    settled(&world);
    let both = world.json(&["admin", "du", "/"]);
    let (before, after) = (number(&first, "stored_bytes"), number(&both, "stored_bytes"));
    assert!(after * 100 <= before * 102, "a second copy takes {before} -> {after}");
    assert_eq!(after, number(&both, "pool_live_bytes"), "{both}");
    assert_eq!(number(&first, "unique_bytes"), before);
    let shared = world.json(&["admin", "du", ":/one"]);
    assert_eq!(number(&shared, "shared_bytes"), before, "{shared}");

    let file = mount.join("one/Cargo.toml");
    let stat = world.json(&["admin", "stat", file.to_str().unwrap()]);
    let chunk = &stat["extents"][0]["backing"]["chunk"];
    assert_eq!(number(chunk, "references"), 2, "{stat}");
    assert!(number(chunk, "stored_bytes") > 0);
    let ino = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
    assert_eq!(number(&stat, "ino"), ino);

    std::fs::remove_dir_all(mount.join("two")).unwrap();
    std::fs::remove_dir_all(mount.join("one/src")).unwrap();
    // The node may have collected some of it by itself already.
    world.json(&["admin", "gc"]);
    let left = world.json(&["admin", "du", "/"]);
    assert!(number(&left, "stored_bytes") < before);
    wait_for("garbage to go", || {
        let live = number(&world.json(&["admin", "gc"])["after"], "live_bytes");
        (live == number(&left, "stored_bytes")).then_some(())
    });
    world.ok(&["admin", "checkpoint"]);
    let report = world.json(&["admin", "fsck", "--read-data"]);
    assert_eq!((number(&report, "found"), &report["findings"]), (0, &serde_json::json!([])));
    assert_eq!(report["chunks"], report["chunks_read"]);

    world.ok(&["umount", mount.to_str().unwrap()]);
    assert!(!is_mounted(&mount));
    wait_for("the session to end", || {
        (number(&world.json(&["admin", "status"]), "clients") == 0).then_some(())
    });
    assert_eq!(number(&world.json(&["admin", "fsck", "--repair"]), "found"), 0);
}

#[test]
fn tokens_and_certificates_are_refused_by_name() {
    let mut world = World::start();
    let mountpoint = world.mountpoint("m");
    let mountpoint = mountpoint.to_str().unwrap();
    let tcp = world.tcp.clone();
    let with = |token: &str| {
        let words = ["mount", "--server", &tcp, "--token", token, mountpoint];
        words.map(str::to_owned)
    };
    let refused = |world: &World, token: &str, code, words: &[&str]| {
        let arguments = with(token);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        world.fails(&arguments, code, words);
    };
    refused(&world, "hunter2", 2, &["--token", "cfs1-"]);
    let token = world.ok(&["admin", "token", "create", "-o", "name"]);
    let token: fsd_rpc::token::Token = token.parse().unwrap();
    let unknown = fsd_rpc::token::Token::new(fsd_rpc::token::Purpose::Client, [7; 16], *token.ca());
    refused(&world, &unknown.reveal(), 1, &["TOKEN_REFUSED", "never issued"]);
    let stranger = fsd_rpc::token::Token::new(
        fsd_rpc::token::Purpose::Client,
        [7; 16],
        fsd_rpc::tls::CaFingerprint([1; 16]),
    );
    refused(&world, &stranger.reveal(), 1, &["cannot enrol"]);
    assert!(!world.path("home/.cfs").join("credentials.toml").exists());

    let expired = world.ok(&["admin", "token", "create", "--ttl", "1s", "-o", "name"]);
    wait_for("the token to expire", || {
        let now = world.json(&["admin", "status"])["time"].as_str().unwrap().to_owned();
        let tokens = world.json(&["admin", "token", "list"]);
        let mut ends =
            tokens["items"].as_array().unwrap().iter().map(|token| token["expires"].clone());
        ends.any(|end| end.as_str().unwrap() < now.as_str()).then_some(())
    });
    refused(&world, expired.trim(), 1, &["TOKEN_REFUSED", "expired"]);
    world.fails(&["admin", "token", "create", "--ttl", "8d"], 2, &["7 days"]);
    world.fails(&["admin", "cert", "revoke", "12345"], 5, &["12345", "cert list"]);
    world.fails(&["admin", "client", "revoke", "12345"], 5, &["12345", "client list"]);
}

#[test]
fn a_used_token_and_a_revoked_certificate() {
    if !can_mount("a_used_token_and_a_revoked_certificate") {
        return;
    }
    let mut world = World::start();
    let tcp = world.tcp.clone();
    let token = world.ok(&["admin", "token", "create", "-o", "name"]);
    let over_tls = ["--server", &tcp, "--token", token.trim()];
    let first = world.mount("first", &over_tls);
    let other = world.mountpoint("other");
    let other = other.to_str().unwrap();
    let elsewhere = [&["mount", "--identity", "id"][..], &over_tls, &[other]].concat();
    world.fails(&elsewhere, 1, &["TOKEN_REFUSED", "used up", "token create"]);
    // Where its certificate still is, as with an fstab line, it does no harm.
    world.ok(&[&["mount", "--log-file", "other.log"][..], &over_tls, &[other]].concat());
    world.ok(&["umount", other]);
    world.ok(&["umount", first.to_str().unwrap()]);

    let serial = world.ok(&["admin", "cert", "list", "-o", "name"]);
    world.ok(&["admin", "cert", "revoke", serial.trim()]);
    assert_eq!(world.json(&["admin", "cert", "list"])["items"][0]["revoked"], true);
    world.fails(&["mount", "--server", &tcp, other], 1, &["revoked", "enrol"]);
    // A certificate is there, so a socket that is not there is not the end.
    let mut mount = world.command(["mount", other]);
    mount.env_remove("CFS_SOCKET").env("CFS_RUNTIME_DIR", world.path("none"));
    let told = told(&mount.output().unwrap());
    assert!(told.contains("revoked"), "{told}");
}
