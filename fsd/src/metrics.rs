//! What the node measures, and the HTTP listener that Prometheus reads it from (`GET /metrics`).
//!
//! Operation latency is there twice: `claudefs_operation_latency_ms` with the quantiles a person wants to see
//! over the last minutes, `claudefs_operation_duration_ms` as a histogram that can be added up over nodes.
//! Nothing is shown that was not measured: a gauge appears when it is first set, and a single site has no
//! replication lag. What is of the cluster as a whole (`claudefs_cluster_…`) every node says as its metadata has
//! it, so that the loss of any of them hides nothing; of several answers the worst counts.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fsd_rpc::admin::Level;
use metrics::Histogram;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use raftmeta_types::cluster::NodeState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::chunks::Taken;
use crate::replication::Moved;

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

/// States of nodes that are counted, all but those of removed ones.
pub const NODE_STATES: [NodeState; 5] =
    [NodeState::Joining, NodeState::Up, NodeState::Draining, NodeState::Drained, NodeState::Down];

/// Work that is measured in bytes, in the words of `cfs admin status`.
pub const JOBS: [&str; 4] = ["re-replication", "drain", "rebalance", "scrub"];

/// What is counted in the state machine and the stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauges {
    pub inodes: u64,
    /// Sizes of all files.
    pub logical_bytes: u64,
    /// What the chunk store may occupy on the device.
    pub capacity_bytes: u64,
    /// Of those, what writers can still get.
    pub available_bytes: u64,
    /// Bytes that the chunk store occupies on the device.
    pub used_bytes: u64,
    /// Of those, the bytes of chunks that there are.
    pub live_bytes: u64,
    pub chunks: u64,
    /// Chunks of this node that are known to be damaged, and not repaired yet.
    pub damaged_chunks: u64,
    /// What puts have brought since the start.
    pub taken: Taken,
    pub moved: Moved,
    pub raft_term: u64,
    /// Whether this node leads the metadata group.
    pub is_leader: bool,
    /// Shards of which this node has a copy in sync, and those that it leads.
    pub shards_in_sync: u64,
    pub shards_primary: u64,
    /// Shards of the cluster, and those with fewer copies in sync than configured.
    pub cluster_shards: u64,
    pub cluster_shards_short: u64,
    /// Nodes of the cluster in each of [`NODE_STATES`].
    pub cluster_nodes: [u64; NODE_STATES.len()],
    /// What is left of each of [`JOBS`] for this node to do or, where it leads, to have done.
    pub job_left_bytes: [u64; JOBS.len()],
    /// As this node sees it.
    pub health: Level,
}

impl Metrics {
    pub fn new() -> Result<Metrics, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_quantiles(&QUANTILES)?
            .set_buckets_for_metric(Matcher::Full(DURATION.into()), &BUCKETS_MS)?
            .build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe_gauges();
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

