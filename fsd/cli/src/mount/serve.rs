//! The process that serves a mount, from connecting to the last sync.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::client::{Client, ConnectOptions};
use fuse::{MountError, MountOptions, Unmounter};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::background;
use super::control::{self, Answer, Ask};
use crate::connect::Place;
use crate::failed::{self, Exit, Failed};
use crate::{identity, location, mounts};

/// An `umount` waits this long for the last sync; the client's own deadlines are shorter.
const LAST_SYNC_MAX: Duration = Duration::from_secs(300);

/// What is mounted where.
#[derive(Debug)]
pub struct Plan {
    pub place: Place,
    /// Everything but its source.
    pub options: MountOptions,
    /// How long an operation may wait for the storage node.
    pub timeout: Duration,
    /// Tell the process that started this one when the mount is up.
    pub background: bool,
}

/// A mount and how it ended.
struct Life {
    mountpoint: PathBuf,
    device: String,
    unmounter: Unmounter,
    ended: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
}

/// Mounts, serves until it is unmounted, syncs.
pub fn run(plan: Plan) -> Result<Exit, Failed> {
    let client = connect(&plan)?;
    let welcome = client.welcome();
    let mut options = plan.options;
    options.source = location::source(&welcome.cluster_name, &welcome.cluster_uuid);
    let (mountpoint, source) = (options.mountpoint.clone(), options.source.clone());
    let session = fuse::mount(options, client.clone()).map_err(|error| {
        client.goodbye();
        cannot_mount(&error)
    })?;
    let life = Arc::new(Life {
        device: device(&mountpoint),
        mountpoint,
        unmounter: session.unmounter(),
        ended: Mutex::new(None),
        changed: Condvar::new(),
    });
    let socket = listen(&life);
    obey_signals(&life)?;
    tracing::info!(mountpoint = %life.mountpoint.display(), source, "mounted");
    if plan.background {
        background::ready();
    }
    let synced: Result<(), String> = session.join().map_err(|error| error.to_string());
    tracing::info!(mountpoint = %life.mountpoint.display(), ?synced, "unmounted");
    *life.ended.lock() = Some(synced.clone());
    life.changed.notify_all();
    if let Some(socket) = socket {
        control::drain(&socket);
        // A file that stays behind is replaced by the next mount with this number.
        let _ = std::fs::remove_file(&socket);
    }
    match synced {
        Ok(()) => Ok(Exit::Ok),
        Err(why) => Err(last_sync_failed(&life.mountpoint, &why)),
    }
}

/// What `cfs mount --foreground` and `cfs umount` say when the end was not in order.
pub fn last_sync_failed(mountpoint: &std::path::Path, why: &str) -> Failed {
    let what = format!("{}: unmounted, but not in order: {why}", mountpoint.display());
    Failed::new(Exit::Failed, "LAST_SYNC", what)
}

fn connect(plan: &Plan) -> Result<Client, Failed> {
    let options = ConnectOptions {
        client: format!("{}:{}", identity::host(), plan.options.mountpoint.display()),
        deadline: plan.timeout,
        credentials: plan.place.credentials(),
        ..ConnectOptions::default()
    };
    Client::connect(plan.place.endpoint()?, options)
        .map_err(|error| failed::call(&format!("cannot mount from {}", plan.place), error))
}

fn cannot_mount(error: &MountError) -> Failed {
    let failed = Failed::new(Exit::Failed, "MOUNT", error.to_string());
    match error {
        MountError::Device(Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
            failed.next("the kernel has no FUSE: `modprobe fuse`")
        }
        MountError::Device(_) | MountError::Mount { error: Errno::PERM, .. } => {
            failed.next("mounting needs root (CAP_SYS_ADMIN)")
        }
        _ => failed,
    }
}

/// Device number of the new mount; empty if something else lies over it already.
fn device(mountpoint: &std::path::Path) -> String {
    let mounts = mounts::read().unwrap_or_default();
    let mount = mounts::at(&mounts, mountpoint).filter(|mount| mount.is_ours());
    mount.map(|mount| mount.device.clone()).unwrap_or_default()
}

/// Opens the control socket. Without it plain `umount` still works, and only the kernel is asked.
fn listen(life: &Arc<Life>) -> Option<PathBuf> {
    let path = control::path(&control::runtime_dir(), &life.device);
    let listener = match control::bind(&path) {
        Ok(listener) if !life.device.is_empty() => listener,
        Ok(_) => return None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "no control socket");
            return None;
        }
    };
    let life = life.clone();
    let serve = move || control::serve(&listener, |ask| life.answer(ask));
    match std::thread::Builder::new().name("cfs-control".into()).spawn(serve) {
        Ok(_) => Some(path),
        Err(error) => {
            tracing::warn!(%error, "no thread for the control socket");
            None
        }
    }
}

impl Life {
    fn answer(&self, ask: Ask) -> Answer {
        tracing::info!(?ask, "asked to unmount");
        let unmounted = match ask {
            Ask::Unmount => self.unmount(UnmountFlags::empty()),
            Ask::Force => self.force(),
        };
        match unmounted {
            // Not mounted any more: someone else was quicker.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(Errno::BUSY) => return Answer::Busy,
            Err(errno) => return Answer::Failed(errno.to_string()),
        }
        if ask == Ask::Force {
            return Answer::Done;
        }
        let until = Instant::now() + LAST_SYNC_MAX;
        let mut ended = self.ended.lock();
        while ended.is_none() {
            if self.changed.wait_until(&mut ended, until).timed_out() {
                return Answer::Failed("the last sync does not end".into());
            }
        }
        match ended.as_ref() {
            Some(Err(why)) => Answer::Failed(why.clone()),
            Some(Ok(())) | None => Answer::Done,
        }
    }

    /// Every call to the cluster fails from now on, so nothing waits for one that is dead.
    fn force(&self) -> Result<(), Errno> {
        self.unmounter.abort();
        Ok(())
    }

    /// Unmounts what lies there if it is this mount.
    fn unmount(&self, flags: UnmountFlags) -> Result<(), Errno> {
        if !self.device.is_empty() && device(&self.mountpoint) != self.device {
            return Err(Errno::INVAL);
        }
        rustix::mount::unmount(&self.mountpoint, flags | UnmountFlags::NOFOLLOW)
    }

    /// The first signal ends the mount when its last file is closed, the second one at once.
    fn signalled(&self, first: bool) {
        let done = if !first {
            tracing::warn!("a second signal: unmounting by force");
            self.force()
        } else {
            match self.unmount(UnmountFlags::empty()) {
                Err(Errno::BUSY) => {
                    tracing::warn!(
                        "files are open: the mount is detached and ends with the last of them; \
                         a second signal ends it now"
                    );
                    self.unmount(UnmountFlags::DETACH)
                }
                done => done,
            }
        };
        if let Err(errno) = done {
            tracing::warn!(%errno, "unmounting on a signal");
        }
    }
}

fn obey_signals(life: &Arc<Life>) -> Result<(), Failed> {
    let failed = |error: std::io::Error| {
        Failed::new(Exit::Failed, "SIGNALS", format!("cannot wait for signals: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut terminate, mut interrupt) = {
        use tokio::signal::unix::{SignalKind, signal};
        let _inside = runtime.enter();
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        (terminate, signal(SignalKind::interrupt()).map_err(failed)?)
    };
    let life = life.clone();
    let wait = move || {
        runtime.block_on(async {
            let mut first = true;
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                life.signalled(std::mem::replace(&mut first, false));
            }
        });
    };
    std::thread::Builder::new().name("cfs-signals".into()).spawn(wait).map_err(failed)?;
    Ok(())
}
