//! `cfs mount`, `cfs umount` and the ways around them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use crate::world::{World, can_mount, is_mounted, wait_for};

#[test]
fn what_cannot_be_mounted_is_told_before_anything_happens() {
    let mut world = World::start();
    let mountpoint = world.mountpoint("m");
    let mountpoint = mountpoint.to_str().unwrap();
    world.fails(&["mount", "missing"], 5, &["missing", "mkdir -p missing"]);
    world.fails(&["mount", "node.toml"], 1, &["node.toml", "not a directory"]);
    world.fails(&["mount", "-o", "colour", mountpoint], 2, &["colour"]);
    world.fails(&["mount", "--cache-size", "lots", mountpoint], 2, &["lots"]);
    world.fails(&["mount", "--socket", "none.sock", mountpoint], 6, &["none.sock", "cfs server"]);
    world.fails(&["mount", "--server", "127.0.0.1:1", mountpoint], 6, &["token"]);
    world.fails(&["umount", mountpoint], 5, &["nothing is mounted"]);
    world.fails(&["umount", "/proc"], 5, &["proc"]);
}

#[test]
fn a_socket_of_something_else_is_not_waited_for() {
    let world = World::start();
    let listener = UnixListener::bind(world.path("other.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // Whoever talked may be gone.
            let _ = stream.and_then(|mut stream| stream.write_all(&[0x55; 4096]));
        }
    });
    world.fails(&["admin", "--socket", "other.sock", "status"], 1, &["other.sock", "PROTOCOL"]);
    world.fails(&["admin", "--socket", "none.sock", "status"], 6, &["none.sock", "cfs server"]);
    world.fails(&["admin", "stat", "/no/such"], 5, &["/no", "NOT_FOUND"]);
    world.fails(&["admin", "du", "relative"], 2, &["relative", ":/"]);
}

#[test]
fn umount_tells_and_plain_umount_works_too() {
    if !can_mount("umount_tells_and_plain_umount_works_too") {
        return;
    }
    let mut world = World::start();
    let path = world.mount("m", &[]);
    let mountpoint = path.to_str().unwrap();
    world.fails(&["mount", mountpoint], 6, &["busy", "cfs umount"]);
    let file = File::create(path.join("f")).unwrap();
    world.fails(&["umount", mountpoint], 6, &["busy", "--force"]);
    drop(file);
    world.ok(&["umount", mountpoint]);

    // In the foreground the process ends with the mount, whoever ends it.
    for (program, argument) in [("umount", None), ("fusermount3", Some("-u"))] {
        let mut mount = world
            .command(["mount", "--foreground", mountpoint])
            .stdout(Stdio::null())
            .stderr(File::create(world.path("foreground.log")).unwrap())
            .spawn()
            .unwrap();
        wait_for("the mount", || is_mounted(&path).then_some(()));
        fs::write(path.join("f"), program).unwrap();
        let done = Command::new(program).args(argument).arg(&path).output().unwrap();
        assert!(done.status.success(), "{program}: {done:?}");
        let status = wait_for("the end of the process", || mount.try_wait().unwrap());
        assert!(status.success(), "{program}: {}", world.log("foreground.log"));
    }
    let path = world.path("m");
    world.ok(&["mount", "--log-file", "again.log", mountpoint]);
    assert_eq!(fs::read(path.join("f")).unwrap(), b"fusermount3");
}

#[test]
fn a_dead_server_does_not_keep_a_mount() {
    if !can_mount("a_dead_server_does_not_keep_a_mount") {
        return;
    }
    let mut world = World::start();
    let path = world.mount("m", &["--timeout", "5s"]);
    let held = File::create(path.join("f")).unwrap();
    world.kill_server();
    world.ok(&["umount", "--force", path.to_str().unwrap()]);
    wait_for("the mount to go", || (!is_mounted(&path)).then_some(()));
    drop(held);
}

#[test]
fn mount_cfs_is_for_fstab() {
    if !can_mount("mount_cfs_is_for_fstab") {
        return;
    }
    let mut world = World::start();
    let path = world.mountpoint("m");
    symlink(env!("CARGO_BIN_EXE_cfs"), world.path("mount.cfs")).unwrap();
    let helper = |options: &str| {
        Command::new(world.path("mount.cfs"))
            .args([world.path("fsd.sock"), path.clone()])
            .args(["-o", options])
            .env("CFS_RUNTIME_DIR", world.path("run"))
            .current_dir(world.path(""))
            .output()
            .unwrap()
    };
    let refused = helper("ro,colour");
    assert_eq!(refused.status.code(), Some(2));
    assert!(crate::world::told(&refused).contains("colour"));
    let done = helper("ro,_netdev,nofail,x-systemd.automount,log-file=fstab.log");
    assert!(done.status.success(), "{}", crate::world::told(&done));
    let error = fs::write(path.join("f"), b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    world.ok(&["umount", path.to_str().unwrap()]);
}
