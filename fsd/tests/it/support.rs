//! A node in a directory, clients of it, and files through them. Every wait is for a condition and long.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fsd_rpc::message::{ChunkPut, Failure, Request, Response};
use fsd_rpc::{CallError, Client, ConnectOptions, Endpoint};
use raftmeta_types::command::{AttrChange, Create, NewExtent, Rename, RenameMode, Unlink, Write};
use raftmeta_types::{
    ChunkHash, Command as Meta, Epoch, ExtentData, FileKind, Ino, Inode, MetaError, Reply,
};
use tempfile::TempDir;

/// Longer than anything takes on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the condition gives something.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The block daemon is a binary of another package, which these tests do not depend on.
fn build_blockd() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let beside = Path::new(env!("CARGO_BIN_EXE_fsd")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "blockd", "--bin", "blockd"]);
        if beside.file_name().is_some_and(|name| name == "release") {
            cargo.arg("--release");
        }
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        cargo.arg("--manifest-path").arg(manifest);
        cargo.arg("--target-dir").arg(beside.parent().unwrap());
        assert!(cargo.stdin(Stdio::null()).status().unwrap().success(), "blockd does not build");
    });
}

/// What differs between the nodes of tests.
#[derive(Clone, Copy)]
pub struct Shape {
    pub pool_mib: u64,
    pub shards: u32,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { pool_mib: 256, shards: 4 }
    }
}

/// A node. Killed with its block daemon when dropped.
pub struct Node {
    pub dir: TempDir,
    /// Of its processes, beside that of the test.
    pub environment: Vec<(&'static str, String)>,
    fsd: Option<Child>,
    pub ready: String,
    log: Mutex<Option<std::thread::JoinHandle<String>>>,
}

impl Node {
    pub fn start() -> Node {
        Node::shaped(Shape::default())
    }

    pub fn shaped(shape: Shape) -> Node {
        let mut node = Node::prepared(shape);
        node.restart();
        node
    }

    /// The directory with its configuration; nothing runs.
    pub fn prepared(shape: Shape) -> Node {
        build_blockd();
        let dir = tempfile::Builder::new().prefix("fsd").tempdir_in("/tmp").unwrap();
        let Shape { pool_mib, shards } = shape;
        let text = format!(
            "[node]\nname = 'n'\ndata_dir = 'data'\n[cluster]\nname = 'test'\n\
             shard_count = {shards}\n[door]\nunix = 'fsd.sock'\n[blockd]\nsocket = 'b.sock'\n\
             pool = {{ path = 'pool', size = '{pool_mib}MiB' }}\n\
             [metrics]\nlisten = '127.0.0.1:0'\n"
        );
        std::fs::write(dir.path().join("node.toml"), text).unwrap();
        Node {
            dir,
            environment: Vec::new(),
            fsd: None,
            ready: String::new(),
            log: Mutex::default(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fsd"));
        command.arg("--config").arg(self.path("node.toml")).stdin(Stdio::null());
        command.env_remove("NOTIFY_SOCKET").envs(self.environment.iter().cloned());
        command
    }

    /// Starts it and waits until it is ready.
    pub fn restart(&mut self) {
        assert!(self.fsd.is_none());
        let mut child =
            self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let errors = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || std::io::read_to_string(errors).unwrap_or_default());
        let mut out = BufReader::new(child.stdout.take().unwrap());
        self.fsd = Some(child);
        *self.log.lock().unwrap() = Some(log);
        self.ready.clear();
        out.read_line(&mut self.ready).unwrap();
        if !self.ready.contains("is ready") {
            let status = self.fsd.as_mut().unwrap().wait().unwrap();
            panic!("the node did not start ({status}): {}", self.log());
        }
    }

    /// What it said, after its end.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap().take();
        log.map(|log| log.join().unwrap()).unwrap_or_default()
    }

    /// Starts it in the expectation that it refuses; what it says.
    pub fn refusal(&self) -> String {
        let output = self.command().output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn pid(&self) -> u32 {
        self.fsd.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        send(self.pid(), signal);
    }

    /// Ends in order.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        let status = self.fsd.take().unwrap().wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        status
    }

