//! `cfs mount DIR`, and `mount.cfs SOURCE DIR` for mount(8) and fstab.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser};
use fsd::config::Size;
use fsd_rpc::token::Invitation;
use fuse::MountOptions;

use crate::connect::{Anywhere, Place};
use crate::failed::{Exit, Failed};
use crate::mount::background::{self, Started};
use crate::mount::options::{Flags, Options};
use crate::mount::serve::{self, Plan};
use crate::{identity, logging, mounts};

/// Memory for data: what is written and not sent yet, and the cache.
const POOL_ENV: &str = "CFS_IO_BUFFER_POOL_SIZE";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cfs mount /mnt/claudefs                                  from the node of this host
  cfs mount --socket target/dev/fsd.sock /mnt/claudefs     from a node with another socket
  cfs mount --token TOKEN --server node1:9400 /mnt/cfs     first mount of a client of the network: it enrols,
                                                           the certificate is kept in ~/.cfs
  cfs mount --server node1 -o ro /mnt/cfs                  later ones need no token
  claudefs  /mnt/claudefs  cfs  _netdev,nofail  0 0        in /etc/fstab

Options of -o: ro, noexec, suid, dev (off unless named), no_allow_other (only who mounts may enter), socket=PATH,
server=HOST[;HOST…], identity=DIR, token=TOKEN, cache-size=SIZE, timeout=TIME, log-file=FILE.

CFS_IO_BUFFER_POOL_SIZE is the memory for data: a quarter for what is written and not sent yet (else 64M),
the rest for the cache (else 256M, or --cache-size).

The mount is served in the background; its log is in /var/log/claudefs. CFS_LOG=debug makes it say more.")]
pub struct Mount {
    /// An existing directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// One-time enrolment token (`cfs admin token create`), for the network; a client of the node's own host
    /// needs none
    #[arg(long, env = "CFS_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Memory for the cache, such as 100M
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Size>,
    /// Mount options, separated by commas
    #[arg(short, value_name = "OPTIONS")]
    o: Vec<String>,
    /// Stay in the foreground and log to stderr
    #[arg(long)]
    foreground: bool,
    /// Log of the mount in the background
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    #[command(flatten)]
    from: Anywhere,
}

/// Mount ClaudeFS, called by mount(8) as `mount -t cfs SOURCE DIR` or from /etc/fstab
///
/// SOURCE is `claudefs` for the node of this host, the path of a node's Unix socket, or HOST[:PORT] of a
/// storage node of the network (several separated by commas).
#[derive(Debug, Parser)]
#[command(name = "mount.cfs", version)]
pub struct MountHelper {
    source: String,
    directory: PathBuf,
    /// Mount options, as of `cfs mount`
    #[arg(short, value_name = "OPTIONS")]
    o: Vec<String>,
    /// Do everything but mount
    #[arg(short)]
    fake: bool,
    /// Do not write /etc/mtab: there is none to write
    #[arg(short, hide = true)]
    n: bool,
    /// Say what is done
    #[arg(short)]
    verbose: bool,
    /// Tolerate unknown options
    #[arg(short)]
    sloppy: bool,
}

impl Mount {
    /// What `-o` says holds unless a flag says otherwise.
    fn merge(mut self) -> Result<(Mount, Flags), Failed> {
        let options = Options::parse(&self.o)?;
        let from = &mut self.from;
        from.socket = from.socket.take().or(options.socket);
        from.server = from.server.take().or(options.server);
        from.identity = from.identity.take().or(options.identity);
        if let Some(timeout) = options.timeout {
            from.timeout = timeout;
        }
        self.token = self.token.or(options.token);
        self.cache_size = self.cache_size.or(options.cache_size.map(Size));
        self.log_file = self.log_file.or(options.log_file);
        Ok((self, options.flags))
    }

    pub fn run(self) -> Result<Exit> {
        let (mut mount, flags) = self.merge()?;
        mount.directory = mountpoint(&mount.directory)?;
        if background::entered() {
            let default = logging::default_file(&mount.directory);
            logging::start(Some(mount.log_file.as_deref().unwrap_or(&default)))?;
            return Ok(serve::run(mount.plan(mount.from.place()?, flags, true)?)?);
        }
        let place = mount.enrol()?;
        if mount.foreground {
            logging::start(None)?;
            return Ok(serve::run(mount.plan(place, flags, false)?)?);
        }
        // Fails early, in the words of this process, when there is no server.
        place.endpoint()?;
        match background::start(&mount.arguments(&place, flags)?)? {
            Started::Ready => Ok(Exit::Ok),
            Started::Failed(code) => std::process::exit(i32::from(code)),
        }
    }

