//! The daemon as its users see it: its binary, the data door through `RemoteVolume`, the admin door through a socket.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use blockd_ipc::client::{Config, RemoteVolume};
use blockd_ipc::volume::Volume;
use serde_json::{Value, json};
use tempfile::TempDir;

const BLOCK: usize = 4096;

struct Server {
    dir: TempDir,
    child: Child,
}

impl Server {
    fn start(device: &str) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let text = format!(
            "ipc_socket = {:?}\nadmin_socket = {:?}\ncores = 2\n\n[[device]]\npath = {:?}\n\
             size = 67108864\ncreate = true\n{device}\n\
             [[volume]]\nname = 'v'\nsize = 16777216\n\
             [[volume]]\nname = 'thin'\nsize = 1073741824\nthin = true\n",
            at("ipc"),
            at("admin"),
            at("device"),
        );
        std::fs::write(dir.path().join("blockd.toml"), text).unwrap();
        let child = spawn(dir.path());
        Server { dir, child }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn connect(&self, volume: &str) -> RemoteVolume {
        RemoteVolume::connect(Config::new(self.path("ipc"), volume)).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = spawn(self.dir.path());
    }

    fn line(&self, line: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path("admin")).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        // A power cut ends the connection without an answer.
        let _ = BufReader::new(stream).read_line(&mut reply);
        serde_json::from_str(&reply).ok()
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.line(&call.to_string()).unwrap_or(Value::Null)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_blockd"))
        .arg("--config")
        .arg(dir.join("blockd.toml"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..1000 {
        if UnixStream::connect(dir.join("admin")).is_ok() && dir.join("ipc").exists() {
            return child;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("blockd did not come up: {:?}", child.wait());
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn write(volume: &RemoteVolume, lba: u64, byte: u8, blocks: usize, fua: bool) {
    let mut buffer = volume.buffer(blocks * BLOCK).await.unwrap();
    buffer.fill(byte);
    volume.write(lba, buffer, fua).await.unwrap();
}

async fn read(volume: &RemoteVolume, lba: u64, blocks: usize) -> Vec<u8> {
    let buffer = volume.buffer(blocks * BLOCK).await.unwrap();
    volume.read(lba, buffer).await.unwrap().to_vec()
}

#[test]
fn a_volume_end_to_end() {
    for engine in ["engine = 'uring'", "engine = 'fault'\n[device.fault]\n"] {
        let mut server = Server::start(engine);
        let volume = server.connect("v");
        assert_eq!((volume.geometry().block_size, volume.geometry().blocks), (4096, 4096));
        wait(async {
            write(&volume, 0, 1, 1, false).await;
            // Over the border of two extents.
            write(&volume, 1020, 2, 8, false).await;
            write(&volume, 4095, 3, 1, true).await;
            volume.flush().await.unwrap();
            assert_eq!(read(&volume, 1020, 8).await, vec![2; 8 * BLOCK]);
            volume.write_zeroes(1021, 1, true).await.unwrap();
            let buffer = volume.buffer(BLOCK).await.unwrap();
            assert!(volume.write(4096, buffer, false).await.is_err(), "beyond the end");
        });
        drop(volume);
        // SIGTERM: a clean stop.
        let pid = rustix::process::Pid::from_child(&server.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(server.child.wait().unwrap().success());
        assert!(!server.path("ipc").exists());
        server.restart();
        let volume = server.connect("v");
        wait(async {
            assert_eq!(read(&volume, 0, 1).await, vec![1; BLOCK]);
            assert_eq!(read(&volume, 1021, 1).await, vec![0; BLOCK]);
            assert_eq!(read(&volume, 1022, 6).await, vec![2; 6 * BLOCK]);
            assert_eq!(read(&volume, 4095, 1).await, vec![3; BLOCK]);
        });
    }
}

#[test]
fn thin_volumes_take_and_give_back() {
    let server = Server::start("engine = 'uring'");
    let free = |server: &Server| {
        let status = server.call("pool.status", Value::Null);
        status["result"][0]["extents_free"].as_u64().unwrap()
    };
    let before = free(&server);
    let volume = server.connect("thin");
    wait(async {
        assert_eq!(read(&volume, 100_000, 2).await, vec![0; 2 * BLOCK]);
        assert_eq!(free(&server), before, "reading takes no space");
        write(&volume, 100_000, 4, 2, true).await;
        assert_eq!(free(&server), before - 1);
        assert_eq!(read(&volume, 99_999, 2).await[BLOCK..], vec![4; BLOCK]);
        volume.deallocate(0, 200_000).await.unwrap();
        assert_eq!(free(&server), before);
        assert_eq!(read(&volume, 100_000, 2).await, vec![0; 2 * BLOCK]);
    });
}

#[test]
fn kill_under_load_loses_nothing_acknowledged() {
    let mut server = Server::start("engine = 'uring'");
    let volume = server.connect("v");
    let writer = std::thread::spawn(move || {
        wait(async {
            for i in 0..600_u64 {
                write(&volume, i * 3, i as u8 | 1, 2, i % 7 == 0).await;
            }
            volume.flush().await.unwrap();
            for i in 0..600_u64 {
                assert_eq!(read(&volume, i * 3, 2).await, vec![i as u8 | 1; 2 * BLOCK], "{i}");
            }
        });
    });
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(30));
        server.kill();
        server.restart();
    }
    writer.join().unwrap();
}

#[test]
fn a_power_cut_keeps_what_was_flushed() {
    let mut server = Server::start("engine = 'fault'\n[device.fault]\ninner = 'uring'\n");
    for seed in 0..3_u8 {
        let volume = server.connect("v");
        wait(async {
            write(&volume, 64, seed + 10, 16, false).await;
            volume.flush().await.unwrap();
            write(&volume, 128, seed + 20, 1, true).await;
            write(&volume, 256, seed + 30, 16, false).await;
        });
        drop(volume);
        assert_eq!(server.call("fault.power_cut", json!({ "seed": seed })), Value::Null);
        assert!(!server.child.wait().unwrap().success());
        server.restart();
        let volume = server.connect("v");
        wait(async {
            assert_eq!(read(&volume, 64, 16).await, vec![seed + 10; 16 * BLOCK]);
            assert_eq!(read(&volume, 128, 1).await, vec![seed + 20; BLOCK]);
            let unflushed = read(&volume, 256, 16).await;
            let torn = unflushed.chunks(512).filter(|s| s.iter().all(|b| *b == seed + 30)).count();
            assert!(torn > 0 && torn < 128, "{torn} of 128 sectors, seed {seed}");
        });
    }
}

#[test]
fn a_failed_flush_poisons() {
    let server = Server::start("engine = 'fault'\n[device.fault]\ninner = 'mem'\n");
    let volume = server.connect("v");
    let reply = server.call("fault.set", json!({ "flush_fail_ppm": 1_000_000 }));
    assert_eq!(reply["error"], Value::Null);
    wait(async {
        write(&volume, 0, 1, 1, false).await;
        assert!(volume.flush().await.is_err());
        server.call("fault.set", json!({}));
        let buffer = volume.buffer(BLOCK).await.unwrap();
        assert!(volume.write(0, buffer, false).await.is_err(), "nothing is served any more");
        assert!(volume.flush().await.is_err(), "a failed flush is not retried");
    });
}

#[test]
fn a_device_that_hangs_fails_and_says_so() {
    let server = Server::start(
        "engine = 'fault'\ntimeout_ms = 1000\n[device.fault]\ninner = 'uring'\n[[device]]\npath = 'ram'\nengine = 'mem'\n\
         size = 67108864\ncreate = true\n[[volume]]\nname = 'other'\nsize = 4194304\ndevice = 'ram'\n",
    );
    let (volume, other) = (server.connect("v"), server.connect("other"));
    let health = || server.call("device.list", Value::Null)["result"][0]["facts"]["health"].clone();
    assert_eq!(health()["state"], "ok");
    wait(write(&volume, 0, 1, 1, true));
    server.call("fault.set", json!({ "hang_ppm": 1_000_000 }));
    wait(async {
        // Nobody looks for it: the reactor sees by itself that the time is over.
        let buffer = volume.buffer(BLOCK).await.unwrap();
        assert!(volume.read(0, buffer).await.is_err());
        server.call("fault.set", json!({}));
        let buffer = volume.buffer(BLOCK).await.unwrap();
        assert!(volume.write(0, buffer, false).await.is_err(), "what was given up may come yet");
        // The other device goes on.
        write(&other, 3, 7, 1, true).await;
        assert_eq!(read(&other, 3, 1).await, vec![7; BLOCK]);
    });
    let listed = server.call("device.list", Value::Null);
    assert_eq!(listed["result"][0]["state"], "failed");
    assert_eq!(health()["state"], "failed");
    assert!(health()["reason"].as_str().unwrap().contains("1000 ms"), "{}", health());
    assert_eq!(listed["result"][1]["facts"]["health"]["state"], "ok");
}

#[test]
fn the_admin_door() {
    let mut server = Server::start("engine = 'uring'");
    assert!(server.call("version", Value::Null)["result"]["version"].is_string());
    assert_eq!(server.call("device.list", Value::Null)["result"][0]["engine"], "uring");
    let made = server.call("volume.create", json!({ "name": "w", "size": 1 }));
    assert_eq!(made["result"]["size"], 4 << 20);
    let grown = server.call("volume.resize", json!({ "name": "w", "size": 8 << 20 }));
    assert_eq!(grown["result"]["size"], 8 << 20);
    assert_eq!(server.call("volume.list", Value::Null)["result"].as_array().unwrap().len(), 3);
    let user = server.connect("w");
    assert_eq!(server.call("volume.delete", json!({ "name": "w" }))["error"]["code"], -32000);
    drop(user);
    assert_eq!(server.call("nonsense", Value::Null)["error"]["code"], -32601);
    assert_eq!(server.call("volume.delete", json!({ "nam": 1 }))["error"]["code"], -32602);
    assert_eq!(server.call("fault.power_cut", json!({ "seed": 1 }))["error"]["code"], -32000);
    assert_eq!(server.line("{").unwrap()["error"]["code"], -32700);
    assert_eq!(server.line("[]").unwrap()["error"]["code"], -32600);
    assert!(server.call("stats", Value::Null)["result"]["cores"].is_array());
    assert_eq!(server.call("stop", Value::Null)["result"], Value::Null);
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_second_blockd_is_refused() {
    let server = Server::start("engine = 'uring'");
    let second = Command::new(env!("CARGO_BIN_EXE_blockd"))
        .arg("--config")
        .arg(server.path("blockd.toml"))
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another blockd"));
}
