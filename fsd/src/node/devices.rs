//! How blockd's devices are: asked on its admin socket every few seconds, for health.

use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use fsd_rpc::message::Device;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Node;
use crate::config::Blockd;

/// From one question to the next.
const PERIOD: Duration = Duration::from_secs(5);
/// A device that does not say how it is keeps the answer waiting for 5 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Longest answer: a few hundred bytes a device. A longer one is cut, and then it is none.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
struct Answer {
    result: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    path: String,
    state: String,
    facts: Facts,
}

#[derive(Deserialize)]
struct Facts {
    health: Said,
}

#[derive(Deserialize)]
struct Said {
    state: String,
    #[serde(default)]
    reason: String,
}

/// Where the block daemon of this node answers administrators; nothing if another has started it, or if its own
/// configuration does not say.
fn admin_socket(blockd: &Blockd) -> Option<PathBuf> {
    if let Some(socket) = blockd.admin_socket() {
        return Some(socket);
    }
    let text = std::fs::read_to_string(blockd.config.as_ref()?).ok()?;
    let table: toml::Table = text.parse().ok()?;
    table.get("admin_socket")?.as_str().map(PathBuf::from)
}

/// Asks until the node is gone.
pub(super) async fn watch(node: Weak<Node>) {
    let socket = node.upgrade().and_then(|node| admin_socket(&node.config.blockd));
    let Some(socket) = socket else { return };
    loop {
        let troubled = match timeout(ANSWER_WITHIN, ask(&socket)).await {
            Ok(Ok(devices)) => devices,
            // Whether it runs at all is looked at elsewhere.
            Ok(Err(error)) => {
                tracing::debug!(%error, "blockd was not asked for its devices");
                Vec::new()
            }
            Err(_) => vec![Device {
                path: socket.display().to_string(),
                why: "blockd does not say how its devices are".to_owned(),
                has_failed: false,
            }],
        };
        let Some(node) = node.upgrade() else { return };
        *node.devices.lock() = troubled;
        drop(node);
        tokio::time::sleep(PERIOD).await;
    }
}

/// The devices that are not well.
async fn ask(socket: &std::path::Path) -> std::io::Result<Vec<Device>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"device.list\"}\n").await?;
    let mut line = Vec::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    let answer: Answer = serde_json::from_slice(&line).map_err(std::io::Error::other)?;
    Ok(answer.result.into_iter().filter_map(trouble).collect())
}

fn trouble(item: Item) -> Option<Device> {
    let Said { state: health, reason } = item.facts.health;
    let told = |of: &str| if reason.is_empty() { of.to_owned() } else { format!("{of}: {reason}") };
    let (why, has_failed) = match (item.state.as_str(), health.as_str()) {
        ("ok", "ok") => return None,
        ("ok", other) => (told(other), false),
        ("failed", _) => (told("failed"), true),
        ("poisoned", _) => ("a flush failed; what it covered may be lost".to_owned(), true),
        ("metadata-failed", _) => ("its pool's metadata could not be written".to_owned(), true),
        (other, _) => (other.to_owned(), true),
    };
    Some(Device { path: item.path, why, has_failed })
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn told(answer: &'static str) -> std::io::Result<Vec<Device>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            assert!(line.contains("device.list"), "{line}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let devices = ask(&path).await;
        server.await.unwrap();
        devices
    }

    #[tokio::test]
    async fn devices_that_are_not_well() {
        let answer = concat!(
            r#"{"jsonrpc":"2.0","id":1,"result":["#,
            r#"{"path":"a","state":"ok","facts":{"engine":"uring","health":{"state":"ok"}},"fault":null},"#,
            r#"{"path":"b","state":"ok","facts":{"health":{"state":"recovering","reason":"commands are late"}}},"#,
            r#"{"path":"c","state":"failed","facts":{"health":{"state":"failed","reason":"gone"}}},"#,
            r#"{"path":"d","state":"poisoned","facts":{"health":{"state":"ok"}}}]}"#,
            "\n"
        );
        let devices = told(answer).await.unwrap();
        let seen: Vec<_> =
            devices.iter().map(|d| (d.path.as_str(), d.why.as_str(), d.has_failed)).collect();
        assert_eq!(
            seen,
            [
                ("b", "recovering: commands are late", false),
                ("c", "failed: gone", true),
                ("d", "a flush failed; what it covered may be lost", true),
            ]
        );
        assert!(told("{\"error\":{}}\n").await.is_err());
        assert!(told("").await.is_err());
    }

    #[test]
    fn the_socket_is_where_the_configuration_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("blockd.toml");
        std::fs::write(&file, "admin_socket = \"/run/x\"\ncores = 2\n").unwrap();
        let mut blockd = Blockd { socket: "/run/s".into(), config: Some(file), pool: None };
        assert_eq!(admin_socket(&blockd), Some("/run/x".into()));
        blockd.config = Some(dir.path().join("none"));
        assert_eq!(admin_socket(&blockd), None);
    }
}
