//! The threads of a mount, from its beginning to its end.
//!
//! | threads | what they do |
//! |---|---|
//! | `fuse-N` | read requests and answer them |
//! | `fuse-locks` | tries the locks that are waited for |
//! | `fuse-notify` | tells the kernel what to forget |
//! | `fuse-back-N` | sends dirty bytes |
//! | `fuse-ahead-N` | fetches what readers will ask for |
//! | `fuse-age` | finds dirty bytes that have waited long enough |

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use fsd_rpc::message::Event;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::abi::{self, Writer};
use super::mount::{MountError, MountOptions, attach};
use super::notify::Notice;
use super::waiting::Waiting;
use crate::Backend;
use crate::ops::{Core, Result};
use crate::queue::Queue;

const BACK_THREADS: usize = 2;
const AHEAD_THREADS: usize = 4;
/// How often dirty bytes are looked at for their age.
const AGE_CHECK: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    fd: OwnedFd,
    pub(super) core: Core,
    pub(super) waiting: Waiting,
    pub(super) notices: Queue<Notice>,
    /// It is unmounted; what lies on the mountpoint now is not ours.
    ended: AtomicBool,
}

/// A mounted file system; serves until it is unmounted.
pub struct Session {
    shared: Arc<Shared>,
    /// Threads that end with the mount.
    readers: Vec<JoinHandle<()>>,
    /// Threads that end when they are told to.
    others: Vec<JoinHandle<()>>,
    /// Ends the thread that looks at the age when dropped.
    age_stop: mpsc::Sender<()>,
    mountpoint: PathBuf,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

/// Ends a mount from another thread than the one that waits for its end.
#[derive(Clone)]
pub struct Unmounter {
    shared: Arc<Shared>,
    mountpoint: PathBuf,
}

impl std::fmt::Debug for Unmounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unmounter").field("mountpoint", &self.mountpoint).finish_non_exhaustive()
    }
}

/// Mounts the file system and starts to serve it.
pub fn mount<B: Backend>(
    options: MountOptions,
    backend: B,
) -> std::result::Result<Session, MountError> {
    let core = Core::new(Arc::new(backend), &options);
    let fd = attach(&options)?;
    let shared = Arc::new(Shared::new(fd, core));
    let (age_stop, age_stopped) = mpsc::channel();
    let mut session = Session {
        shared: shared.clone(),
        readers: Vec::new(),
        others: Vec::new(),
        age_stop,
        mountpoint: options.mountpoint.clone(),
    };
    if let Err(error) = session.start(&options, age_stopped) {
        // Without its threads the mount would hang whoever touches it.
        session.abort();
        session.end_threads();
        return Err(error);
    }
    let weak = Arc::downgrade(&shared);
    shared.core.backend.subscribe(Box::new(move |event| {
        if let Some(shared) = weak.upgrade() {
            shared.on_event(&event);
        }
    }));
    let weak = Arc::downgrade(&shared);
    shared.core.backend.set_open_inodes(Box::new(move || {
        weak.upgrade().map(|shared| shared.core.open_inodes()).unwrap_or_default()
    }));
    Ok(session)
}

impl Session {
    fn start(
        &mut self,
        options: &MountOptions,
        age_stopped: mpsc::Receiver<()>,
    ) -> std::result::Result<(), MountError> {
        let spawn = |name: String, work: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name(name);
            thread.spawn(move || work(&shared)).map_err(MountError::Thread)
        };
        for number in 0..options.threads.max(2) {
            self.readers.push(spawn(format!("fuse-{number}"), Box::new(Shared::serve))?);
        }
        self.others.push(spawn("fuse-locks".into(), Box::new(Shared::serve_waiting))?);
        self.others.push(spawn("fuse-notify".into(), Box::new(Shared::notify))?);
        for number in 0..BACK_THREADS {
            let work = |shared: &Shared| {
                while let Some(file) = shared.core.back.pop() {
                    shared.core.send_back(&file);
                }
            };
            self.others.push(spawn(format!("fuse-back-{number}"), Box::new(work))?);
        }
        for number in 0..AHEAD_THREADS {
            let work = |shared: &Shared| {
                while let Some((file, range)) = shared.core.ahead.pop() {
                    shared.core.fetch_ahead(&file, &range);
                }
            };
            self.others.push(spawn(format!("fuse-ahead-{number}"), Box::new(work))?);
        }
        let age = move |shared: &Shared| {
            while age_stopped.recv_timeout(AGE_CHECK) == Err(mpsc::RecvTimeoutError::Timeout) {
                shared.core.send_aged();
                shared.core.tell_closed();
                crate::buffer::trim();
            }
        };
        self.others.push(spawn("fuse-age".into(), Box::new(age))?);
        Ok(())
    }

    /// What ends the mount from another thread, such as one that waits for signals.
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { shared: self.shared.clone(), mountpoint: self.mountpoint.clone() }
    }

    /// Unmounts; refused while files are open.
    pub fn unmount(&self) -> std::result::Result<(), MountError> {
        self.unmounter().unmount()
    }

    /// Ends the mount at once, see [`Unmounter::abort`].
    pub fn abort(&self) {
        self.unmounter().abort();
    }

    /// Waits until it is unmounted, by whomever, and makes everything durable that was answered.
    ///
    /// Fails if written data was lost: the last sync failed, or the one of a file whose last handle went.
    pub fn join(mut self) -> std::result::Result<(), MountError> {
        for thread in self.readers.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the mount panicked");
            }
        }
        let synced = self.shared.core.sync_last();
        self.end_threads();
        self.shared.core.backend.goodbye();
        synced.map_err(MountError::LastSync)
    }

    fn end_threads(&mut self) {
        let shared = &self.shared;
        shared.waiting.close();
        shared.notices.close();
        shared.core.back.close();
        shared.core.ahead.close();
        // Dropping the other end is what stops the thread.
        self.age_stop = mpsc::channel().0;
        for thread in self.readers.drain(..).chain(self.others.drain(..)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the mount panicked");
            }
        }
    }
}

