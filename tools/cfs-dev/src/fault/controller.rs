//! The fault controller: a process of a cluster (`cfs-dev up --phase 3`) that does one thing at a time.
//!
//! It is asked over `DIR/controller/sock`, a JSON document of one line each way. A run or an accident goes on until its
//! end, or until the one who asked goes away, unless that one detached it: then it is ended by `heal`. The cluster's
//! lock is held meanwhile, and only then.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::inflict::Faults;
use super::run::{self, Order, Report};
use super::{Kind, Stop, plan};
use crate::cluster::{Cluster, Options};
use crate::error::{self, Doing, Error, Result};

/// A longer line is no request.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// One who connects and says nothing is let go.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// A controller that does not say how it is for so long hangs.
const STATUS_WITHIN: Duration = Duration::from_secs(5);
/// How soon it is seen that the one who asked is gone, and that the cluster is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const GONE_EVERY: Duration = Duration::from_secs(1);

/// What it may be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Run {
        order: Order,
        /// Answer at once, and go on when the one who asked is gone.
        detach: bool,
        /// How long each step may take.
        limit_secs: u64,
    },
    Inject {
        kind: Kind,
        /// Whom it meets; the seed's choice if nobody is named.
        members: Vec<String>,
        seed: u64,
        lasts_ms: u64,
        limit_secs: u64,
    },
    /// Ends what is under way, undoes what is left and waits until all is well.
    Heal {
        limit_secs: u64,
    },
    Status,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Started,
    /// Of a run.
    Report(Box<Report>),
    /// What is wrong after one accident.
    Findings(Vec<String>),
    Healed,
    Status(Status),
    Refused(Error),
}

/// How it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Nothing while it waits to be asked.
    pub job: Option<UnderWay>,
}

/// A run or an accident under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    /// What it was asked for.
    pub what: String,
    /// What it does just now.
    pub now: String,
    pub since_secs: u64,
}

/// Where everything of the controller of a cluster is.
pub fn directory(cluster: &Path) -> PathBuf {
    cluster.join("controller")
}

pub fn log(cluster: &Path) -> PathBuf {
    directory(cluster).join("log")
}

fn socket(cluster: &Path) -> PathBuf {
    directory(cluster).join("sock")
}

/// Directories of its runs.
pub fn runs(cluster: &Path) -> PathBuf {
    directory(cluster).join("runs")
}

/// Asks the controller of the cluster in this directory.
pub fn ask(cluster: &Path, request: &Request) -> Result<Asked> {
    let path = socket(cluster);
    let mut stream = UnixStream::connect(&path).map_err(|error| {
        let what = format!("the fault controller does not answer at {}: {error}", path.display());
        Error::new(error::Kind::Precondition, what).next("cfs-dev up --phase 3")
    })?;
    let text = serde_json::to_string(request).expect("plain data always serialises") + "\n";
    stream.write_all(text.as_bytes()).doing(|| "cannot ask the fault controller".into())?;
    stream.set_read_timeout(Some(LOOK_EVERY)).doing(|| "cannot set a timeout".into())?;
    Ok(Asked { stream, text: Vec::new() })
}

/// A question on its way.
#[derive(Debug)]
pub struct Asked {
    stream: UnixStream,
    text: Vec<u8>,
}

impl Asked {
    /// The answer, if it is there within a moment.
    pub fn look(&mut self) -> Result<Option<Reply>> {
        let mut part = [0; 4096];
        match self.stream.read(&mut part) {
            Ok(0) => {}
            Ok(len) => {
                self.text.extend_from_slice(&part[..len]);
                return Ok(None);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).doing(|| "cannot hear the fault controller".into()),
        }
        match serde_json::from_slice(&self.text) {
            Ok(Reply::Refused(error)) => Err(error),
            Ok(reply) => Ok(Some(reply)),
            Err(error) if self.text.is_empty() => {
                let what = "the fault controller has ended".to_owned();
                tracing::debug!("{error}");
                Err(Error::new(error::Kind::Failed, what)
                    .next("cfs-dev up --phase 3 undoes what it has left; its log: cfs-dev logs controller"))
            }
            Err(error) => Err(error).doing(|| "an answer that makes no sense".into()),
        }
    }

