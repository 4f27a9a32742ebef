//! The block daemon under this node: its configuration, its start under supervision, the orphan of a
//! former server that was killed, and the connection to the volume that chunks live on.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockd_ipc::RemoteVolume;
use blockd_ipc::client::Config as VolumeConfig;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::NodeError;
use super::identity::replace;
use crate::config::{Config, Pool};
use crate::supervise::{Spec, State, Supervisor, find_program};

/// Name of the volume that chunks live on; a `blockd.config` of one's own has to define it.
pub const VOLUME: &str = "chunks";
/// How long an orphan may take to stop after SIGTERM, and a daemon that starts to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest stop of the daemon in order before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);
/// A daemon that ended this often while the node starts will not get well.
const RESTARTS_MAX: u64 = 3;
/// Bytes of a pool that no volume gets: superblocks and metadata (docs/formats/pool.md), rounded up.
const POOL_OVERHEAD: u64 = 8 << 20;
const EXTENT_BYTES: u64 = 4 << 20;
/// Pool metadata for each extent: two slots of 8 bytes.
const EXTENT_OVERHEAD: u64 = 16;

/// What `blockd --config` reads.
#[derive(Serialize)]
struct BlockdConfig<'a> {
    ipc_socket: &'a Path,
    admin_socket: &'a Path,
    device: Vec<Device<'a>>,
    volume: Vec<Volume>,
}

#[derive(Serialize)]
struct Device<'a> {
    path: &'a Path,
    size: u64,
    create: bool,
}

#[derive(Serialize)]
struct Volume {
    name: &'static str,
    size: u64,
}

/// Starts the block daemon unless something else runs it, and connects. `creating`: the pool may be made.
pub(super) async fn start(
    config: &Config,
    creating: bool,
) -> Result<(Option<Supervisor>, RemoteVolume), NodeError> {
    let socket = &config.blockd.socket;
    make_parent(socket)?;
    let file = match (&config.blockd.config, &config.blockd.pool) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(pool)) => Some(write_config(config, pool, creating)?),
        (None, None) => None,
    };
    let supervisor = match &file {
        Some(file) => {
            replace_orphan(socket, file).await?;
            Some(launch(file)?)
        }
        None => None,
    };
    match connect(socket, supervisor.as_ref()).await {
        Ok(volume) => Ok((supervisor, volume)),
        Err(error) => {
            if let Some(supervisor) = supervisor {
                supervisor.stop().await;
            }
            Err(error)
        }
    }
}

fn launch(file: &Path) -> Result<Supervisor, NodeError> {
    let failed = |why: String| NodeError::Blockd(why);
    let own = std::env::current_exe()
        .map_err(|error| failed(format!("where this program lies is not known: {error}")))?;
    let search = std::env::var_os("PATH").unwrap_or_default();
    let program = find_program("blockd", &own, &search).ok_or_else(|| {
        failed(format!("no program `blockd` beside {} or in PATH: install it", own.display()))
    })?;
    let arguments = arguments(file);
    let spec = Spec { program: program.clone(), arguments, stop_within: STOP_WITHIN };
    Supervisor::start(spec)
        .map_err(|error| failed(format!("cannot start {}: {error}", program.display())))
}

fn arguments(file: &Path) -> Vec<String> {
    vec!["--supervised".into(), "--config".into(), file.display().to_string()]
}

pub(super) fn make_parent(path: &Path) -> Result<(), NodeError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(|source| NodeError::File {
        path: parent.into(),
        doing: "making the directory",
        source,
    })
}

fn write_config(config: &Config, pool: &Pool, creating: bool) -> Result<PathBuf, NodeError> {
    make_parent(&pool.path)?;
    let size = device_bytes(pool)?;
    let extents = size.saturating_sub(POOL_OVERHEAD) / EXTENT_BYTES;
    let overhead = POOL_OVERHEAD + (extents * EXTENT_OVERHEAD).next_multiple_of(EXTENT_BYTES);
    let volume = size.saturating_sub(overhead) / EXTENT_BYTES * EXTENT_BYTES;
    let admin_socket =
        config.blockd.admin_socket().expect("only a blockd with a pool is configured here");
    if admin_socket.as_os_str().len() > crate::config::SOCKET_PATH_BYTES_MAX {
        let why = format!("{} is too long for a socket: shorten it", admin_socket.display());
        return Err(NodeError::Blockd(why));
    }
    let text = toml::to_string(&BlockdConfig {
        ipc_socket: &config.blockd.socket,
        admin_socket: &admin_socket,
        // A pool that is missing later on was lost: nothing takes its place unasked.
        device: vec![Device { path: &pool.path, size, create: creating }],
        volume: if creating { vec![Volume { name: VOLUME, size: volume }] } else { Vec::new() },
    })
    .map_err(|error| NodeError::Blockd(format!("its configuration: {error}")))?;
    let file = config.node.data_dir.join("blockd.toml");
    replace(&file, text.as_bytes())?;
    Ok(file)
}

