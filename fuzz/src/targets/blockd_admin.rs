//! The admin door of blockd: a line is answered, or it was a notification; an answer is JSON-RPC.

use std::cell::OnceCell;
use std::sync::Arc;

use blockd::admin::{Stop, handle};
use blockd::config::Config;
use blockd::daemon::Daemon;

pub const DICTIONARY: &[&[u8]] = &[
    b"\"method\":\"volume.create\"",
    b"\"method\":\"volume.resize\"",
    b"\"method\":\"volume.delete\"",
    b"\"method\":\"fault.set\"",
    b"\"method\":\"stats\"",
    b"\"size\":18446744073709551615",
    b"\"size\":1125899906842624",
    b"\"thin\":true",
    b"null",
    b"[[[[[[[[",
    b"1e999",
    b"\\ud800",
];

const CONFIG: &str = "ipc_socket = '/nowhere'\nadmin_socket = '/nowhere'\n\
    [[device]]\npath = 'm'\nengine = 'mem'\nsize = 33554432\ncreate = true\n\
    [[volume]]\nname = 'v'\nsize = 4194304\n";

thread_local! {
    static DAEMON: OnceCell<Daemon> = const { OnceCell::new() };
}

pub fn seeds() -> Vec<Vec<u8>> {
    let call = |method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#).into_bytes()
    };
    vec![
        call("version", "null"),
        call("device.list", "{}"),
        call("pool.status", "{}"),
        call("volume.list", "{}"),
        call("volume.create", r#"{"name":"w","size":4194304,"thin":true}"#),
        call("volume.resize", r#"{"name":"w","size":8388608}"#),
        call("volume.delete", r#"{"name":"w"}"#),
        call("stats", "{}"),
        call("fault.set", r#"{"seed":3,"read_fail_ppm":1}"#),
        call("stop", "{}"),
        br#"{"jsonrpc":"2.0","method":"stats"}"#.to_vec(),
    ]
}

pub fn target(bytes: &[u8]) {
    // The one method that ends the process, as it must.
    if bytes.windows(9).any(|part| part == b"power_cut") {
        return;
    }
    let stop: Stop = Arc::new(|| {});
    DAEMON.with(|daemon| {
        let daemon = daemon.get_or_init(|| Daemon::start(&Config::parse(CONFIG).unwrap()).unwrap());
        let Some(reply) = handle(bytes, daemon, &stop) else { return };
        assert_eq!(reply["jsonrpc"], "2.0");
        assert!(reply.get("id").is_some());
        assert_ne!(reply.get("result").is_some(), reply.get("error").is_some(), "{reply}");
        assert!(!reply.to_string().contains('\n'), "an answer is one line");
        // Nothing that was asked for stays in the way of the next input.
        let pool = &daemon.pools()[0];
        let made: Vec<String> = pool.volumes().iter().map(|volume| volume.name.clone()).collect();
        made.iter().for_each(|name| pool.delete(name).unwrap());
        pool.create("v", 4 << 20, false).unwrap();
    });
}
