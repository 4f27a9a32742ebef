//! A node at work: doors, jobs and metrics around it, signals, and the end in order.

use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fsd_rpc::message::PROTOCOLS;
use fsd_rpc::server::{Server, ServerConfig};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;

use super::blocks::make_parent;
use super::{Node, NodeError, devices, lead, members, swim};
use crate::config::Config;
use crate::jobs;
use crate::replication;
use crate::sd_notify::Manager;
use crate::service::Service;

/// How long jobs may take to end; they are cut off after that, which a crash might do as well.
const JOBS_END_WITHIN: Duration = Duration::from_secs(20);

/// Where a node that is ready can be reached.
#[derive(Clone, Debug)]
pub struct Ready {
    pub node: String,
    pub cluster_name: String,
    pub cluster_uuid: uuid::Uuid,
    pub unix: PathBuf,
    pub tcp: Option<SocketAddr>,
    pub metrics: SocketAddr,
}

impl std::fmt::Display for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ready { node, cluster_name, cluster_uuid, unix, tcp, metrics } = self;
        write!(f, "node {node} of cluster {cluster_name} ({cluster_uuid}) is ready: ")?;
        write!(f, "unix {}", unix.display())?;
        if let Some(tcp) = tcp {
            write!(f, ", tcp {tcp}")?;
        }
        write!(f, ", metrics http://{metrics}/metrics")
    }
}

/// Sends what a daemon has to say to stderr. `RUST_LOG` chooses more or less of it.
pub fn log_to_stderr() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,openraft=error"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}

/// Runs a node until SIGINT or SIGTERM, on threads of its own. `ready` hears when the doors are open.
///
/// # Errors
/// What kept it from starting, or made it stop on its own.
pub fn serve(config: Config, ready: impl FnOnce(&Ready)) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads())
        .enable_all()
        .build()
        .map_err(NodeError::Threads)?;
    let served = runtime.block_on(async {
        // Before anything is started, so that an early signal ends it in order, too.
        let mut terminate = signal(SignalKind::terminate()).map_err(NodeError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(NodeError::Signals)?;
        let asked = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        run(config, asked, ready).await
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    served
}

/// The clients of a host share its cores with the node; more threads would only pass work around.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 16)
}

async fn run(
    config: Config,
    asked: impl Future<Output = ()>,
    ready: impl FnOnce(&Ready),
) -> Result<(), NodeError> {
    let mut asked = std::pin::pin!(asked);
    let node = tokio::select! {
        node = Node::open(config) => Arc::new(node?),
        () = &mut asked => return Ok(()),
    };
    let result = at_work(&node, asked, ready).await;
    node.close().await;
    result
}

async fn at_work(
    node: &Arc<Node>,
    asked: std::pin::Pin<&mut impl Future<Output = ()>>,
    ready: impl FnOnce(&Ready),
) -> Result<(), NodeError> {
    let config = &node.config;
    make_parent(&config.door.unix)?;
    let address = config.metrics.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| NodeError::MetricsListen { address, source })?;
    let metrics_address =
        listener.local_addr().map_err(|source| NodeError::MetricsListen { address, source })?;
    let server = Server::bind(ServerConfig {
        protocols: PROTOCOLS,
        unix: Some(config.door.unix.clone()),
        allowed_uids: config.door.allow_uids.clone(),
        tcp: match config.door.tcp {
            Some(address) => Some((address, node.tls()?)),
            None => None,
        },
    })
    .await?;
    let _ = node.doors.set(server.control());
    let tcp = server.tcp_address();
    let socket = match tcp {
        Some(address) => swim::bind(address, config.door.tcp).await?,
        None => None,
    };

    let of_scrapes = Arc::downgrade(node);
    let refresh = move || {
        if let Some(node) = of_scrapes.upgrade() {
            node.measure();
        }
    };
    let metrics = tokio::spawn(node.metrics.clone().serve(listener, refresh));
    node.courier.attach(Arc::downgrade(node) as _);
    let devices = tokio::spawn(devices::watch(Arc::downgrade(node)));
    let jobs = jobs::start(node);
    let mut site = vec![
        tokio::spawn(lead::follow(Arc::clone(node))),
        tokio::spawn(members::keep(Arc::clone(node))),
        tokio::spawn(replication::keep(Arc::clone(node))),
    ];
    site.extend(socket.map(|socket| tokio::spawn(swim::keep(Arc::clone(node), socket))));
    let mut doors = tokio::spawn(server.run(Arc::new(Service::new(node)), node.stopping()));
    let at = Ready {
        node: config.node.name.clone(),
        cluster_name: node.cluster.name.clone(),
        cluster_uuid: node.cluster.uuid,
        unix: config.door.unix.clone(),
        tcp,
        metrics: metrics_address,
    };
    ready(&at);
    let manager = Manager::from_env().map_err(NodeError::Manager)?;
    let watchdog = manager.map(|manager| {
        let manager = Arc::new(manager);
        manager.ready(&at.to_string());
        (tokio::spawn(keep_alive(Arc::clone(&manager))), manager)
    });

    let mut fatal = node.fatal.subscribe();
    let result = tokio::select! {
        () = asked => Ok(()),
        reason = fatal.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|reason| reason.clone());
            Err(NodeError::Fatal(reason.unwrap_or_default()))
        }
        ended = &mut doors => Err(NodeError::Fatal(format!("the doors closed: {ended:?}"))),
    };
    tracing::info!("stopping");
    if let Some((_, manager)) = &watchdog {
        manager.stopping();
    }
    node.stopping.send_replace(true);
    metrics.abort();
    devices.abort();
    if !doors.is_finished() {
        let _ = doors.await;
    }
    for task in site {
        if let Err(error) = task.await {
            tracing::error!(%error, "following the leadership");
        }
    }
    if timeout(JOBS_END_WITHIN, jobs.end()).await.is_err() {
        tracing::warn!("background work was cut off");
    }
    if let Some((alive, _)) = watchdog {
        alive.abort();
    }
    result
}

/// Tells the watchdog of systemd that this process gets on: its threads find time for this.
async fn keep_alive(manager: Arc<Manager>) {
    let Some(every) = manager.watchdog() else { return };
    loop {
        manager.alive();
        tokio::time::sleep(every).await;
    }
}
