//! The file systems that are compared, all on one disk.

use std::fmt;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::Arguments;
use crate::process::{self, Daemon, wait_for};

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The directory itself.
    Ext4,
    /// libfuse's `passthrough_hp` on it: what FUSE allows without caching tricks.
    Fuse,
    /// One node and one mount, the pool and the metadata on the same ext4.
    Claudefs,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ext4 => "ext4",
            Kind::Fuse => "fuse",
            Kind::Claudefs => "claudefs",
        })
    }
}

/// One of them, running.
#[derive(Debug)]
pub struct Subject {
    pub kind: Kind,
    dir: PathBuf,
    bin: PathBuf,
    passthrough: Option<PathBuf>,
    client: Option<Daemon>,
    server: Option<Daemon>,
}

impl Subject {
    pub fn start(kind: Kind, arguments: &Arguments, work: &Path) -> Result<Subject> {
        let dir = work.join(kind.to_string());
        fs::create_dir(&dir)?;
        let bin = arguments.bin.canonicalize();
        let bin = bin.with_context(|| format!("--bin {}", arguments.bin.display()))?;
        let passthrough = arguments.passthrough.clone();
        let mut subject = Subject { kind, dir, bin, passthrough, client: None, server: None };
        fs::create_dir(subject.root())?;
        match kind {
            Kind::Ext4 => {}
            Kind::Fuse => fs::create_dir(subject.dir.join("source"))?,
            Kind::Claudefs => subject.start_server()?,
        }
        subject.mount()?;
        Ok(subject)
    }

    /// Where it is worked in.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn start_server(&mut self) -> Result<()> {
        let text = format!(
            "[node]\nname = \"bench\"\ndata_dir = {:?}\n[door]\nunix = {:?}\n\
             [blockd]\nsocket = {:?}\npool = {{ path = {:?}, size = \"16GiB\" }}\n\
             [metrics]\nlisten = \"127.0.0.1:0\"\n",
            self.path("data"),
            self.path("fsd.sock"),
            self.path("blockd.sock"),
            self.path("pool"),
        );
        let config = self.path("node.toml");
        fs::write(&config, text)?;
        let log = self.dir.join("server.log");
        let server = Daemon::start(&self.bin.join("cfs"), &["server", "--config", &config], &log)?;
        let server = self.server.insert(server);
        let socket = self.dir.join("fsd.sock");
        wait_for("the server's socket", || {
            server.check().with_context(|| format!("see {}", log.display()))?;
            Ok(UnixStream::connect(&socket).is_ok())
        })
    }

    fn mount(&mut self) -> Result<()> {
        let root = self.path("root");
        let (program, arguments) = match self.kind {
            Kind::Ext4 => return Ok(()),
            Kind::Fuse => {
                let program = self.passthrough.clone();
                let program = program.context("--passthrough PATH is needed for `fuse`")?;
                (program, vec!["--foreground".into(), self.path("source"), root.clone()])
            }
            Kind::Claudefs => {
                let socket = self.path("fsd.sock");
                let foreground = "--foreground".into();
                let arguments =
                    vec!["mount".into(), "--socket".into(), socket, foreground, root.clone()];
                (self.bin.join("cfs"), arguments)
            }
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = self.dir.join("client.log");
        let mut client = Daemon::start(&program, &arguments, &log)?;
        wait_for("the mount", || {
            client.check().with_context(|| format!("see {}", log.display()))?;
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(root.as_str())))
        })?;
        self.client = Some(client);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        process::run(Command::new("umount").arg(self.root()))?;
        client.wait()
    }

    /// Whatever was read or written is in no cache any more, neither of the kernel nor of a client.
    pub fn cool(&mut self) -> Result<()> {
        self.unmount()?;
        process::run(&mut Command::new("sync"))?;
        fs::write("/proc/sys/vm/drop_caches", "3\n").context("dropping the kernel's caches")?;
        self.mount()
    }

    /// Its daemons: process id and name.
    pub fn daemons(&self) -> Vec<(u32, String)> {
        let named = |pid: u32| (pid, process::name(pid));
        let mut daemons = Vec::new();
        if let Some(server) = &self.server {
            // The server's process holds fsd; blockd is its child.
            daemons.extend(process::family(server.pid()).into_iter().map(named));
        }
        daemons.extend(self.client.iter().map(|client| (client.pid(), "cfs mount".to_owned())));
        daemons
    }

    pub fn stop(mut self) -> Result<()> {
        self.unmount()?;
        self.server.take().map_or(Ok(()), Daemon::stop)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if self.client.is_some() {
            // The way out after an error: the mount has to go before its files are removed.
            let _ = Command::new("umount").arg("--lazy").arg(self.root()).status();
        }
    }
}
