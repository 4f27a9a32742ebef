//! One blocking connection, over a Unix socket or TLS.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::{ClientConnection, StreamOwned};

use crate::frame::{self, FrameError, Kind};
use crate::message::{Event, Request, Response};

/// Small replies come with one system call; larger reads go around this buffer.
const READ_BUFFER_BYTES: usize = 16 << 10;

pub(crate) struct Connection {
    /// Key of its [`Closer`].
    pub(super) id: u64,
    /// The session in which it greeted.
    pub(super) generation: u64,
    stream: BufReader<Stream>,
    timeout: Duration,
}

pub(crate) enum Stream {
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Ends a connection from another thread.
pub(super) enum Closer {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Closer {
    pub(super) fn close(&self) {
        // An error means that it is closed already.
        let _ = match self {
            Closer::Unix(stream) => stream.shutdown(Shutdown::Both),
            Closer::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Connection {
    pub(crate) fn new(stream: Stream, id: u64) -> Connection {
        let stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
        Connection { id, generation: 0, stream, timeout: Duration::ZERO }
    }

    pub(super) fn closer(&self) -> io::Result<Closer> {
        match self.stream.get_ref() {
            Stream::Unix(stream) => stream.try_clone().map(Closer::Unix),
            Stream::Tls(stream) => stream.sock.try_clone().map(Closer::Tcp),
        }
    }

    /// Writes a request and reads its reply. After an error the connection is useless.
    pub(crate) fn exchange(
        &mut self,
        request: &Request,
        data: &[&[u8]],
        until: Instant,
    ) -> Result<(Response, Bytes), FrameError> {
        self.set_timeout(until.saturating_duration_since(Instant::now()))?;
        frame::write(self.stream.get_mut(), Kind::Request, request, data)?;
        let frame = frame::read(&mut self.stream)?;
        Ok((frame.message(Kind::Reply)?, frame.data))
    }

    /// The next event of a subscription, with at most `silence_max` between two signs of life.
    pub(super) fn next_event(&mut self, silence_max: Duration) -> Result<Event, FrameError> {
        self.set_timeout(silence_max)?;
        loop {
            let frame = frame::read(&mut self.stream)?;
            if frame.kind != Kind::Alive {
                return frame.message(Kind::Event);
            }
        }
    }

    /// Sets the socket's timeouts unless they are about right: two system calls less per request.
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = timeout.max(Duration::from_millis(1));
        if timeout <= self.timeout && self.timeout - timeout < Duration::from_millis(200) {
            return Ok(());
        }
        self.timeout = timeout;
        match self.stream.get_ref() {
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Stream::Tls(stream) => {
                stream.sock.set_read_timeout(Some(timeout))?;
                stream.sock.set_write_timeout(Some(timeout))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write_vectored(slices),
            Stream::Tls(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}
