//! The admin door: JSON-RPC 2.0 over a Unix socket, one message a line, as `rpc.py` users know it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::VolumeConfig;
use crate::daemon::Daemon;
use crate::engine::FaultSettings;
use crate::error::Error;
use crate::nvmet::{Export, Host, Target};
use crate::volume::Volume;

/// Longest request line in bytes; a longer one ends its connection.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Connections at once; a further one is closed at once.
const CONNECTIONS_MAX: usize = 16;

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const FAILED: i32 = -32000;

/// Called by the method `stop`.
pub type Stop = Arc<dyn Fn() + Send + Sync>;

/// Serves connections until the process ends.
pub fn serve(listener: &UnixListener, daemon: &Arc<Daemon>, stop: &Stop) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, most likely; they come back when a connection ends.
            std::thread::sleep(std::time::Duration::from_millis(100));
            continue;
        };
        if open.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (daemon, stop, count) = (Arc::clone(daemon), Arc::clone(stop), Arc::clone(&open));
        let spawned = std::thread::Builder::new().name("admin".to_owned()).spawn(move || {
            if let Err(error) = converse(stream, &daemon, &stop) {
                tracing::debug!(%error, "an admin connection ended");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

fn converse(stream: UnixStream, daemon: &Daemon, stop: &Stop) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let too_long = line.last() != Some(&b'\n') && line.len() as u64 == LINE_BYTES_MAX;
        if let Some(reply) = handle(&line, daemon, stop) {
            writer.write_all(format!("{reply}\n").as_bytes())?;
        }
        if too_long {
            return Ok(());
        }
    }
}

#[derive(Deserialize)]
struct Call {
    jsonrpc: String,
    method: String,
    #[serde(default)]
    params: Value,
    id: Option<Value>,
}

struct Failure {
    code: i32,
    message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { code: FAILED, message: error.to_string() }
    }
}

