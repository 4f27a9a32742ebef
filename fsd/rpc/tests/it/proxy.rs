//! A Unix socket in front of another that breaks connections at a chosen byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

/// Which way the counted bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// After so many bytes that way, counted over all connections, one connection is cut; later ones live.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub way: Way,
    pub after: usize,
}

pub struct Proxy {
    pub socket: PathBuf,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

struct Shared {
    /// Bytes until the cut; `None` once it was made.
    left: Mutex<Option<usize>>,
    way: Way,
    stop: AtomicBool,
}

impl Proxy {
    pub fn start(server: &Path, cut: Cut) -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("proxy.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared {
            left: Mutex::new(Some(cut.after)),
            way: cut.way,
            stop: AtomicBool::new(false),
        });
        let (server, accepted) = (server.to_owned(), shared.clone());
        let accepting = thread::spawn(move || {
            for client in listener.incoming() {
                if accepted.stop.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&server)) else {
                    continue;
                };
                relay(&accepted, Way::ToServer, &client, &server);
                relay(&accepted, Way::ToClient, &server, &client);
            }
        });
        Proxy { socket, shared, accepting: Some(accepting), _dir: dir }
    }

    /// Whether the cut was reached.
    pub fn has_cut(&self) -> bool {
        self.shared.left.lock().is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Wakes the accepting thread.
        let _ = UnixStream::connect(&self.socket);
        self.accepting.take().unwrap().join().unwrap();
    }
}

fn relay(shared: &Arc<Shared>, way: Way, from: &UnixStream, to: &UnixStream) {
    let shared = shared.clone();
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let pass = if way == shared.way { shared.pass(len) } else { len };
            let _ = to.write_all(&buffer[..pass]);
            if pass < len {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}

impl Shared {
    /// How many of these bytes go through. Fewer than all: now is the cut.
    fn pass(&self, len: usize) -> usize {
        let mut left = self.left.lock();
        match *left {
            Some(bytes) if bytes < len => {
                *left = None;
                bytes
            }
            Some(bytes) => {
                *left = Some(bytes - len);
                len
            }
            None => len,
        }
    }
}