    /// Waits for one that takes no time.
    fn soon(mut self) -> Result<Reply> {
        let since = Instant::now();
        while since.elapsed() < STATUS_WITHIN {
            if let Some(reply) = self.look()? {
                return Ok(reply);
            }
        }
        let what = "the fault controller does not answer";
        Err(Error::new(error::Kind::Timeout, what).next("cfs-dev logs controller"))
    }
}

/// Whether one answers.
pub fn answers(cluster: &Path) -> bool {
    status(cluster).is_ok()
}

pub fn status(cluster: &Path) -> Result<Status> {
    match ask(cluster, &Request::Status)?.soon()? {
        Reply::Status(status) => Ok(status),
        other => {
            let what =
                format!("the fault controller gave another answer than was asked for: {other:?}");
            Err(Error::new(error::Kind::Failed, what))
        }
    }
}

/// What is under way.
#[derive(Debug)]
struct Job {
    what: String,
    now: Mutex<String>,
    since: Instant,
    stop: Stop,
}

#[derive(Debug)]
struct Controller {
    /// With how long to wait as it was asked for.
    options: Options,
    job: Mutex<Option<Arc<Job>>>,
}

/// Serves until the cluster's directory is gone, or another one has taken its place.
pub fn serve(options: Options) -> Result<()> {
    let path = socket(&options.directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).doing(|| format!("cannot remove {}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener =
        UnixListener::bind(&path).doing(|| format!("cannot listen at {}", path.display()))?;
    let inode = |path: &Path| fs::metadata(path).map(|of| of.ino()).ok();
    let own = inode(&path);
    std::thread::spawn(move || {
        while inode(&path) == own {
            std::thread::sleep(GONE_EVERY);
        }
        tracing::info!("{} is gone, and so am I", path.display());
        std::process::exit(0);
    });
    let controller = Arc::new(Controller { options, job: Mutex::new(None) });
    tracing::info!("the fault controller is ready");
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let controller = Arc::clone(&controller);
                std::thread::spawn(move || controller.hear(stream));
            }
            Err(error) => {
                tracing::warn!("a connection failed: {error}");
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
    Ok(())
}

impl Controller {
    fn hear(self: Arc<Controller>, stream: UnixStream) {
        let reply = match read(&stream) {
            Ok(request) => self.answer(request, &stream).unwrap_or_else(Reply::Refused),
            Err(error) => {
                tracing::warn!("{}", error.what);
                Reply::Refused(error)
            }
        };
        let text = serde_json::to_string(&reply).expect("plain data always serialises") + "\n";
        // Who has gone does not want it any more.
        let _ = (&stream).write_all(text.as_bytes());
    }

    fn answer(self: &Arc<Controller>, request: Request, asker: &UnixStream) -> Result<Reply> {
        match request {
            Request::Status => Ok(Reply::Status(self.status())),
            Request::Heal { limit_secs } => self.heal(limit_secs),
            Request::Run { order, detach, limit_secs } => {
                let time = Duration::from_secs(order.seconds);
                let what = format!("run of {} s, seed {}", time.as_secs(), order.seed);
                let asker = (!detach).then_some(asker);
                self.work(what, limit_secs, asker, move |cluster, runs, job| {
                    let report = run::run(cluster, &order, runs, &job.stop, &job.now)?;
                    Ok(Reply::Report(Box::new(report)))
                })
            }
            Request::Inject { kind, members, seed, lasts_ms, limit_secs } => {
                let lasts = Duration::from_millis(lasts_ms);
                let what = format!("{kind} {}", members.join(" "));
                self.work(
                    what.trim().to_owned(),
                    limit_secs,
                    Some(asker),
                    move |cluster, _, job| {
                        let faults = Faults::new(cluster, &job.stop)?;
                        if let Some(why) = kind.impossible(faults.shape()) {
                            let what = format!("{kind} is not possible: {why}");
                            return Err(Error::new(error::Kind::Precondition, what));
                        }
                        let step = plan::one(kind, faults.shape(), &members, seed, lasts)?;
                        tracing::info!("{step}");
                        *job.now.lock() = step.to_string();
                        let suffered = faults.suffer(&step);
                        *job.now.lock() = "healing".into();
                        tracing::info!("healing");
                        let healed = faults.heal();
                        let findings = suffered?;
                        healed?;
                        tracing::info!("healed");
                        Ok(Reply::Findings(findings))
                    },
                )
            }
        }
    }

    fn status(&self) -> Status {
        let of = |job: &Arc<Job>| UnderWay {
            what: job.what.clone(),
            now: job.now.lock().clone(),
            since_secs: job.since.elapsed().as_secs(),
        };
        Status { job: self.job.lock().as_ref().map(of) }
    }

    fn open(&self, limit_secs: u64) -> Result<Cluster> {
        let limit = Duration::from_secs(limit_secs);
        Cluster::open(Options { limit, ..self.options.clone() })
    }

    /// Does something on a thread of its own, one at a time. Ends early when the one who asked goes away; without one,
    /// answers as soon as it is under way.
    fn work(
        self: &Arc<Controller>,
        what: String,
        limit_secs: u64,
        asker: Option<&UnixStream>,
        work: impl FnOnce(&Cluster, &Path, &Job) -> Result<Reply> + Send + 'static,
    ) -> Result<Reply> {
        let job = Arc::new(Job {
            what,
            now: Mutex::new("starting".into()),
            since: Instant::now(),
            stop: Stop::default(),
        });
        {
            let mut under_way = self.job.lock();
            if let Some(other) = &*under_way {
                let what = format!("the fault controller is at work: {}", other.what);
                return Err(Error::new(error::Kind::Precondition, what)
                    .next("cfs-dev fault status; cfs-dev fault heal ends it"));
            }
            *under_way = Some(Arc::clone(&job));
        }
        let (done, outcome) = std::sync::mpsc::channel();
        let (controller, of) = (Arc::clone(self), Arc::clone(&job));
        std::thread::spawn(move || {
            let runs = runs(&controller.options.directory);
            let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(&controller.open(limit_secs)?, &runs, &of)
            }));
            let worked = worked.unwrap_or_else(|_| {
                Err(Error::new(error::Kind::Failed, "the fault controller has a bug: see its log")
                    .next("cfs-dev logs controller, cfs-dev fault heal"))
            });
            if let Err(error) = &worked {
                tracing::error!("{}: {}", of.what, error.what);
            }
            *controller.job.lock() = None;
            // Nobody may wait for it.
            let _ = done.send(worked);
        });
        let Some(asker) = asker else { return Ok(Reply::Started) };
        loop {
            match outcome.recv_timeout(LOOK_EVERY) {
                Ok(worked) => return worked,
                Err(_) if !job.stop.is_set() && is_gone(asker) => {
                    tracing::info!("{}: nobody waits for it any more, it ends", job.what);
                    job.stop.set();
                }
                Err(_) => {}
            }
        }
    }

    fn heal(&self, limit_secs: u64) -> Result<Reply> {
        let since = Instant::now();
        if let Some(job) = self.job.lock().as_ref() {
            tracing::info!("{}: asked to end", job.what);
            job.stop.set();
        }
        while self.job.lock().is_some() {
            if since.elapsed() > Duration::from_secs(limit_secs) {
                let what = format!("what is under way has not ended within {limit_secs} s");
                return Err(Error::new(error::Kind::Timeout, what)
                    .next("cfs-dev fault status; more time: --timeout"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        let cluster = self.open(limit_secs)?;
        // What it finds undone it does: also the nodes that do not run.
        super::undo(&cluster)?;
        cluster.nodes().iter().try_for_each(crate::cluster::Node::launch)?;
        cluster.nodes().iter().try_for_each(crate::cluster::Node::start)?;
        cluster.settled()?;
        tracing::info!("healed");
        Ok(Reply::Healed)
    }
}

fn read(stream: &UnixStream) -> Result<Request> {
    stream.set_read_timeout(Some(REQUEST_WITHIN)).doing(|| "cannot set a timeout".into())?;
    let mut line = String::new();
    let read = BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line);
    read.doing(|| "a request cannot be read".into())?;
    serde_json::from_str(&line).map_err(|error| {
        let what = format!("a request is refused: {error}");
        Error::new(error::Kind::Usage, what).next("are both programs of one build?")
    })
}

/// Whether the other end has been closed.
fn is_gone(mut stream: &UnixStream) -> bool {
    let looks = stream.set_nonblocking(true);
    let read = stream.read(&mut [0; 64]);
    let back = stream.set_nonblocking(false);
    looks.is_err() || back.is_err() || matches!(read, Ok(0))
}
