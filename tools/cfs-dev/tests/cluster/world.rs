//! A directory for one cluster, and the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cfs-dev");
/// Tells a test that it is in its namespaces.
const INSIDE: &str = "CFS_DEV_TEST_INSIDE";

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs the test again in namespaces of its own, as root; `true` inside, and for others at once. Outside the result
/// of the inner run is asserted.
pub fn in_namespaces(test: &str) -> bool {
    if !is_root() || std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let script = "ip link set lo up && mkdir -p /run/netns && mount -t tmpfs netns /run/netns && exec \"$@\"";
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--net", "--fork"])
        .args(["--kill-child=KILL", "--mount-proc", "--", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        // The outer run reports this test; panics and progress go to stderr.
        .stdout(Stdio::null());
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{test} failed in its namespaces: {status}");
    false
}

/// As [`in_namespaces`], for a test that mounts: skipped, aloud, where nothing can be mounted.
pub fn mounts_in_namespaces(test: &str) -> bool {
    if !is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED {test}: it needs root and /dev/fuse, for mounts and namespaces");
        return false;
    }
    in_namespaces(test)
}

/// Says so and gives `true` if there is no Prometheus, which phase 3 starts.
pub fn lacks_prometheus(test: &str) -> bool {
    let missing = |tool: &&&str| Command::new(tool).arg("--version").output().is_err();
    let Some(tool) = ["prometheus", "promtool"].iter().find(missing) else { return false };
    eprintln!("SKIPPED {test}: it needs {tool} (apt-get install prometheus)");
    true
}

/// See the module. Destroyed at the end, also when the test panics.
pub struct World {
    directory: tempfile::TempDir,
    name: String,
}

impl World {
    pub fn new() -> World {
        let directory = tempfile::Builder::new().prefix("cfs-dev-").tempdir().unwrap();
        // Tests run side by side where there are no namespaces.
        let tail = directory.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let name = tail.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        World { directory, name }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).env("CFS_DEV_STATE_DIR", self.state()).stdin(Stdio::null());
        for name in ["CFS_SOCKET", "CFS_SERVER", "CFS_IDENTITY", "CFS_TOKEN", "RUST_LOG"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Has to succeed; its stdout.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ends(arguments, 0)
    }

    /// Has to end with this code; its stdout.
    pub fn ends(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "cfs-dev {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has to fail with this code and these words on stderr.
    pub fn fails(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "cfs-dev {arguments:?}: {told}");
        for word in words {
            assert!(told.contains(word), "cfs-dev {arguments:?} does not say `{word}`: {told}");
        }
    }

    /// `up`, with a name of its own and a limit for slow machines.
    pub fn up(&self, more: &[&str]) -> String {
        self.ok(&[&["up", "--name", &self.name, "--timeout", "400"], more].concat())
    }

    pub fn topology(&self, text: &str) -> String {
        let path = self.path("topology.yaml");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The document of `status -o json`, whatever the exit code.
    pub fn status(&self) -> Value {
        serde_json::from_slice(&self.run(&["status", "-o", "json"]).stdout).unwrap()
    }

    /// Processes of this cluster that live.
    pub fn processes(&self) -> Vec<cfs_dev::process::Process> {
        cfs_dev::process::with_argument_in(&["cfs", "blockd"], &self.state())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let output = self.run(&["destroy"]);
        if std::thread::panicking() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("destroyed: {log}");
        }
    }
}

/// Numbers of the processes of all nodes, in order.
pub fn pids(status: &Value) -> Vec<Option<u64>> {
    status["nodes"].as_array().unwrap().iter().map(|node| node["pid"].as_u64()).collect()
}

pub fn kill(pid: u64) {
    let process = cfs_dev::process::Process::of(u32::try_from(pid).unwrap()).unwrap();
    process.kill().unwrap();
}

/// Network namespaces that `ip` knows.
pub fn namespaces() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Names of the interfaces of this network namespace.
pub fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/net/dev").unwrap();
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().into())).collect()
}

pub fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}
