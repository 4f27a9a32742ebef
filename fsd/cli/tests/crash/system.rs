//! One node and one client as processes: `cfs server`, its `blockd`, `cfs mount`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::Pid;

use crate::disk::Disk;
use crate::process::{self, wait_for};

const POOL_BYTES: u64 = 768 << 20;
/// Holds the metadata log and its store.
const DISK_BYTES: u64 = 2 << 30;
/// How long the client repeats an operation while the node is down: on a slow machine a start takes its time.
const DEADLINE: &str = "300s";
/// The supervisor pauses longer after each death of its blockd; a fresh server does not.
const BLOCKD_KILLS_MAX: u32 = 3;

/// Names the device that has the pool instead of a file.
const DEVICE: &str = "CRASH_DEVICE";

/// What drives the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The one that blockd chooses for its path. What is acknowledged is in the device: `kill -9` loses nothing.
    Plain,
    /// Unflushed writes are in the daemon's memory, and a power cut lets a random half of their sectors through.
    Fault,
}

/// See the module.
#[derive(Debug)]
pub struct System {
    dir: PathBuf,
    disk: Disk,
    engine: Engine,
    server: Option<Child>,
    client: Option<Child>,
    blockd_kills: u32,
}

impl System {
    /// Makes what a fresh node needs in `dir` and starts nothing.
    pub fn new(dir: &Path) -> System {
        let disk = Disk::make(dir, "meta", DISK_BYTES);
        fs::create_dir(dir.join("mnt")).expect("making the mountpoint");
        fs::write(dir.join("node.toml"), node_config(dir)).expect("writing the configuration");
        let engine = Engine::Plain;
        System { dir: dir.into(), disk, engine, server: None, client: None, blockd_kills: 0 }
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// Brings up whatever is down. A node with another engine is stopped in order first.
    pub fn up(&mut self, engine: Engine) {
        if self.server.is_some() && self.engine != engine {
            self.down();
        }
        if self.server.is_none() {
            self.engine = engine;
            self.start_server();
        }
        if self.client.is_none() {
            self.mount();
        }
    }

    /// Stops everything in order.
    pub fn down(&mut self) {
        self.unmount();
        if let Some(server) = self.server.take() {
            process::stop(server, "cfs server");
        }
        assert!(self.blockds().is_empty(), "blockd outlived the server that stopped in order");
    }

    fn start_server(&mut self) {
        // A blockd whose server was killed lives on; the new server may come before it is gone.
        let text = blockd_config(&self.dir, self.engine);
        fs::write(self.dir.join("blockd.toml"), text).expect("writing blockd's configuration");
        let config = self.path("node.toml");
        let log = self.dir.join("server.log");
        let arguments = ["server", "--config", &config];
        self.server = Some(process::daemon(cfs(), &arguments, &self.path("run"), &log));
        self.blockd_kills = 0;
        self.wait_for_server();
    }

    fn wait_for_server(&mut self) {
        let socket = self.dir.join("fsd.sock");
        let log = self.dir.join("server.log");
        let server = self.server.as_mut().expect("it was started");
        wait_for("the server's socket", || {
            if let Some(status) = server.try_wait().expect("waiting for a child") {
                panic!("cfs server ended with {status}:\n{}", process::tail(&log));
            }
            UnixStream::connect(&socket).is_ok()
        });
    }

    fn mount(&mut self) {
        let (socket, mountpoint) = (self.path("fsd.sock"), self.path("mnt"));
        let arguments =
            ["mount", "--socket", &socket, "--timeout", DEADLINE, "--foreground", &mountpoint];
        let log = self.dir.join("client.log");
        let mut client = process::daemon(cfs(), &arguments, &self.path("run"), &log);
        wait_for("the mount", || {
            if let Some(status) = client.try_wait().expect("waiting for a child") {
                panic!("cfs mount ended with {status}:\n{}", process::tail(&log));
            }
            is_mounted(&mountpoint)
        });
        self.client = Some(client);
    }

    /// Unmounts as a user does, if it is mounted.
    pub fn unmount(&mut self) {
        let Some(mut client) = self.client.take() else { return };
        let mut umount = Command::new(cfs());
        umount.arg("umount").arg(self.path("mnt")).env(process::RUNTIME_DIR, self.path("run"));
        process::run(&mut umount);
        let mut status = None;
        wait_for("the end of the client after umount", || {
            status = client.try_wait().expect("waiting for a child");
            status.is_some()
        });
        let status = status.expect("the wait ended with it");
        assert!(status.success(), "cfs mount ended with {status} after umount");
    }

    /// A fresh client with empty caches.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    fn blockds(&self) -> Vec<Pid> {
        process::with_argument("blockd", &self.path("blockd.toml"))
    }

