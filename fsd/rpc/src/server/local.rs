//! A greeted connection of this host: a thread of its own, blocking reads and writes.
//!
//! A local client waits for its reply, and every switch between threads costs as much as the request. Here
//! the thread that the kernel wakes with the request's bytes is the one that handles and answers it:
//! the same as two threads at the ends of a socket pair. By way of tokio's driver and workers a
//! round trip takes three times as long on a busy machine (`examples/echo_bench.rs`).
//!
//! The task of the connection waits for the thread. When the task is dropped at stop, the socket is shut
//! down, and a handler that waits is dropped.

use std::io::{self, BufRead, BufReader, Chain, Cursor, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::connection::{Ended, READ_BUFFER_BYTES, Step, answer};
use super::{Handler, IDLE_MAX, STALL_MAX};
use crate::frame::{self, FrameError, Kind};
use crate::message::{Event, Failure, Response};

/// Room for the stack of a handler; only what is used takes memory.
const STACK_BYTES: usize = 2 << 20;
/// Room for a chunk of the largest size each way, so that neither side waits for the other to read.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// Why the thread gave the connection back.
pub(super) enum Left {
    Over,
    /// Told off: the peer may still have to read why.
    Lingering(UnixStream),
    /// The connection is turned around.
    Subscribed(UnixStream, mpsc::Receiver<Event>),
}

/// Serves the requests on a thread. `buffered` was read from the stream already.
pub(super) async fn serve<H: Handler>(
    ended: Arc<Ended<H>>,
    stream: UnixStream,
    buffered: Vec<u8>,
) -> io::Result<Left> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL_MAX))?;
    stream.set_write_timeout(Some(STALL_MAX))?;
    enlarge(&stream);
    let mut guard = Guard { stream: Some(stream.try_clone()?), cut: watch::Sender::new(false) };
    let (done, left) = oneshot::channel();
    let local = Local {
        reader: BufReader::with_capacity(
            READ_BUFFER_BYTES,
            Cursor::new(buffered).chain(Timed { stream, until: None }),
        ),
        runtime: Handle::current(),
        cut: guard.cut.subscribe(),
    };
    let mut stop = ended.shared.stop.clone();
    let run = move || {
        let left = local.run(&ended);
        // Before the task goes on: when the server has stopped, nothing uses the handler any more.
        drop(ended);
        // The receiver is gone only when the task was dropped.
        let _ = done.send(left);
    };
    thread::Builder::new().name("fsd-local".into()).stack_size(STACK_BYTES).spawn(run)?;
    tokio::pin!(left);
    let stopped = async {
        // An error means that the server is gone altogether.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let left = tokio::select! {
        left = &mut left => left,
        () = stopped => {
            // No further request; the one under way is answered.
            if let Some(stream) = &guard.stream {
                stream.shutdown(Shutdown::Read)?;
            }
            left.await
        }
    };
    guard.stream = None;
    Ok(left.unwrap_or(Left::Over))
}

/// More room in the socket, where the system allows it: a matter of speed only.
fn enlarge(stream: &UnixStream) {
    use rustix::net::sockopt;
    if sockopt::set_socket_send_buffer_size_force(stream, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(stream, SOCKET_BUFFER_BYTES);
    }
}

/// Ends the thread when the task is dropped before it.
struct Guard {
    stream: Option<UnixStream>,
    cut: watch::Sender<bool>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.cut.send_replace(true);
        if let Some(stream) = &self.stream {
            // An error means that it is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

struct Local {
    reader: BufReader<Chain<Cursor<Vec<u8>>, Timed>>,
    runtime: Handle,
    /// The task is gone: break off.
    cut: watch::Receiver<bool>,
}

impl Local {
    fn run<H: Handler>(mut self, ended: &Ended<H>) -> Left {
        match self.requests(ended) {
            Ok(Some(events)) => Left::Subscribed(self.into_stream(), events),
            Ok(None) => Left::Over,
            Err(error) => {
                tracing::debug!(peer = ?ended.conn.peer, %error, "connection ended");
                if matches!(error, FrameError::Io(_)) {
                    return Left::Over;
                }
                ended.refused(&error);
                let failure = Failure::Protocol(error.to_string());
                let _ = self.reply(&Response::Failed(failure), &[]);
                Left::Lingering(self.into_stream())
            }
        }
    }

    fn into_stream(self) -> UnixStream {
        self.reader.into_inner().into_inner().1.stream
    }

    /// Until the end, an error, or a subscription.
    fn requests<H: Handler>(
        &mut self,
        ended: &Ended<H>,
    ) -> Result<Option<mpsc::Receiver<Event>>, FrameError> {
        while self.wait_for_bytes()? {
            self.timed().until = Some(Instant::now() + STALL_MAX);
            let frame = frame::read(&mut self.reader)?;
            let cut = &mut self.cut;
            let step = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    _ = cut.wait_for(|cut| *cut) => Ok(None),
                    step = answer(ended, frame) => step.map(Some),
                }
            })?;
            let Some(Step { response, data, events }) = step else { return Ok(None) };
            self.reply(&response, &data)?;
            if events.is_some() || matches!(response, Response::Failed(Failure::Protocol(_))) {
                return Ok(events);
            }
        }
        Ok(None)
    }

    /// False at the end of the stream, or when nothing came for too long.
    fn wait_for_bytes(&mut self) -> Result<bool, FrameError> {
        self.timed().until = None;
        let mut idle = Duration::ZERO;
        loop {
            match self.reader.fill_buf() {
                Ok(bytes) => return Ok(!bytes.is_empty()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    idle += STALL_MAX;
                    if idle >= IDLE_MAX {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn reply(&mut self, response: &Response, data: &[Bytes]) -> Result<(), FrameError> {
        let timed = self.timed();
        timed.until = Some(Instant::now() + STALL_MAX);
        let parts: Vec<&[u8]> = data.iter().map(|part| &part[..]).collect();
        frame::write(timed, Kind::Reply, response, &parts)
    }

    fn timed(&mut self) -> &mut Timed {
        self.reader.get_mut().get_mut().1
    }
}

/// Breaks off at a time, even if the peer gives or takes a byte now and then.
struct Timed {
    stream: UnixStream,
    until: Option<Instant>,
}

impl Timed {
    fn check(&self, bytes: io::Result<usize>) -> io::Result<usize> {
        match self.until {
            Some(until) if Instant::now() > until => Err(io::ErrorKind::TimedOut.into()),
            Some(_) | None => bytes,
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        self.check(read)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes);
        self.check(written)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.stream.write_vectored(slices);
        self.check(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