    /// As `kill -9` of the server alone.
    pub fn kill(&mut self) {
        let mut child = self.fsd.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A block daemon on the node's pool that takes no notice of its server.
    pub fn stray_blockd(&self) -> Child {
        let program = Path::new(env!("CARGO_BIN_EXE_fsd")).with_file_name("blockd");
        let mut command = Command::new(program);
        command.arg("--config").arg(self.path("data/blockd.toml"));
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        until("the block daemon listens", || {
            std::os::unix::net::UnixStream::connect(self.path("b.sock")).ok()
        });
        child
    }

    /// Process of the block daemon under this server.
    pub fn blockd_pid(&self) -> Option<u32> {
        let wanted = self.path("data/blockd.toml");
        std::fs::read_dir("/proc").unwrap().find_map(|entry| {
            let entry = entry.ok()?;
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0);
            let name = words.next()?;
            (name.ends_with(b"blockd")
                && words.any(|word| word == wanted.as_os_str().as_encoded_bytes()))
            .then_some(pid)
        })
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path("fsd.sock"))
    }

    pub fn client(&self) -> Client {
        let options = ConnectOptions {
            client: "test:/mnt".into(),
            deadline: PATIENCE,
            ..ConnectOptions::default()
        };
        Client::connect(self.endpoint(), options).unwrap()
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> String {
        use std::io::{Read, Write};
        let address = self.ready.split("http://").nth(1).unwrap().trim();
        let address = address.strip_suffix("/metrics").unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

pub fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.fsd.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // It ends by itself when its server is gone; the directory goes only after it.
        while let Some(pid) = self.blockd_pid() {
            let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            eprintln!("the node said:\n{}", self.log());
        }
    }
}

pub fn hash(bytes: &[u8]) -> ChunkHash {
    ChunkHash(*blake3::hash(bytes).as_bytes())
}

/// Bytes that do not compress: the same for the same seed, others for another.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| step()).take(len).collect()
}

