//! Where commands of this host find its node without being told: a link in the runtime directory.
//!
//! A node whose socket lies elsewhere, as that of config/dev.toml, is linked to from there while it runs.

use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Name of the socket, or of the link to it, in the runtime directory.
pub const NAME: &str = "fsd.sock";

/// The link, removed when this is dropped.
#[derive(Debug)]
pub struct Advertised {
    link: PathBuf,
    socket: PathBuf,
}

/// Makes the link `name`. Nothing happens where the socket lies there itself, or another one is served there.
pub fn advertise(runtime_dir: &Path, name: &str, socket: &Path) -> io::Result<Option<Advertised>> {
    let link = runtime_dir.join(name);
    if link == socket {
        return Ok(None);
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(runtime_dir)?;
    match std::fs::symlink_metadata(&link) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if found.is_symlink() && UnixStream::connect(&link).is_err() => {
            std::fs::remove_file(&link)?;
        }
        // A node's own socket, or a link to one that lives.
        Ok(_) => return Ok(None),
    }
    symlink(socket, &link)?;
    Ok(Some(Advertised { link, socket: socket.to_owned() }))
}

impl Drop for Advertised {
    fn drop(&mut self) {
        if std::fs::read_link(&self.link).is_ok_and(|target| target == self.socket) {
            // A link that stays behind leads nowhere and is replaced by the next node.
            let _ = std::fs::remove_file(&self.link);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_first_living_node_is_advertised() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = directory.path().join("run");
        let (a, b) = (directory.path().join("a.sock"), directory.path().join("b.sock"));
        let first = UnixListener::bind(&a).unwrap();
        let _second = UnixListener::bind(&b).unwrap();
        let link = advertise(&runtime, NAME, &a).unwrap().unwrap();
        UnixStream::connect(runtime.join(NAME)).unwrap();
        assert!(advertise(&runtime, NAME, &b).unwrap().is_none(), "the first one lives");
        drop(first);
        let other = advertise(&runtime, NAME, &b).unwrap().unwrap();
        drop(link);
        assert_eq!(
            std::fs::read_link(runtime.join(NAME)).unwrap(),
            b,
            "not the first one's to remove"
        );
        drop(other);
        assert!(!runtime.join(NAME).exists());
    }

    #[test]
    fn a_socket_that_lies_there_needs_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join(NAME);
        assert!(advertise(directory.path(), NAME, &socket).unwrap().is_none());
        let _served = UnixListener::bind(&socket).unwrap();
        let elsewhere = directory.path().join("x");
        assert!(advertise(directory.path(), NAME, &elsewhere).unwrap().is_none());
        assert!(!std::fs::symlink_metadata(&socket).unwrap().is_symlink());
    }
}