/// Answers one line; a notification (no id) has no answer.
#[must_use]
pub fn handle(line: &[u8], daemon: &Daemon, stop: &Stop) -> Option<Value> {
    let refuse = |id: Value, failure: Failure| {
        let error = json!({ "code": failure.code, "message": failure.message });
        Some(json!({ "jsonrpc": "2.0", "id": id, "error": error }))
    };
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            let message = format!("not JSON: {error}");
            return refuse(Value::Null, Failure { code: PARSE_ERROR, message });
        }
    };
    let call = match serde_json::from_value::<Call>(value) {
        Ok(call) if call.jsonrpc == "2.0" => call,
        _ => {
            let message = "not a JSON-RPC 2.0 request".to_owned();
            return refuse(Value::Null, Failure { code: INVALID_REQUEST, message });
        }
    };
    let outcome = perform(&call.method, call.params, daemon, stop);
    let id = call.id?;
    match outcome {
        Ok(result) => Some(json!({ "jsonrpc": "2.0", "id": id, "result": result })),
        Err(failure) => refuse(id, failure),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DevicePath {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resize {
    name: String,
    size: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seeded {
    seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unexport {
    volume: String,
    nqn: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hosts {
    nqn: String,
    #[serde(default)]
    any_host: bool,
    #[serde(default, rename = "host")]
    hosts: Vec<Host>,
}

#[derive(Serialize)]
struct VolumeStatus<'a> {
    name: &'a str,
    size: u64,
    thin: bool,
    allocated_extents: u64,
    users: u32,
    poisoned: bool,
}

fn describe(volume: &Volume) -> Value {
    json!(VolumeStatus {
        name: &volume.name,
        size: volume.bytes,
        thin: volume.thin,
        allocated_extents: volume.allocated(),
        users: volume.users(),
        poisoned: volume.is_poisoned(),
    })
}

fn perform(method: &str, given: Value, daemon: &Daemon, stop: &Stop) -> Result<Value, Failure> {
    match method {
        "version" => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
        "device.list" => Ok(devices(daemon)),
        "device.reset" => {
            let DevicePath { path } = params(given)?;
            daemon.reset(&path)?;
            Ok(Value::Null)
        }
        "pool.status" => {
            Ok(daemon.pools().iter().map(|p| json!(p.status())).collect::<Vec<_>>().into())
        }
        "volume.list" => {
            let volumes = daemon.pools().iter().flat_map(|p| p.volumes());
            Ok(volumes.map(|v| describe(&v)).collect::<Vec<_>>().into())
        }
        "volume.create" => Ok(describe(&*daemon.create(&params::<VolumeConfig>(given)?)?)),
        "volume.delete" => {
            let Named { name } = params(given)?;
            daemon.find(&name)?.delete(&name)?;
            Ok(Value::Null)
        }
        "volume.resize" => {
            let Resize { name, size } = params(given)?;
            Ok(describe(&*daemon.find(&name)?.resize(&name, size)?))
        }
        "nvmet.list" => Ok(target(daemon)?.registry.describe()),
        "nvmet.export" => Ok(json!(target(daemon)?.export(params::<Export>(given)?, daemon)?)),
        "nvmet.unexport" => {
            let Unexport { volume, nqn } = params(given)?;
            let (removed, returns) = target(daemon)?.unexport(&volume, nqn.as_deref())?;
            Ok(json!({ "removed": removed, "until_restart": returns }))
        }
        "nvmet.hosts" => {
            let Hosts { nqn, any_host, hosts } = params(given)?;
            target(daemon)?.hosts(&nqn, &hosts, any_host)?;
            Ok(Value::Null)
        }
        "stats" => Ok(stats(daemon)),
        "fault.set" => {
            let settings: FaultSettings = params(given)?;
            let mut any = false;
            for pool in daemon.pools() {
                if let Some(fault) = pool.device().fault() {
                    fault.set(settings.clone());
                    any = true;
                }
            }
            if any { Ok(Value::Null) } else { Err(no_fault()) }
        }
        "fault.power_cut" => power_cut(params::<Seeded>(given)?.seed, daemon),
        "stop" => {
            stop();
            Ok(Value::Null)
        }
        _ => Err(Failure { code: METHOD_NOT_FOUND, message: format!("no method {method:?}") }),
    }
}

fn params<T: DeserializeOwned>(given: Value) -> Result<T, Failure> {
    serde_json::from_value(given)
        .map_err(|e| Failure { code: INVALID_PARAMS, message: format!("params: {e}") })
}

fn target(daemon: &Daemon) -> Result<&Target, Failure> {
    let message = "there is no NVMe/TCP target: add [nvmet] to the configuration".to_owned();
    daemon.nvmet().ok_or(Failure { code: FAILED, message })
}

fn no_fault() -> Failure {
    let message = "no device has engine \"fault\"".to_owned();
    Failure { code: FAILED, message }
}

fn devices(daemon: &Daemon) -> Value {
    let list = daemon.pools().iter().map(|pool| {
        let status = pool.status();
        json!({
            "path": status.path,
            "engine": status.engine,
            "bytes": pool.device().bytes(),
            "fault": pool.device().fault().map(|f| json!(f.settings())),
        })
    });
    list.collect::<Vec<_>>().into()
}

fn stats(daemon: &Daemon) -> Value {
    let cores = daemon.stats().iter().map(|s| {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "reads": get(&s.reads),
            "read_bytes": get(&s.read_bytes),
            "writes": get(&s.writes),
            "write_bytes": get(&s.write_bytes),
            "flushes": get(&s.flushes),
            "deallocates": get(&s.deallocates),
            "errors": get(&s.errors),
            "sleeps": get(&s.sleeps),
            "clients": get(&s.clients),
        })
    });
    json!({ "cores": cores.collect::<Vec<_>>() })
}

fn power_cut(seed: u64, daemon: &Daemon) -> Result<Value, Failure> {
    let faults: Vec<_> = daemon.pools().iter().filter_map(|p| p.device().fault()).collect();
    if faults.is_empty() {
        return Err(no_fault());
    }
    for fault in faults {
        fault.power_cut(seed).map_err(|e| Failure { code: FAILED, message: e.to_string() })?;
    }
    // As a machine without power: no destructor runs and nobody is told.
    std::process::abort()
}