/// What tests do with files, in few words.
pub trait Files {
    fn make(&self, parent: Ino, name: &str, kind: FileKind) -> Inode;
    fn remove(&self, parent: Ino, name: &str) -> Result<Reply, CallError>;
    fn rename(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<Reply, CallError>;
    fn find(&self, parent: Ino, name: &str) -> Option<Inode>;
    fn names(&self, ino: Ino) -> Vec<String>;
    fn put(&self, bytes: &[u8]) -> Result<(ChunkHash, Epoch), CallError>;
    fn write_chunk(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<Inode, CallError>;
    fn write_inline(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Inode;
    fn read(&self, ino: Ino) -> Vec<u8>;
    fn open(&self, ino: Ino) -> Result<Inode, CallError>;
    fn close(&self, ino: Ino);
}

/// Asks again while the answer says that the metadata group has refused nothing but the moment.
impl Files for Client {
    fn make(&self, parent: Ino, name: &str, kind: FileKind) -> Inode {
        let create = Create {
            parent,
            name: Bytes::copy_from_slice(name.as_bytes()),
            kind,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            exclusive: true,
            open: false,
        };
        match self.mutate(false, Meta::Create(create)).unwrap() {
            Reply::Created { inode, new: true, .. } => inode,
            other => panic!("{other:?}"),
        }
    }

    fn remove(&self, parent: Ino, name: &str) -> Result<Reply, CallError> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let unlink = Unlink { parent, name, directory: false, open_by: vec![] };
        self.mutate(false, Meta::Unlink(unlink))
    }

    fn rename(&self, from: (Ino, &str), to: (Ino, &str)) -> Result<Reply, CallError> {
        let rename = Rename {
            parent: from.0,
            name: Bytes::copy_from_slice(from.1.as_bytes()),
            new_parent: to.0,
            new_name: Bytes::copy_from_slice(to.1.as_bytes()),
            mode: RenameMode::Replace,
            open_by: vec![],
        };
        self.mutate(false, Meta::Rename(rename))
    }

    fn find(&self, parent: Ino, name: &str) -> Option<Inode> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        match self.call(&Request::Lookup { parent, name }, &[]) {
            Ok((Response::Inode(inode), _)) => Some(inode),
            Err(CallError::Failure(Failure::Meta(MetaError::NotFound))) => None,
            other => panic!("{other:?}"),
        }
    }

    fn names(&self, ino: Ino) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let after = names.last().map_or_else(Bytes::new, |name| name.clone().into());
            let request = Request::ReadDir { ino, after, limit: 3 };
            match self.call(&request, &[]).unwrap().0 {
                Response::Entries { entries, end } => {
                    for entry in entries {
                        assert_eq!(entry.inode.ino, entry.ino);
                        assert_eq!(entry.inode.kind, entry.kind);
                        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                    }
                    if end {
                        return names;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn put(&self, bytes: &[u8]) -> Result<(ChunkHash, Epoch), CallError> {
        let hash = hash(bytes);
        let chunks = vec![ChunkPut { hash, len: bytes.len() as u32 }];
        match self.call(&Request::PutChunks { chunks }, &[bytes])?.0 {
            Response::Receipts(receipts) => Ok((hash, receipts[0])),
            other => panic!("{other:?}"),
        }
    }

    fn write_chunk(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<Inode, CallError> {
        loop {
            let (hash, receipt) = self.put(bytes)?;
            let data = ExtentData::Chunk { hash, chunk_offset: 0 };
            let extent = NewExtent { offset, len: bytes.len() as u32, data, receipt };
            let write = Write { ino, extents: vec![extent], change: AttrChange::default() };
            match self.mutate(true, Meta::Write(write)) {
                Ok(Reply::Content { inode, .. }) => return Ok(inode),
                Err(CallError::Failure(Failure::Meta(MetaError::RetryPut(_)))) => {}
                Err(error) => return Err(error),
                other => panic!("{other:?}"),
            }
        }
    }

    fn write_inline(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Inode {
        let data = ExtentData::Inline(Bytes::copy_from_slice(bytes));
        let extent = NewExtent { offset, len: bytes.len() as u32, data, receipt: Epoch(0) };
        let write = Write { ino, extents: vec![extent], change: AttrChange::default() };
        match self.mutate(true, Meta::Write(write)).unwrap() {
            Reply::Content { inode, .. } => inode,
            other => panic!("{other:?}"),
        }
    }

    fn read(&self, ino: Ino) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut at = 0;
        loop {
            let len = u64::MAX;
            let request =
                Request::Extents { ino, offset: at, len, with_chunks: true, chunk_bytes_max: 4096 };
            let (answer, _) = self.call(&request, &[]).unwrap();
            let Response::Extents { inode, extents, end, .. } = answer else {
                panic!("{answer:?}")
            };
            bytes.resize(inode.size as usize, 0);
            for extent in extents {
                let target = &mut bytes[extent.offset as usize..][..extent.len as usize];
                match extent.data {
                    ExtentData::Zero => {}
                    ExtentData::Inline(data) => target.copy_from_slice(&data),
                    ExtentData::Chunk { hash: name, chunk_offset } => {
                        let request = Request::GetChunks { hashes: vec![name] };
                        let (_, data) = self.call(&request, &[]).unwrap();
                        assert_eq!(hash(&data), name);
                        let from = chunk_offset as usize;
                        target.copy_from_slice(&data[from..from + extent.len as usize]);
                    }
                }
            }
            at = end;
            if end >= inode.size {
                return bytes;
            }
        }
    }

    fn open(&self, ino: Ino) -> Result<Inode, CallError> {
        match self.call(&Request::Open { ino }, &[])?.0 {
            Response::Inode(inode) => Ok(inode),
            other => panic!("{other:?}"),
        }
    }

    fn close(&self, ino: Ino) {
        self.call(&Request::Close { inos: vec![ino] }, &[]).unwrap();
    }
}

/// The refusal of the metadata group, if the call was refused.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, CallError>) -> MetaError {
    match answer {
        Err(CallError::Failure(Failure::Meta(error))) => error,
        other => panic!("not refused: {other:?}"),
    }
}