    /// Kills blockd under a server that lives on and starts it again.
    pub fn kill_blockd(&mut self) {
        assert_eq!(self.engine, Engine::Plain, "with the fault engine that is a power cut");
        for pid in self.blockds() {
            process::kill_foreign(pid);
        }
        self.blockd_kills += 1;
    }

    /// Whether the supervisor's pauses have become too long for a test.
    pub fn is_tired(&self) -> bool {
        self.blockd_kills >= BLOCKD_KILLS_MAX
    }

    /// Kills `cfs server`; its blockd is left behind.
    pub fn kill_server(&mut self) {
        if let Some(server) = self.server.take() {
            process::kill(server);
        }
    }

    pub fn restart_server(&mut self) {
        if self.server.is_none() {
            self.start_server();
        }
    }

    /// Kills the client and takes its dead mount away.
    pub fn kill_client(&mut self) {
        if let Some(client) = self.client.take() {
            process::kill(client);
            process::run(Command::new("umount").arg("--lazy").arg(self.path("mnt")));
        }
    }

    /// Kills blockd without a word about its server; for when all die.
    pub fn kill_blockd_last(&self) {
        for pid in self.blockds() {
            process::kill_foreign(pid);
        }
    }

    /// The machine loses its power: the server stands still, so that both of its disks stop at one moment.
    pub fn power_cut(&mut self, seed: u64) {
        assert_eq!(self.engine, Engine::Fault, "only the fault engine has a volatile cache");
        let server = self.server.take().expect("a server to cut off");
        process::freeze(&server);
        self.cut_blockd(seed);
        self.disk.cut();
        process::kill(server);
        self.kill_client();
        self.disk.restore();
    }

    fn cut_blockd(&self, seed: u64) {
        let blockds = self.blockds();
        let mut admin = UnixStream::connect(self.dir.join("blockd-admin.sock"))
            .expect("connecting to blockd's admin socket");
        let call = serde_json::json!({
            "jsonrpc": "2.0", "id": 1, "method": "fault.power_cut", "params": { "seed": seed },
        });
        admin.write_all(format!("{call}\n").as_bytes()).expect("asking for a power cut");
        let mut answer = String::new();
        // A daemon without power does not answer; one that does has refused.
        let _ = BufReader::new(admin).read_line(&mut answer);
        assert_eq!(answer, "", "blockd refused the power cut");
        blockds.into_iter().for_each(process::wait_gone);
    }

    /// `cfs admin fsck` finds nothing.
    pub fn fsck(&self) {
        let mut command = Command::new(cfs());
        command.args(["admin", "fsck", "-o", "json", "--socket", &self.path("fsd.sock")]);
        command.args(["--timeout", DEADLINE]);
        let report = process::run(&mut command);
        let report: serde_json::Value =
            serde_json::from_slice(&report).expect("fsck -o json prints JSON");
        let findings = report["findings"].as_array().expect("fsck tells its findings");
        assert!(findings.is_empty(), "fsck: {findings:?}");
    }

    /// Ends everything and lets go of the disk, so that the directory can be removed.
    pub fn finish(mut self) {
        self.down();
        self.disk.unmount();
    }
}

fn cfs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cfs"))
}

fn is_mounted(mountpoint: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(mountpoint))
}

fn node_config(dir: &Path) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    format!(
        "[node]\nname = \"crash\"\ndata_dir = {:?}\n\
         [cluster]\nname = \"crash\"\nshard_count = 16\nprotection = \"replica:1\"\n\
         [door]\nunix = {:?}\n\
         [blockd]\nsocket = {:?}\nconfig = {:?}\n\
         [metrics]\nlisten = \"127.0.0.1:0\"\n",
        at("meta/data"),
        at("fsd.sock"),
        at("blockd.sock"),
        at("blockd.toml"),
    )
}

fn blockd_config(dir: &Path, engine: Engine) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    let engine = match engine {
        Engine::Plain => "engine = \"auto\"\n",
        Engine::Fault => "engine = \"fault\"\n[device.fault]\ninner = \"auto\"\n",
    };
    let pool = std::env::var(DEVICE).unwrap_or_else(|_| at("pool"));
    format!(
        "ipc_socket = {:?}\nadmin_socket = {:?}\n\n\
         [[volume]]\nname = \"chunks\"\nsize = {}\n\n\
         [[device]]\npath = {:?}\nsize = {POOL_BYTES}\ncreate = true\n{engine}",
        at("blockd.sock"),
        at("blockd-admin.sock"),
        POOL_BYTES - (16 << 20),
        pool,
    )
}