    /// Where to mount from. Gets a certificate for the token, if one was given and the network is meant: by
    /// --server, or by the token itself unless a socket is named.
    fn enrol(&self) -> Result<Place, Failed> {
        let Some(token) = &self.token else { return self.from.place() };
        let mut invitation: Invitation = token.parse().map_err(|error| {
            Failed::new(Exit::Usage, "TOKEN", format!("--token: {error}"))
                .next("make one on a node of the cluster: `cfs admin token create`")
        })?;
        if let Some(servers) = self.from.servers() {
            invitation.servers = servers;
        }
        if invitation.servers.is_empty()
            || (self.from.socket.is_some() && self.from.server.is_none())
        {
            eprintln!(
                "cfs: the token was not used: a client of the node's own host needs none \
                 (with --server HOST it would enrol)"
            );
            return self.from.place();
        }
        let identity = identity::directory(self.from.identity.as_deref())?;
        identity::enrol(&identity, &invitation, self.from.timeout)?;
        Ok(Place::Network { servers: Some(invitation.servers), identity })
    }

    fn plan(&self, place: Place, flags: Flags, background: bool) -> Result<Plan, Failed> {
        let mut options = MountOptions::new(&self.directory);
        if let Some(pool) = std::env::var_os(POOL_ENV).filter(|pool| !pool.is_empty()) {
            let pool = pool.to_string_lossy().parse::<Size>().map_err(|why| {
                Failed::new(Exit::Usage, "POOL_SIZE", format!("{POOL_ENV}: {why}"))
            })?;
            options = options.with_data_bytes(pool.0);
        }
        if let Some(Size(bytes)) = self.cache_size {
            options.cache_bytes = bytes;
        }
        flags.apply(&mut options);
        Ok(Plan { place, options, timeout: self.from.timeout, background })
    }

    /// The command line of the process in the background: all that was decided here, without the token.
    fn arguments(&self, place: &Place, flags: Flags) -> Result<Vec<OsString>, Failed> {
        let absolute = |path: &Path| {
            mounts::lexical(path).map(PathBuf::into_os_string).map_err(|error| {
                Failed::new(Exit::Failed, "PATH", format!("{}: {error}", path.display()))
            })
        };
        let mut arguments: Vec<OsString> = vec!["mount".into(), "--timeout".into()];
        arguments.push(format!("{}ms", self.from.timeout.as_millis()).into());
        match place {
            Place::Socket(socket) => arguments.extend(["--socket".into(), absolute(socket)?]),
            Place::Network { servers, identity } => {
                if let Some(servers) = servers {
                    arguments.extend(["--server".into(), servers.join(",").into()]);
                }
                arguments.extend(["--identity".into(), absolute(identity)?]);
            }
        }
        if let Some(Size(bytes)) = self.cache_size {
            arguments.extend(["--cache-size".into(), bytes.to_string().into()]);
        }
        if let Some(path) = &self.log_file {
            arguments.extend(["--log-file".into(), absolute(path)?]);
        }
        arguments.extend(["-o".into(), flags.to_string().into()]);
        arguments.extend(["--".into(), self.directory.clone().into_os_string()]);
        Ok(arguments)
    }
}

impl MountHelper {
    pub fn run(self) -> Result<Exit> {
        let known = |option: &&str| Options::parse(&[(*option).to_owned()]).is_ok();
        let options = self.o.iter().flat_map(|text| text.split(','));
        let o: Vec<String> = if self.sloppy {
            options.filter(known).map(str::to_owned).collect()
        } else {
            options.map(str::to_owned).collect()
        };
        let mut from = Anywhere {
            socket: None,
            server: None,
            identity: None,
            timeout: Duration::from_secs(30),
        };
        source(&self.source, &mut from);
        let mount = Mount {
            directory: self.directory,
            token: None,
            cache_size: None,
            o,
            foreground: false,
            log_file: None,
            from,
        };
        if self.verbose {
            eprintln!("mount.cfs: {} on {}", self.source, mount.directory.display());
        }
        if self.fake {
            let (mount, _) = mount.merge()?;
            mountpoint(&mount.directory)?;
            return Ok(Exit::Ok);
        }
        mount.run()
    }
}

/// What the first column of fstab means.
fn source(source: &str, from: &mut Anywhere) {
    match source {
        "claudefs" | "cfs" | "none" | "local" => {}
        path if path.contains('/') => from.socket = Some(path.into()),
        server => from.server = Some(server.into()),
    }
}

