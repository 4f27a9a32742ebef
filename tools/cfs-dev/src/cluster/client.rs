//! A client: `cfs mount` on a directory, over the network.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fsd_rpc::admin::TokenPurpose;

use super::{Cluster, node::tail};
use crate::error::{Doing, Error, Kind, Result};
use crate::net::run;
use crate::process::{Launch, Process};
use crate::{programs, state, wait};

/// A client that has unmounted ends at once.
const END_WITHIN: Duration = Duration::from_secs(30);
/// How long an operation is tried again at least while no node can serve it: longer where every step may take longer.
const DEADLINE_MIN: Duration = Duration::from_secs(60);

/// A client of a [`Cluster`], mounted or not.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    pub(super) cluster: &'a Cluster,
    /// Place in the state.
    pub(super) at: usize,
}

impl Client<'_> {
    pub fn name(&self) -> String {
        self.cluster.state.lock().clients[self.at].name.clone()
    }

    pub fn directory(&self) -> PathBuf {
        self.cluster.options.directory.join("clients").join(self.name())
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.directory().join("mnt")
    }

    pub fn address(&self) -> Ipv4Addr {
        self.cluster.state.lock().network.client(self.at + 1)
    }

    pub fn process(&self) -> Option<Process> {
        self.cluster.state.lock().clients[self.at].running().cloned()
    }

    pub fn is_mounted(&self) -> Result<bool> {
        is_mounted(&self.mountpoint())
    }

    /// Mounts, with a certificate for a new token unless it has one.
    pub fn start(&self) -> Result<()> {
        let (mountpoint, log) = (self.mountpoint(), self.directory().join("log"));
        if self.process().is_none() {
            self.cluster.say(&format!("mounting {} on {}", self.name(), mountpoint.display()));
            if self.is_mounted()? {
                // Its process has died; nothing but this can be done with it.
                run(Command::new("umount").arg("--lazy").arg(&mountpoint))?;
            }
            fs::create_dir_all(&mountpoint)
                .doing(|| format!("cannot make {}", mountpoint.display()))?;
            self.launch(&log)?;
        }
        wait::until(&format!("{} mounted", self.name()), self.cluster.options.limit, || {
            if self.process().is_none() {
                let what = format!("{} has ended; its log:\n{}", self.name(), tail(&log));
                return Err(Error::new(Kind::Failed, what)
                    .next(format!("all of it is in {}", log.display())));
            }
            Ok(self.is_mounted()?.then_some(()))
        })
    }

    fn launch(&self, log: &Path) -> Result<()> {
        let identity = self.directory().join("identity");
        let mut environment =
            vec![("CFS_RUNTIME_DIR", self.cluster.options.directory.join("run").into())];
        if !identity.exists() {
            // Not as an argument, which everybody on the machine could read.
            environment.push(("CFS_TOKEN", self.cluster.token(TokenPurpose::Client)?.into()));
        }
        let program = programs::directory(self.cluster.options.programs.as_deref())?.join("cfs");
        let name = self.name();
        let namespace = self.cluster.state.lock().network.namespace(&name);
        let arguments = vec![
            "mount".into(),
            "--foreground".into(),
            "--server".into(),
            self.cluster.servers().into(),
            "--identity".into(),
            identity.into(),
            "--timeout".into(),
            format!("{}s", self.cluster.options.limit.max(DEADLINE_MIN).as_secs()).into(),
            self.mountpoint().into(),
        ];
        let namespace = namespace.as_deref();
        let process =
            Launch { namespace, program: &program, arguments, environment, log }.start()?;
        self.record(Some(process))
    }

    fn record(&self, process: Option<Process>) -> Result<()> {
        self.cluster.state.lock().clients[self.at].process = process;
        self.cluster.save()
    }

    /// Unmounts in order; refused while files are open.
    pub fn stop(&self) -> Result<()> {
        if self.is_mounted()? {
            self.umount(&[])?;
        }
        self.ended()
    }

    /// Ends it whatever it is doing; what was not sent yet is lost.
    pub fn end(&self) -> Result<()> {
        if self.is_mounted()? {
            self.umount(&["--force"])?;
        }
        if self.is_mounted()? {
            run(Command::new("umount").arg("--lazy").arg(self.mountpoint()))?;
        }
        self.ended()
    }

    fn umount(&self, options: &[&str]) -> Result<()> {
        let program = programs::directory(self.cluster.options.programs.as_deref())?.join("cfs");
        let mut umount = Command::new(program);
        umount.arg("umount").args(options).arg(self.mountpoint());
        umount.env("CFS_RUNTIME_DIR", self.cluster.options.directory.join("run"));
        let unmounted = run(&mut umount);
        unmounted.map(drop).map_err(|error| Error { kind: Kind::Precondition, ..error })
    }

    fn ended(&self) -> Result<()> {
        if let Some(process) = self.process()
            && !process.wait_gone(END_WITHIN)
        {
            process.stop(END_WITHIN)?;
        }
        self.record(None)
    }
}

/// Whether something is mounted on this directory.
pub(super) fn is_mounted(mountpoint: &Path) -> Result<bool> {
    Ok(state::mounts()?.iter().any(|mount| mount == mountpoint))
}

impl Cluster {
    /// Says what a mount would fail with, before anything is started.
    pub(super) fn can_mount(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            let what = "mounting the clients of phase 2 needs root";
            return Err(Error::new(Kind::Precondition, what)
                .next("run as root, or without clients: cfs-dev up --phase 1"));
        }
        if !Path::new("/dev/fuse").exists() {
            let what = "mounting the clients of phase 2 needs /dev/fuse, which is not there";
            return Err(Error::new(Kind::Precondition, what)
                .next("modprobe fuse, or without clients: cfs-dev up --phase 1"));
        }
        Ok(())
    }
}
