//! A connection on its socket, as a client of a reactor: the only file of the target that moves bytes.
//!
//! The reactor polls; a socket that had nothing for a while is looked at less often, and when the reactor sleeps it
//! waits for the socket and for the event by which other threads wake the connection; through an epoll descriptor while it waits for
//! something else than data.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{RecvFlags, sockopt};

use super::connection::{Connection, Place};
use super::controller::Link;
use super::registry::Registry;
use crate::engine::socket;
use crate::reactor::{Client, Request};

/// Received at once, unless it is data that goes to its buffer directly.
const RECEIVE_BYTES: usize = 64 << 10;
/// Data longer than this is received into its buffer; shorter is copied, and shares its call with what follows.
const DIRECT_BYTES_MIN: usize = 16 << 10;
/// A quiet socket is passed over this many rounds at most.
const SKIP_MAX: u32 = 64;
/// Receives of one round: a host that sends faster than it is understood does not keep the others of its reactor waiting.
const RECEIVES_MAX: u32 = 16;
/// A host that says nothing for so long is asked by TCP whether it is there, so often, that many times. It finds hosts without
/// a keep-alive time of NVMe that have lost their power or their network.
const TCP_IDLE: Duration = Duration::from_secs(60);
const TCP_INTERVAL: Duration = Duration::from_secs(10);
const TCP_PROBES: u32 = 6;

/// By it other threads end the sleep of who serves the connection.
struct Bell {
    event: OwnedFd,
    /// Set after the event was: what is not said here is found at the next sleep, which does not last then.
    is_rung: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        self.is_rung.store(true, Ordering::Release);
    }

    /// A call only if it was rung.
    fn silence(&self) {
        if self.is_rung.swap(false, Ordering::AcqRel) {
            // Empties the counter; that it is empty already is no error.
            let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        }
    }
}

/// See the module.
pub struct Socket {
    // Dropped first: the queue's number is free before the host sees the end of the stream.
    connection: Connection,
    stream: TcpStream,
    wake: Arc<Bell>,
    poller: OwnedFd,
    interest: EventFlags,
    input: Box<[u8]>,
    /// Rounds without data, and rounds to pass over.
    quiet: u32,
    skip: u32,
    /// The last receive took all there was.
    drained: bool,
    /// Receives of this round.
    receives: u32,
    blocked: bool,
    shut: bool,
    gone: bool,
}