/// The directory without links, if something can be mounted there.
fn mountpoint(directory: &Path) -> Result<PathBuf, Failed> {
    let path = directory.display();
    let table = mounts::read().map_err(|error| {
        Failed::new(Exit::Failed, "MOUNT_TABLE", format!("cannot read the mount table: {error}"))
    })?;
    let busy = |at: &Path| {
        let mount = mounts::at(&table, at).filter(|mount| mount.is_ours())?;
        let what = format!("cannot mount on {path}: busy: {} is mounted there", mount.source);
        let next = format!("cfs umount {path}");
        Some(Failed::new(Exit::Precondition, "MOUNTPOINT_BUSY", what).next(next))
    };
    // Before anything touches it: a mount whose process died answers nothing but ENOTCONN.
    if let Some(failed) = mounts::lexical(directory).ok().and_then(|plain| busy(&plain)) {
        return Err(failed);
    }
    let real = directory.canonicalize().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let what = format!("cannot mount on {path}: there is no such directory");
            Failed::new(Exit::NotFound, "MOUNTPOINT_MISSING", what).next(format!("mkdir -p {path}"))
        }
        _ => Failed::new(Exit::Failed, "MOUNTPOINT", format!("cannot mount on {path}: {error}")),
    })?;
    if let Some(failed) = busy(&real) {
        return Err(failed);
    }
    match fs::metadata(&real) {
        Ok(found) if found.is_dir() => Ok(real),
        Ok(_) => {
            let what = format!("cannot mount on {path}: it is not a directory");
            Err(Failed::new(Exit::Failed, "MOUNTPOINT", what))
        }
        Err(error) => {
            let what = format!("cannot mount on {path}: {error}");
            Err(Failed::new(Exit::Failed, "MOUNTPOINT", what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        mount: Mount,
    }

    fn parse(arguments: &[&str]) -> Result<(Mount, Flags), Failed> {
        Line::try_parse_from([&["cfs"], arguments].concat()).unwrap().mount.merge()
    }

    #[test]
    fn flags_win_over_options() {
        let (mount, flags) = parse(&[
            "-o",
            "ro,cache-size=1M,server=a",
            "-o",
            "timeout=5s,log-file=/l",
            "--cache-size",
            "2M",
            "/mnt",
        ])
        .unwrap();
        assert!(flags.read_only);
        assert_eq!(mount.cache_size, Some(Size(2 << 20)));
        assert_eq!(mount.from.server.as_deref(), Some("a"));
        assert_eq!(mount.from.timeout, Duration::from_secs(5));
        assert_eq!(mount.log_file.as_deref(), Some(Path::new("/l")));
        assert!(parse(&["-o", "colour", "/mnt"]).is_err());
    }

    #[test]
    fn the_background_gets_everything_but_the_token() {
        let arguments = ["--token", "cfs1-secret", "--socket", "s", "--cache-size", "1M", "/mnt/a"];
        let (mount, mut flags) = parse(&arguments).unwrap();
        flags.read_only = true;
        flags.noexec = true;
        let place = Place::Socket("s".into());
        let passed = mount.arguments(&place, flags).unwrap();
        let passed: Vec<_> = passed.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        assert!(!passed.iter().any(|argument| argument.contains("secret")), "{passed:?}");
        let socket = passed.iter().find(|argument| argument.ends_with("/s")).unwrap();
        assert!(socket.starts_with('/'));
        assert_eq!(passed.last().unwrap(), "/mnt/a");
        let again: Vec<&str> = passed.iter().skip(1).map(String::as_str).collect();
        let (mount, again) = parse(&again).unwrap();
        assert_eq!(again, flags);
        assert_eq!(mount.cache_size, Some(Size(1 << 20)));
    }

    #[test]
    fn sources_of_fstab() {
        let meant = |of: &str| {
            let mut from = parse(&["/mnt"]).unwrap().0.from;
            (from.socket, from.server) = (None, None);
            source(of, &mut from);
            (from.socket, from.server)
        };
        assert_eq!(meant("claudefs"), (None, None));
        assert_eq!(meant("/run/x.sock"), (Some("/run/x.sock".into()), None));
        assert_eq!(meant("node1:9400"), (None, Some("node1:9400".into())));
    }

    #[test]
    fn a_mountpoint_is_an_existing_directory() {
        let directory = tempfile::tempdir().unwrap();
        let missing = mountpoint(&directory.path().join("none")).unwrap_err();
        assert_eq!((missing.exit, missing.code.as_str()), (Exit::NotFound, "MOUNTPOINT_MISSING"));
        let file = directory.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(mountpoint(&file).unwrap_err().what.contains("not a directory"));
        assert_eq!(mountpoint(directory.path()).unwrap(), directory.path().canonicalize().unwrap());
    }
}
