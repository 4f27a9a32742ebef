//! The admin door: JSON-RPC 2.0 over a Unix socket, one message a line, as `rpc.py` users know it.
//!
//! An error carries a word in `data.code` that programs branch on ([`Error::code`]); docs/nvme.md lists the methods.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::error::Error;

mod device;
mod export;
mod fault;
mod stats;
mod volume;

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

/// An answer that is an error.
struct Failure {
    code: i32,
    message: String,
    /// As [`Error::code`].
    word: &'static str,
}

impl Failure {
    fn new(word: &'static str, message: impl Into<String>) -> Failure {
        Failure { code: FAILED, message: message.into(), word }
    }

    fn protocol(code: i32, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), word: "PROTOCOL" }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(error.code(), error.to_string())
    }
}

type Answer = Result<Value, Failure>;

/// Answers one line; a notification (no id) has no answer.
#[must_use]
pub fn handle(line: &[u8], daemon: &Daemon, stop: &Stop) -> Option<Value> {
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            let failure = Failure::protocol(PARSE_ERROR, format!("not JSON: {error}"));
            return Some(message(&Value::Null, Err(failure)));
        }
    };
    let call = match serde_json::from_value::<Call>(value) {
        Ok(call) if call.jsonrpc == "2.0" => call,
        _ => {
            let failure = Failure::protocol(INVALID_REQUEST, "not a JSON-RPC 2.0 request");
            return Some(message(&Value::Null, Err(failure)));
        }
    };
    let answer = perform(&call.method, call.params, daemon, stop);
    Some(message(&call.id?, answer))
}

fn message(id: &Value, answer: Answer) -> Value {
    match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(Failure { code, message, word }) => {
            let error = json!({ "code": code, "message": message, "data": { "code": word } });
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
    }
}

/// Performs a method that needs no daemon, in this process, and gives the answer as the socket would.
#[must_use]
pub fn call(method: &str, params: &str) -> Value {
    let given = serde_json::from_str(params)
        .map_err(|e| Failure::protocol(PARSE_ERROR, format!("params are not JSON: {e}")));
    let answer = given.and_then(|given| match method {
        "device.identify" => device::identify(&self::params(given)?, &[]),
        "device.format" => device::format(&self::params(given)?, &[]),
        "device.wipe" => device::wipe(&self::params(given)?, &[]),
        "bench" => Ok(json!(crate::bench::run(&self::params(given)?)?)),
        _ => {
            let what = format!("{method:?} is no method that works without a daemon");
            Err(Failure::protocol(METHOD_NOT_FOUND, what))
        }
    });
    message(&json!(1), answer)
}

fn perform(method: &str, given: Value, daemon: &Daemon, stop: &Stop) -> Answer {
    match method {
        "version" => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
        "info" => Ok(info(daemon)),
        "device.list" => Ok(device::list(daemon)),
        "device.identify" => device::identify(&params(given)?, daemon.pools()),
        "device.format" => device::format(&params(given)?, daemon.pools()),
        "device.wipe" => device::wipe(&params(given)?, daemon.pools()),
        "device.reset" => device::reset(&params(given)?, daemon),
        "pool.status" => {
            Ok(daemon.pools().iter().map(|p| json!(p.status())).collect::<Vec<_>>().into())
        }
        "volume.list" => Ok(volume::list(daemon)),
        "volume.create" => volume::create(&params(given)?, daemon),
        "volume.delete" => volume::delete(&params(given)?, daemon),
        "volume.resize" => volume::resize(&params(given)?, daemon),
        "nvmet.list" => Ok(export::target(daemon)?.registry.describe()),
        "nvmet.export" => export::export(params(given)?, daemon),
        "nvmet.unexport" => export::unexport(&params(given)?, daemon),
        "nvmet.hosts" => export::hosts(&params(given)?, daemon),
        "stats" => Ok(stats::stats(daemon)),
        "fault.set" => fault::set(&params(given)?, daemon),
        "fault.power_cut" => fault::power_cut(&params(given)?, daemon),
        "stop" => {
            stop();
            Ok(Value::Null)
        }
        _ => Err(Failure::protocol(METHOD_NOT_FOUND, format!("no method {method:?}"))),
    }
}

fn params<T: DeserializeOwned>(given: Value) -> Result<T, Failure> {
    serde_json::from_value(given).map_err(|e| Failure {
        code: INVALID_PARAMS,
        message: format!("params: {e}"),
        word: "INVALID",
    })
}

fn info(daemon: &Daemon) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "ipc_socket": daemon.ipc_socket(),
        "cores": daemon.stats().len(),
        "nvmet": daemon.nvmet().is_some(),
    })
}