impl Socket {
    pub fn new(stream: TcpStream, registry: &Arc<Registry>, only: bool) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, TCP_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, TCP_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&stream, TCP_PROBES)?;
        let place = Place { local: stream.local_addr()?, discovery_only: only };
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let wake = Arc::new(Bell { event, is_rung: AtomicBool::new(false) });
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poller, &stream, EventData::new_u64(0), EventFlags::IN)?;
        let bell = Arc::clone(&wake);
        let link = Link::new(move || bell.ring());
        let connection = Connection::new(Arc::clone(registry), link, place);
        Ok(Socket {
            stream,
            wake,
            poller,
            interest: EventFlags::IN,
            connection,
            input: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            quiet: 0,
            skip: 0,
            drained: false,
            receives: 0,
            blocked: false,
            shut: false,
            gone: false,
        })
    }

    fn receive(&mut self) {
        if self.connection.is_stuffed() {
            self.drained = true;
            return;
        }
        let direct = self.connection.direct().filter(|(_, _, len)| *len >= DIRECT_BYTES_MIN);
        let (received, wanted) = match direct {
            Some((memory, at, len)) => {
                let n = socket::receive(self.stream.as_fd(), memory, at, len);
                if let Ok(n @ 1..) = n {
                    self.connection.received_direct(n);
                }
                (n, len)
            }
            None => {
                let buffer = &mut self.input[..];
                let wanted = buffer.len();
                let n = rustix::net::recv(&self.stream, buffer, RecvFlags::DONTWAIT);
                let n = n.map(|(n, _)| n).map_err(io::Error::from);
                if let Ok(n @ 1..) = n {
                    self.connection.receive(&self.input[..n]);
                }
                (n, wanted)
            }
        };
        match received {
            Ok(0) => self.gone = true,
            Ok(n) => {
                self.quiet = 0;
                self.drained = n < wanted;
            }
            Err(error) => {
                self.drained = true;
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                        self.quiet = self.quiet.saturating_add(1);
                    }
                    _ => self.gone = true,
                }
            }
        }
    }

    fn send(&mut self) {
        if self.connection.is_ended() && !self.connection.lingers() {
            // Closed from here or from there: what is left to say interests nobody.
            self.gone = true;
            return;
        }
        while !self.connection.outbox().is_empty() {
            let pieces = self.connection.outbox().pieces();
            match socket::send(self.stream.as_fd(), &pieces) {
                Ok(n) => {
                    self.blocked = false;
                    self.connection.sent(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        if self.connection.is_ended() && !self.shut {
            // A close with bytes of the host unread would reset the connection, and the host lose the reason.
            self.shut = true;
            self.gone |= self.stream.shutdown(std::net::Shutdown::Write).is_err();
        }
    }
}

impl Client for Socket {
    fn next(&mut self) -> Option<Request> {
        loop {
            if self.gone {
                return None;
            }
            if let Some(request) = self.connection.next_request() {
                return Some(request);
            }
            if self.drained || self.skip > 0 || self.receives >= RECEIVES_MAX {
                self.connection.poll();
                if let Some(request) = self.connection.next_request() {
                    return Some(request);
                }
                self.skip = match self.skip {
                    0 => (self.quiet / 4).min(SKIP_MAX),
                    left => left - 1,
                };
                self.drained = false;
                self.receives = 0;
                return None;
            }
            self.receives += 1;
            self.receive();
        }
    }

    fn complete(&mut self, tag: u64, errno: i32) {
        self.connection.completed(tag, errno);
        self.skip = 0;
        // The host's next command is likely to follow soon.
        self.quiet = 0;
    }

    fn flush(&mut self) {
        if !self.gone {
            self.send();
        }
    }

    fn wait_fds(&self) -> [RawFd; 2] {
        let is_plain = self.interest == EventFlags::IN;
        let socket = if is_plain { self.stream.as_raw_fd() } else { self.poller.as_raw_fd() };
        [socket, self.wake.event.as_raw_fd()]
    }

    fn arm(&mut self) -> bool {
        let wanted =
            if self.connection.is_stuffed() { EventFlags::empty() } else { EventFlags::IN }
                | if self.blocked { EventFlags::OUT } else { EventFlags::empty() };
        if wanted != self.interest {
            let changed = epoll::modify(&self.poller, &self.stream, EventData::new_u64(0), wanted);
            self.gone |= changed.is_err();
            self.interest = wanted;
        }
        !self.connection.has_request() && !self.gone
    }

    fn disarm(&mut self, ready: [bool; 2]) {
        if ready[0] {
            self.skip = 0;
            self.quiet = 0;
        }
        self.wake.silence();
    }

    fn is_gone(&mut self, _look: bool) -> bool {
        self.gone
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.connection.registry.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::super::registry::Limits;
    use super::*;

    /// A client of the reactor and its host's end.
    fn pair() -> (Socket, TcpStream) {
        let limits = Limits { connections_max: 8, queues_max: 2, depth: 16, buffer_bytes: 4 << 20 };
        let registry = Arc::new(Registry::new(limits, None));
        registry.connections.fetch_add(1, Ordering::AcqRel);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        (Socket::new(stream, &registry, false).unwrap(), host)
    }

    #[test]
    fn a_flood_does_not_hold_the_reactor() {
        let (mut socket, mut host) = pair();
        // An ICReq of a version that is none: what follows is thrown away while the host reads why.
        let mut bytes = vec![0; 128];
        (bytes[2], bytes[4], bytes[8]) = (128, 128, 1);
        host.write_all(&bytes).unwrap();
        while !socket.connection.is_ended() {
            assert!(socket.next().is_none());
            socket.flush();
        }
        // Less at once than really, so that many receives are there before the round begins.
        socket.input = vec![0; 512].into_boxed_slice();
        let round = RECEIVES_MAX as usize * socket.input.len();
        host.write_all(&vec![1; 4 * round]).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        let mut there = vec![0; 4 * round];
        while socket.stream.peek(&mut there).unwrap_or(0) < there.len() {
            assert!(Instant::now() < end, "the flood does not arrive");
        }
        for left in (0..4).rev() {
            assert!(socket.next().is_none() && !socket.gone);
            assert_eq!(socket.stream.peek(&mut there).unwrap_or(0), left * round);
        }
    }

    #[test]
    fn a_host_that_is_silent_is_asked_for() {
        let (socket, _host) = pair();
        assert!(sockopt::socket_keepalive(&socket.stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&socket.stream).unwrap(), TCP_IDLE);
    }
}