impl Unmounter {
    /// Unmounts; refused while files are open.
    pub fn unmount(&self) -> std::result::Result<(), MountError> {
        if self.shared.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        rustix::mount::unmount(&self.mountpoint, UnmountFlags::empty())
            .map_err(|error| MountError::Unmount { path: self.mountpoint.clone(), error })
    }

    /// Ends the mount at once, whatever is open and whether or not the server answers. What was not sent
    /// is lost, and [`Session::join`] says so.
    pub fn abort(&self) {
        self.shared.core.backend.abort();
        if self.shared.ended.load(Ordering::Acquire) {
            return;
        }
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        match rustix::mount::unmount(&self.mountpoint, flags) {
            // It was unmounted before.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(path = %self.mountpoint.display(), %error, "forced unmount failed");
            }
        }
    }
}

impl Shared {
    pub(super) fn new(fd: OwnedFd, core: Core) -> Shared {
        Shared {
            fd,
            core,
            waiting: Waiting::default(),
            notices: Queue::new(usize::MAX),
            ended: AtomicBool::new(false),
        }
    }

    /// Does what waits for the other threads of a mount.
    pub(super) fn catch_up(&self) {
        while let Some(file) = self.core.back.take() {
            self.core.send_back(&file);
        }
        while let Some((file, range)) = self.core.ahead.take() {
            self.core.fetch_ahead(&file, &range);
        }
        while let Some(notice) = self.notices.take() {
            self.give_notice(&notice);
        }
        self.core.tell_closed();
    }

    fn serve(&self) {
        let mut buffer = vec![0; abi::REQUEST_MAX];
        loop {
            match rustix::io::read(&self.fd, &mut buffer[..]) {
                Ok(len) => self.request(&buffer[..len]),
                // NOENT: the request was interrupted before it was read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                Err(Errno::NODEV) => {
                    self.ended.store(true, Ordering::Release);
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "reading /dev/fuse failed");
                    return;
                }
            }
        }
    }

    pub(super) fn reply(&self, unique: u64, answer: Result<Vec<u8>>) {
        match answer {
            Ok(body) => self.send(unique, 0, &body),
            Err(error) => self.send(unique, -error.raw_os_error(), &[]),
        }
    }

    /// Writes an answer, or with `unique` 0 a notice of kind `code`.
    pub(super) fn send(&self, unique: u64, code: i32, body: &[u8]) {
        let mut head = Writer::default();
        head.u32((abi::OUT_HEADER + body.len()) as u32).u32(code as u32).u64(unique);
        // NOENT: nothing of the sort is cached, or the request was aborted.
        if let Err(error) =
            rustix::io::writev(&self.fd, &[IoSlice::new(&head.0), IoSlice::new(body)])
            && error != Errno::NOENT
        {
            tracing::debug!(%error, unique, "answer not taken");
        }
    }

    /// Another session changed something.
    fn on_event(&self, event: &Event) {
        match event {
            Event::Inode { ino, data } => {
                self.core.invalidate(*ino, *data);
                self.forget_inode(*ino, *data);
            }
            Event::Entry { parent, name } => {
                self.forget_entry(*parent, name);
                self.forget_inode(*parent, false);
            }
            Event::Overflow => {
                for ino in self.core.invalidate_all() {
                    self.notices.push(Notice::Inode(ino));
                }
            }
            Event::Stopping => {}
        }
    }
}
