//! The control socket of a mount: `cfs umount` asks the process of the mount to end it, and hears how the
//! last sync went.
//!
//! It lies in `/run/claudefs/mounts` (or `$CFS_RUNTIME_DIR/mounts`) and is called after the minor number of
//! the mount's device, which is also the number of its FUSE connection. One line each way:
//! `unmount` or `force`; then `ok`, `busy`, or `failed WHY`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest line of this protocol in bytes; a longer one is cut, and then not understood.
const LINE_BYTES_MAX: u64 = 4096;
/// A peer that says nothing for this long is sent away.
const PEER_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// In order: refused while files are open.
    Unmount,
    /// At once: what was not sent yet is lost.
    Force,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Busy,
    Failed(String),
}

/// Where runtime files are: `CFS_RUNTIME_DIR`, else `/run/claudefs`.
pub fn runtime_dir() -> PathBuf {
    match std::env::var_os("CFS_RUNTIME_DIR") {
        Some(path) if !path.is_empty() => path.into(),
        Some(_) | None => "/run/claudefs".into(),
    }
}

/// The socket of the mount with this device (`major:minor`).
pub fn path(runtime_dir: &Path, device: &str) -> PathBuf {
    let minor = device.rsplit(':').next().unwrap_or(device);
    runtime_dir.join("mounts").join(format!("{minor}.sock"))
}

/// Binds the socket. One of an earlier mount with the same number is replaced: the number is ours now.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    let owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner)?;
    Ok(listener)
}

/// Answers everyone who asks, one after the other, until the listener fails.
pub fn serve(listener: &UnixListener, answer: impl Fn(Ask) -> Answer) {
    for stream in listener.incoming() {
        let done = stream.and_then(|stream| talk(stream, &answer));
        if let Err(error) = done {
            tracing::debug!(%error, "control socket");
        }
    }
}

fn talk(mut stream: UnixStream, answer: impl Fn(Ask) -> Answer) -> io::Result<()> {
    stream.set_read_timeout(Some(PEER_MAX))?;
    stream.set_write_timeout(Some(PEER_MAX))?;
    let answer = match line(&stream)?.as_str() {
        "unmount" => answer(Ask::Unmount),
        "force" => answer(Ask::Force),
        // Someone looks whether the mount lives.
        "" => return Ok(()),
        other => Answer::Failed(format!("unknown request `{}`", other.escape_debug())),
    };
    let text = match answer {
        Answer::Done => "ok".into(),
        Answer::Busy => "busy".into(),
        Answer::Failed(why) => format!("failed {}", why.replace('\n', " ")),
    };
    writeln!(stream, "{text}")
}

/// Asks the process of a mount. `within` bounds the whole exchange.
pub fn ask(path: &Path, ask: Ask, within: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(within))?;
    stream.set_read_timeout(Some(within))?;
    let word = match ask {
        Ask::Unmount => "unmount",
        Ask::Force => "force",
    };
    writeln!(stream, "{word}")?;
    match line(&stream)?.as_str() {
        "ok" => Ok(Answer::Done),
        "busy" => Ok(Answer::Busy),
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        other => Ok(Answer::Failed(other.strip_prefix("failed ").unwrap_or(other).to_owned())),
    }
}

/// Returns when everyone who asked before has his answer (or after a while): questions are answered in
/// turn, so an empty one is the last of them.
pub fn drain(path: &Path) {
    let wait = || -> io::Result<()> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PEER_MAX))?;
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    };
    if let Err(error) = wait() {
        tracing::debug!(%error, "control socket at the end");
    }
}

fn line(stream: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn questions_are_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path(), "0:57");
        assert!(path.ends_with("mounts/57.sock"));
        let listener = bind(&path).unwrap();
        std::thread::spawn(move || {
            serve(&listener, |ask| match ask {
                Ask::Unmount => Answer::Busy,
                Ask::Force => Answer::Failed("no\nway".into()),
            });
        });
        assert_eq!(ask(&path, Ask::Unmount, LONG).unwrap(), Answer::Busy);
        assert_eq!(ask(&path, Ask::Force, LONG).unwrap(), Answer::Failed("no way".into()));
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"\xffrubbish\n").unwrap();
        let mut answer = String::new();
        // Bytes that are no text end the connection; the next question is answered.
        let _ = stream.read_to_string(&mut answer);
        assert_eq!(ask(&path, Ask::Unmount, LONG).unwrap(), Answer::Busy);
    }

    #[test]
    fn a_socket_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path(), "0:9");
        drop(bind(&path).unwrap());
        assert!(ask(&path, Ask::Unmount, LONG).is_err());
        drop(bind(&path).unwrap());
    }
}
