//! A node and mounts as a user starts them, in a directory of their own. Everything ends with the value, also
//! when a test panics.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A wait that takes this long is a hang.
const HANG_AFTER: Duration = Duration::from_secs(180);

/// Polls until `done` has something.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = done() {
            return found;
        }
        assert!(started.elapsed() < HANG_AFTER, "{what}: not within {HANG_AFTER:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether this process may mount; says aloud if not.
pub fn can_mount(test: &str) -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("SKIPPED {test}: mounting needs root and /dev/fuse");
    }
    can
}

/// See the module.
pub struct World {
    directory: tempfile::TempDir,
    server: Option<Child>,
    /// `host:port` of the network door.
    pub tcp: String,
    mounts: Vec<PathBuf>,
}

impl World {
    /// Starts a node and waits until its doors are open.
    pub fn start() -> World {
        let directory = tempfile::tempdir().unwrap();
        let config = "\
[node]
name = \"it\"
data_dir = \"data\"
[cluster]
name = \"it\"
shard_count = 16
[door]
unix = \"fsd.sock\"
tcp = \"127.0.0.1:0\"
[blockd]
socket = \"blockd.sock\"
pool = { path = \"pool\", size = \"512MiB\" }
[metrics]
listen = \"127.0.0.1:0\"
";
        std::fs::write(directory.path().join("node.toml"), config).unwrap();
        let mut world = World { directory, server: None, tcp: String::new(), mounts: Vec::new() };
        world.start_server();
        world
    }

    fn start_server(&mut self) {
        let log = File::create(self.path("server.log")).unwrap();
        let mut server = self
            .command(["server", "--config"])
            .arg(self.path("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut out = BufReader::new(server.stdout.take().unwrap());
        self.server = Some(server);
        let mut line = String::new();
        while !line.contains("is ready") {
            line.clear();
            let read = out.read_line(&mut line).unwrap();
            assert!(read > 0, "the server ended: {}", self.log("server.log"));
        }
        let tcp = line.split("tcp ").nth(1).and_then(|rest| rest.split(',').next());
        self.tcp = tcp.expect("the ready line names the network door").to_owned();
        // Nothing more is expected there; it must not get stuck all the same.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    }

    /// `kill -9` of the node; its block daemon ends with it.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `cfs` that finds this node and nothing else of the machine.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cfs"));
        command.args(arguments).current_dir(self.directory.path());
        for name in ["CFS_SOCKET", "CFS_SERVER", "CFS_IDENTITY", "CFS_TOKEN", "CFS_LOG"] {
            command.env_remove(name);
        }
        command.env("CFS_RUNTIME_DIR", self.path("run")).env("HOME", self.path("home"));
        command.env("CFS_SOCKET", self.path("fsd.sock")).stdin(Stdio::null());
        command
    }

    pub fn cfs(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs `cfs`, which has to succeed, and returns its stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.cfs(arguments);
        assert!(output.status.success(), "cfs {arguments:?}: {}\n{}", output.status, told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with `-o json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// Runs `cfs`, which has to fail with this exit code and these words on stderr.
    pub fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.cfs(arguments);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "cfs {arguments:?}: {told}");
        for word in words {
            assert!(told.contains(word), "cfs {arguments:?} does not say `{word}`: {told}");
        }
    }

    /// An empty directory that is unmounted at the end, if anything is mounted there.
    pub fn mountpoint(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        self.mounts.push(path.clone());
        path
    }

    /// Mounts in the background, over the socket unless `more` says otherwise.
    pub fn mount(&mut self, name: &str, more: &[&str]) -> PathBuf {
        let path = self.mountpoint(name);
        let log = self.path(&format!("{name}.log"));
        let fixed = ["mount", "--log-file", log.to_str().unwrap()];
        self.ok(&[&fixed[..], more, &[path.to_str().unwrap()]].concat());
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for path in &self.mounts {
            if is_mounted(path) {
                let done = self.command(["umount", "--force"]).arg(path).output();
                if !done.is_ok_and(|output| output.status.success()) {
                    let _ = Command::new("umount").arg("-l").arg(path).output();
                }
            }
        }
        let Some(mut server) = self.server.take() else { return };
        let _ = kill_process(Pid::from_child(&server), Signal::TERM);
        let started = Instant::now();
        while started.elapsed() < HANG_AFTER {
            match server.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = server.kill();
        let _ = server.wait();
    }
}

/// What the command said on stderr.
pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
