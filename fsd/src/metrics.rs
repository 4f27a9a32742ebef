//! What the node measures, and the HTTP listener that Prometheus reads it from (`GET /metrics`).
//!
//! Operation latency is there twice: `claudefs_operation_latency_ms` with the quantiles a person wants to see
//! over the last minutes, `claudefs_operation_duration_ms` as a histogram that can be added up over nodes.
//! Nothing is shown that was not measured: a gauge appears when it is first set, and a single site has no
//! replication lag.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::Histogram;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

#[cfg(test)]
mod tests;

const LATENCY: &str = "claudefs_operation_latency_ms";
const DURATION: &str = "claudefs_operation_duration_ms";
const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];
/// Upper bounds in milliseconds.
const BUCKETS_MS: [f64; 12] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 50.0, 250.0, 1000.0, 5000.0];

/// Scrapers served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// A longer request head is answered 431.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// A scraper slower than this is cut off.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// How often samples are folded together, so that they do not pile up while nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    /// Both histograms of each operation, made when it is first seen.
    operations: Arc<[OnceLock<[Histogram; 2]>; Operation::ALL.len()]>,
}

macro_rules! operations {
    ($($variant:ident $name:literal,)*) => {
        /// Operations of clients that are measured, in the words of the message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Operation { $($variant,)* }

        impl Operation {
            pub const ALL: &[Operation] = &[$(Operation::$variant,)*];

            /// The label.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$variant => $name,)* }
            }
        }
    };
}

operations! {
    Lookup "lookup",
    GetAttr "getattr",
    Open "open",
    Close "close",
    ReadLink "readlink",
    ReadDir "readdir",
    Xattr "xattr",
    Extents "read",
    StatFs "statfs",
    Lock "lock",
    Create "create",
    Link "link",
    Unlink "unlink",
    Rename "rename",
    SetAttr "setattr",
    SetXattr "setxattr",
    Write "write",
    WriteDurable "write_durable",
    Allocate "allocate",
    CopyRange "copy_range",
    Sync "sync",
    PutChunks "put_chunks",
    GetChunks "get_chunks",
    Session "session",
    Admin "admin",
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What is counted in the state machine and the stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub inodes: u64,
    /// Bytes that the chunk store occupies on the device.
    pub used_bytes: u64,
    /// Of those, the bytes of chunks that there are.
    pub live_bytes: u64,
    /// Bytes of whole segments that this node has sent or fetched since its start, as replicas were brought up.
    pub segments_moved_bytes: u64,
    pub raft_term: u64,
}

impl Metrics {
    pub fn new() -> Result<Metrics, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_quantiles(&QUANTILES)?
            .set_buckets_for_metric(Matcher::Full(DURATION.into()), &BUCKETS_MS)?
            .build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::describe_gauge!("claudefs_inode_count", "Inodes in the namespace");
            metrics::describe_gauge!("claudefs_used_bytes", "Bytes used on the device");
            metrics::describe_gauge!("claudefs_live_bytes", "Bytes of the chunks on the device");
            metrics::describe_counter!(
                "claudefs_segments_moved_bytes_total",
                "Bytes of whole segments sent or fetched to bring replicas up and make them equal"
            );
            metrics::describe_gauge!("claudefs_raft_term", "Term of the metadata group");
            metrics::describe_counter!(
                "claudefs_refused_total",
                "What came to the doors and was refused, by reason"
            );
            metrics::describe_counter!(
                "claudefs_read_repairs_total",
                "Damaged chunks that reads found and that were repaired from other copies"
            );
            metrics::describe_histogram!(LATENCY, "Latency of operations, recent quantiles");
            metrics::describe_histogram!(DURATION, "Latency of operations, histogram");
        });
        Ok(Metrics { recorder: Arc::new(recorder), operations: Arc::default() })
    }

    /// One operation of a client took this long.
    pub fn operation(&self, operation: Operation, took: Duration) {
        let ms = took.as_secs_f64() * 1e3;
        let [latency, duration] = self.operations[operation as usize].get_or_init(|| {
            let name = operation.name();
            metrics::with_local_recorder(&*self.recorder, || {
                [LATENCY, DURATION].map(|metric| metrics::histogram!(metric, "operation" => name))
            })
        });
        latency.record(ms);
        duration.record(ms);
    }

    /// Somebody was refused at a door.
    pub fn refused(&self, why: &'static str) {
        metrics::with_local_recorder(&*self.recorder, || {
            metrics::counter!("claudefs_refused_total", "why" => why).increment(1);
        });
    }

    /// A chunk that a read found damaged is good again.
    pub fn read_repaired(&self) {
        metrics::with_local_recorder(&*self.recorder, || {
            metrics::counter!("claudefs_read_repairs_total").increment(1);
        });
    }

    pub fn set(&self, gauges: Gauges) {
        metrics::with_local_recorder(&*self.recorder, || {
            metrics::gauge!("claudefs_inode_count").set(gauges.inodes as f64);
            metrics::gauge!("claudefs_used_bytes").set(gauges.used_bytes as f64);
            metrics::gauge!("claudefs_live_bytes").set(gauges.live_bytes as f64);
            metrics::counter!("claudefs_segments_moved_bytes_total")
                .absolute(gauges.segments_moved_bytes);
            metrics::gauge!("claudefs_raft_term").set(gauges.raft_term as f64);
        });
    }

    /// All of it in Prometheus' text format.
    pub fn render(&self) -> String {
        self.recorder.handle().render()
    }

    /// Serves `/metrics` until dropped; `refresh` brings the gauges up to date before each answer.
    /// Returns only when the listener itself fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        refresh: impl Fn() + Send + Sync + 'static,
    ) -> io::Error {
        let refresh = Arc::new(refresh);
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        loop {
            tokio::select! {
                _ = upkeep.tick() => self.recorder.handle().run_upkeep(),
                accepted = admit(&listener, &room) => {
                    let (stream, permit) = match accepted {
                        Ok(accepted) => accepted,
                        Err(error) if is_passing(&error) => continue,
                        Err(error) => return error,
                    };
                    let metrics = self.clone();
                    let refresh = Arc::clone(&refresh);
                    tokio::spawn(async move {
                        // A scraper that went away or is too slow is its own loss.
                        let _ = timeout(REQUEST_MAX, metrics.answer(stream, &*refresh)).await;
                        drop(permit);
                    });
                }
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream, refresh: &(dyn Fn() + Sync)) -> io::Result<()> {
        let (status, body) = match read_head(&mut stream).await? {
            None => ("431 Request Header Fields Too Large", String::new()),
            Some(head) => match head.split(' ').take(2).collect::<Vec<_>>()[..] {
                ["GET", "/metrics"] => {
                    refresh();
                    ("200 OK", self.render())
                }
                ["GET", _] => ("404 Not Found", "see /metrics\n".into()),
                [_, "/metrics"] => ("405 Method Not Allowed", String::new()),
                _ => ("400 Bad Request", String::new()),
            },
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await
    }
}

async fn admit(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// Errors of one connection that `accept` reports; the next may be well.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// The request's first line and headers, or nothing if they are too long.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
        match stream.read(&mut part).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => head.extend_from_slice(&part[..n]),
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