    /// Shows 0 for what has not been refused yet: a counter that begins with 1 tells no increase.
    pub fn refusable(&self, reasons: impl Iterator<Item = &'static str>) {
        metrics::with_local_recorder(&*self.recorder, || {
            for why in reasons {
                metrics::counter!("claudefs_refused_total", "why" => why).increment(0);
            }
        });
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
        let plain = [
            ("claudefs_inode_count", gauges.inodes),
            ("claudefs_logical_bytes", gauges.logical_bytes),
            ("claudefs_capacity_bytes", gauges.capacity_bytes),
            ("claudefs_available_bytes", gauges.available_bytes),
            ("claudefs_used_bytes", gauges.used_bytes),
            ("claudefs_live_bytes", gauges.live_bytes),
            ("claudefs_chunks", gauges.chunks),
            ("claudefs_damaged_chunks", gauges.damaged_chunks),
            ("claudefs_raft_term", gauges.raft_term),
            ("claudefs_raft_leader", u64::from(gauges.is_leader)),
            ("claudefs_shards_in_sync", gauges.shards_in_sync),
            ("claudefs_shards_primary", gauges.shards_primary),
            ("claudefs_cluster_shards", gauges.cluster_shards),
            ("claudefs_cluster_shards_short", gauges.cluster_shards_short),
            ("claudefs_health", gauges.health as u64),
        ];
        metrics::with_local_recorder(&*self.recorder, || {
            for (name, value) in plain {
                metrics::gauge!(name).set(value as f64);
            }
            for (state, count) in NODE_STATES.iter().zip(gauges.cluster_nodes) {
                let state = state.to_string();
                metrics::gauge!("claudefs_cluster_nodes", "state" => state).set(count as f64);
            }
            // Not `job`, which Prometheus has for its own.
            for (job, bytes) in JOBS.into_iter().zip(gauges.job_left_bytes) {
                metrics::gauge!("claudefs_job_left_bytes", "kind" => job).set(bytes as f64);
            }
            let Taken { put, new, packed, sealed, stored } = gauges.taken;
            for (name, total) in [
                ("claudefs_put_bytes_total", put),
                ("claudefs_put_new_bytes_total", new),
                ("claudefs_put_packed_bytes_total", packed),
                ("claudefs_put_sealed_bytes_total", sealed),
                ("claudefs_put_stored_bytes_total", stored),
                ("claudefs_segments_moved_bytes_total", gauges.moved.bytes),
                ("claudefs_segments_moved_in_vain_bytes_total", gauges.moved.in_vain),
            ] {
                metrics::counter!(name).absolute(total);
            }
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

/// What `# HELP` says of each.
fn describe_gauges() {
    use metrics::describe_gauge as describe;
    describe!("claudefs_inode_count", "Inodes in the namespace");
    describe!("claudefs_logical_bytes", "Bytes of all files, as their sizes say");
    describe!("claudefs_capacity_bytes", "Bytes of the device for chunks");
    describe!("claudefs_available_bytes", "Bytes of the device that writers can still get");
    describe!("claudefs_used_bytes", "Bytes used on the device");
    describe!("claudefs_live_bytes", "Bytes of the chunks on the device");
    describe!("claudefs_chunks", "Chunks on the device");
    describe!("claudefs_damaged_chunks", "Chunks on the device that are damaged");
    describe!("claudefs_raft_term", "Term of the metadata group");
    describe!("claudefs_raft_leader", "1 if this node leads the metadata group");
    describe!("claudefs_shards_in_sync", "Shards of which this node has a copy in sync");
    describe!("claudefs_shards_primary", "Shards that this node is the primary of");
    describe!("claudefs_cluster_shards", "Shards of the cluster");
    describe!(
        "claudefs_cluster_shards_short",
        "Shards of the cluster with fewer copies in sync than configured"
    );
    describe!("claudefs_cluster_nodes", "Nodes of the cluster by their state");
    describe!(
        "claudefs_job_left_bytes",
        "Bytes still to be read by a scrub of this node, or to be copied where it leads"
    );
    describe!("claudefs_health", "Health as this node sees it: 0 ok, 1 warning, 2 error");
    use metrics::describe_counter;
    describe_counter!("claudefs_put_bytes_total", "Bytes of the chunks that clients have put");
    describe_counter!("claudefs_put_new_bytes_total", "Of those, bytes of chunks that were new");
    describe_counter!("claudefs_put_packed_bytes_total", "Bytes of the new chunks, compressed");
    describe_counter!("claudefs_put_sealed_bytes_total", "Bytes of the same, encrypted");
    describe_counter!("claudefs_put_stored_bytes_total", "Bytes of the same, as they are stored");
    describe_counter!(
        "claudefs_segments_moved_bytes_total",
        "Bytes of segments sent or fetched to bring replicas up and make them equal"
    );
    describe_counter!(
        "claudefs_segments_moved_in_vain_bytes_total",
        "Of those, bytes that were sent and not taken, and so go again"
    );
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