/// Size of what is there, or of the file to be made.
fn device_bytes(pool: &Pool) -> Result<u64, NodeError> {
    use std::io::{Seek, SeekFrom};
    let found = std::fs::File::open(&pool.path).and_then(|mut file| file.seek(SeekFrom::End(0)));
    match found {
        Ok(0) => Ok(pool.size.0),
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(pool.size.0),
        Err(source) => {
            Err(NodeError::File { path: pool.path.clone(), doing: "reading its size", source })
        }
    }
}

/// A server that was killed leaves its block daemon behind. It ends by itself when it notices; here it is
/// told to, and waited for, so that the next one gets the pool.
async fn replace_orphan(socket: &Path, file: &Path) -> Result<(), NodeError> {
    let Ok(stream) = UnixStream::connect(socket) else { return Ok(()) };
    let peer = socket_peercred(&stream)
        .map_err(|errno| NodeError::Blockd(format!("who serves {}: {errno}", socket.display())))?;
    drop(stream);
    let pid = peer.pid;
    let command = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid()));
    // One that has ended since is what we want.
    let Ok(command) = command else { return Ok(()) };
    let command: Vec<String> = command
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    // A process that is about to be gone has no command line any more.
    let ending = command.iter().all(String::is_empty);
    if !ending && !command.contains(&file.display().to_string()) {
        return Err(NodeError::Blockd(format!(
            "{} is served by another process ({}, `{}`): stop it or configure another socket",
            socket.display(),
            pid.as_raw_pid(),
            command.join(" ").trim_end()
        )));
    }
    tracing::info!(pid = pid.as_raw_pid(), "a former server's blockd is stopped");
    for signal in [Signal::TERM, Signal::KILL] {
        if end(pid, signal).await? {
            return Ok(());
        }
    }
    Err(NodeError::Blockd(format!("process {} does not end", pid.as_raw_pid())))
}

/// Whether it ended within our patience.
async fn end(pid: Pid, signal: Signal) -> Result<bool, NodeError> {
    let until = Instant::now() + PATIENCE;
    let mut asked = kill_process(pid, signal);
    while Instant::now() < until {
        match asked {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(true),
            Err(errno) => {
                let pid = pid.as_raw_pid();
                return Err(NodeError::Blockd(format!("cannot stop process {pid}: {errno}")));
            }
        }
        if is_zombie(pid) {
            return Ok(true);
        }
        sleep(PAUSE).await;
        asked = test_kill_process(pid);
    }
    Ok(false)
}

/// It has ended, and its parent has not looked yet. The first thread of a process that was killed can be
/// a zombie while others still hold its sockets and files: only when it is the last one, all has ended.
fn is_zombie(pid: Pid) -> bool {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_pid()));
    let stat = std::fs::read_to_string(process.join("stat"));
    let ended =
        stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")));
    ended && std::fs::read_dir(process.join("task")).is_ok_and(|threads| threads.count() <= 1)
}

async fn connect(
    socket: &Path,
    supervisor: Option<&Supervisor>,
) -> Result<RemoteVolume, NodeError> {
    let until = Instant::now() + PATIENCE;
    let mut ended = None;
    loop {
        let config = VolumeConfig::new(socket, VOLUME);
        let attempt = tokio::task::spawn_blocking(move || RemoteVolume::connect(config)).await;
        let error = match attempt.map_err(|error| NodeError::Blockd(error.to_string()))? {
            Ok(volume) => return Ok(volume),
            Err(error) => error,
        };
        if error.kind() == blockd_ipc::Kind::NotFound {
            let why = format!("it has no volume `{VOLUME}`: this is not the pool of a node");
            return Err(NodeError::Blockd(why));
        }
        let transient =
            matches!(error.kind(), blockd_ipc::Kind::Disconnected | blockd_ipc::Kind::Timeout);
        if !transient || Instant::now() >= until {
            return Err(NodeError::Volume(error));
        }
        if let Some(supervisor) = supervisor {
            match supervisor.state().borrow().clone() {
                State::Waiting { why } => ended = Some(why),
                State::Running { restarts, .. } if restarts >= RESTARTS_MAX => {
                    let why = ended.unwrap_or_else(|| "it ended".into());
                    return Err(NodeError::Blockd(format!(
                        "does not start ({why}): what it says stands above"
                    )));
                }
                State::Running { .. } | State::Stopped => {}
            }
        }
        sleep(PAUSE).await;
    }
}
