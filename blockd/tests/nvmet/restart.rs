//! What survives the daemon: exports made at run time, and what a host was told is durable.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::initiator::{self, BLOCK, Host, Options, Queue};
use super::{HOST, NQN, eventually, pattern, read, who, write};

struct Daemon {
    child: Child,
    admin: std::path::PathBuf,
}

impl Daemon {
    fn start(dir: &Path) -> Daemon {
        let at = |name: &str| dir.join(name).display().to_string();
        let text = format!(
            "ipc_socket = {:?}\nadmin_socket = {:?}\n\
             [[device]]\npath = {:?}\nsize = 67108864\ncreate = true\n\
             [[volume]]\nname = 'v'\nsize = 16777216\n\
             [nvmet]\nlisten = ['127.0.0.1:0']\ndiscovery = []\nexports_file = {:?}\n",
            at("ipc"),
            at("admin"),
            at("device"),
            at("exports"),
        );
        std::fs::write(dir.join("blockd.toml"), text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_blockd"))
            .arg("--config")
            .arg(dir.join("blockd.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon { child, admin: dir.join("admin") };
        eventually("blockd is up", || {
            UnixStream::connect(&daemon.admin).is_ok()
                && daemon.call("nvmet.list", Value::Null)["result"]["listen"][0].is_string()
        });
        daemon
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let mut stream = UnixStream::connect(&self.admin).unwrap();
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        stream.write_all(format!("{call}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).unwrap();
        serde_json::from_str(&reply).unwrap()
    }

    fn list(&self) -> Value {
        self.call("nvmet.list", Value::Null)["result"].clone()
    }

    fn pair(&self) -> (Host, Queue) {
        let address: SocketAddr = self.list()["listen"][0].as_str().unwrap().parse().unwrap();
        let host = Host::connect(address, &who(), Options::default()).unwrap();
        let queue = host.queue(address, &who(), 1, Options::default()).unwrap();
        (host, queue)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn exports_and_data_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let export = json!({ "volume": "v", "nqn": NQN, "host": [{ "nqn": HOST }] });
    assert_eq!(daemon.call("nvmet.export", export)["result"]["nsid"], 1);
    let (host, mut queue) = daemon.pair();
    let data = pattern(3, 8 * BLOCK);
    assert_eq!(write(&mut queue, 5, &data), 0);
    assert_eq!(queue.call(initiator::sqe(0, 1), &[], 0).unwrap().status, 0);
    let refused = daemon.call("volume.delete", json!({ "name": "v" }));
    assert!(refused["error"]["message"].as_str().unwrap().contains("exported as"), "{refused}");
    let subsystems = daemon.list()["subsystems"].clone();
    drop(daemon);
    drop((host, queue));

    let daemon = Daemon::start(dir.path());
    assert_eq!(daemon.list()["subsystems"], subsystems, "names, numbers and identities stay");
    let (mut host, mut queue) = daemon.pair();
    assert_eq!(read(&mut queue, 5, 8), data);
    let gone = daemon.call("nvmet.unexport", json!({ "volume": "v", "nqn": NQN }));
    assert_eq!(gone["result"], json!({ "removed": 1, "until_restart": false }));
    assert_eq!(host.admin.terminated(), None, "the subsystem is gone");
    let again = daemon.call("nvmet.unexport", json!({ "volume": "v" }));
    assert!(again["error"]["message"].as_str().unwrap().contains("not exported"));
    drop((host, queue));
    eventually("the volume is free", || {
        daemon.call("volume.delete", json!({ "name": "v" }))["error"].is_null()
    });
}
