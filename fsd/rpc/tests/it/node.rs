//! A storage node as the tests need one: sessions with slots, and nothing else, in memory. What a real
//! node keeps in its metadata is in [`Store`] and outlives a restart.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fsd_rpc::client::{ConnectOptions, Endpoint};
use fsd_rpc::message::{
    Enrolment, Event, Failure, Hello, Limits, Request, Response, Role, Welcome,
};
use fsd_rpc::server::{Conn, Control, Handler, Peer, Server, ServerConfig};
use fsd_rpc::tls::{CaFingerprint, Facts, Identity, server_config};
use fsd_rpc::token::{Invitation, Token};
use parking_lot::Mutex;
use raftmeta_types::{Command, Ino, MetaError, Reply, SessionId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PublicKeyData,
};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// The certificate authority of a test's cluster.
pub struct Ca {
    pub pem: String,
    pub fingerprint: CaFingerprint,
    issuer: Issuer<'static, KeyPair>,
    next_serial: Mutex<u64>,
}

/// From when, in days from today, and for how many.
#[derive(Clone, Copy)]
pub struct Days {
    pub from: i32,
    pub count: u32,
}

pub const GOOD: Days = Days { from: -1, count: 100 };
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Ca {
    pub fn new(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Ca {
            pem: certificate.pem(),
            fingerprint: CaFingerprint::of(certificate.der()),
            issuer: Issuer::new(params, key),
            next_serial: Mutex::new(1),
        }
    }

    fn sign(&self, subject: &str, key: &impl PublicKeyData, days: Days, server: bool) -> String {
        let names = if server { vec!["claudefs".to_owned()] } else { vec![] };
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        let today = std::time::SystemTime::now();
        let from = match days.from {
            past @ ..0 => today - DAY * past.unsigned_abs(),
            future => today + DAY * future.unsigned_abs(),
        };
        params.not_before = from.into();
        params.not_after = (from + DAY * days.count).into();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let mut serial = self.next_serial.lock();
        params.serial_number = Some((*serial).into());
        *serial += 1;
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    pub fn identity(&self, subject: &str, days: Days) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity {
            certificate_pem: self.sign(subject, &key, days, subject.starts_with("node:")),
            key_pem: key.serialize_pem().into(),
            ca_pem: self.pem.clone(),
        }
    }

    fn answer(&self, csr: &[u8], subject: &str, days: Days) -> Result<Response, Failure> {
        let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into())
            .map_err(|error| Failure::Refused(error.to_string()))?;
        Ok(Response::Enrolled {
            certificate_pem: self.sign(subject, &csr.public_key, days, false),
            ca_pem: self.pem.clone(),
            cluster_uuid: CLUSTER,
            cluster_name: "test".into(),
        })
    }
}

pub const CLUSTER: uuid::Uuid = uuid::Uuid::from_u128(42);

#[derive(Default)]
pub struct Session {
    secret: [u8; 16],
    slots: HashMap<u16, (u64, Reply)>,
    pub open: Vec<Ino>,
}

/// What outlives a restart of the node.
#[derive(Default)]
pub struct Store {
    pub sessions: HashMap<SessionId, Session>,
    next_session: u64,
    /// Serials of the `RevokeCertificate` commands that were applied, the tests' mutation.
    pub applied: Vec<u64>,
    pub greetings: u64,
    pub revoked: HashSet<u64>,
    /// Hash and uses left.
    pub tokens: HashMap<[u8; 32], u32>,
    pub subscribers: Vec<mpsc::Sender<Event>>,
    pub disconnected: u64,
    pub lock_held: bool,
    /// `LockWait`s under way.
    pub waiting: u64,
    /// Days that a certificate issued from now on has.
    pub certificate_days: Option<u32>,
    /// Pretend to be another cluster.
    pub other_cluster: bool,
    /// Do the next mutation, then forget every session and ask the client to come again.
    pub lose_next: bool,
    /// Answer `NotReady` so many times.
    pub not_ready: u32,
}

pub struct Service {
    pub store: Arc<Mutex<Store>>,
    pub ca: Arc<Ca>,
    lease_ms: u32,
}

impl Service {
    fn open_session(&self, store: &mut Store) -> SessionId {
        store.next_session += 1;
        let id = SessionId(store.next_session);
        let secret = [store.next_session as u8; 16];
        store.sessions.insert(id, Session { secret, ..Session::default() });
        id
    }

    fn mutate(&self, conn: &Conn, slot: u16, seq: u64, reply: Reply, serial: u64) -> Response {
        let mut store = self.store.lock();
        let Some(session) = store.sessions.get_mut(&conn.session) else {
            return Response::Failed(MetaError::SessionExpired.into());
        };
        match session.slots.get(&slot) {
            Some((last, reply)) if *last == seq => return Response::Reply(reply.clone()),
            Some((last, _)) if *last > seq => {
                return Response::Failed(MetaError::OutOfSequence.into());
            }
            Some(_) | None => {}
        }
        session.slots.insert(slot, (seq, reply.clone()));
        store.applied.push(serial);
        if std::mem::take(&mut store.lose_next) {
            store.sessions.clear();
            return Response::Failed(Failure::NotReady("restarting".into()));
        }
        Response::Reply(reply)
    }
}

/// Counts a `LockWait` until it is answered or dropped.
struct Waiting(Arc<Mutex<Store>>);

impl Waiting {
    fn new(store: &Arc<Mutex<Store>>) -> Waiting {
        store.lock().waiting += 1;
        Waiting(store.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Handler for Service {
    fn admits(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Tls { certificate, .. } => {
                !self.store.lock().revoked.contains(&certificate.serial)
            }
            Peer::Unix { .. } | Peer::TlsAnonymous { .. } => panic!("asked about {peer:?}"),
        }
    }

    async fn hello(&self, peer: &Peer, hello: &Hello) -> Result<Welcome, Failure> {
        assert!(!matches!(peer, Peer::TlsAnonymous { .. }));
        let mut store = self.store.lock();
        store.greetings += 1;
        let (session, resumed) = match &hello.role {
            Role::NewSession { .. } => (self.open_session(&mut store), false),
            Role::Session { session, secret, open, .. } => match store.sessions.get_mut(session) {
                Some(known) if known.secret != *secret => {
                    return Err(Failure::Refused("wrong secret".into()));
                }
                Some(known) => {
                    known.open = open.clone();
                    (*session, true)
                }
                None => (self.open_session(&mut store), false),
            },
            Role::Admin => (SessionId::SERVER, false),
            Role::Enrol | Role::Node { .. } | Role::Relayed { .. } => unreachable!(),
        };
        let secret = store.sessions.get(&session).map_or([0; 16], |s| s.secret);
        let limits = Limits {
            shard_count: 16,
            chunk_min: 16 << 10,
            chunk_avg: 64 << 10,
            chunk_max: 256 << 10,
            inline_max: 16 << 10,
            lease_ms: self.lease_ms,
        };
        Ok(Welcome {
            protocol: 0,
            build: "test".into(),
            cluster_uuid: if store.other_cluster { uuid::Uuid::nil() } else { CLUSTER },
            cluster_name: "test".into(),
            session,
            secret,
            resumed,
            limits,
            servers: Vec::new(),
            signer: None,
            signs_alone: false,
        })
    }

    async fn enrol(&self, _: &Peer, enrolment: Enrolment) -> Result<Response, Failure> {
        let refused = |why: String| Failure::Refused(why);
        let token: Token = enrolment.token.parse().map_err(|e| refused(format!("{e}")))?;
        let mut store = self.store.lock();
        match store.tokens.get_mut(&token.hash()) {
            None => return Err(refused("unknown token".into())),
            Some(0) => return Err(refused("token is used up".into())),
            Some(uses) => *uses -= 1,
        }
        let days = Days { count: store.certificate_days.unwrap_or(GOOD.count), ..GOOD };
        self.ca.answer(&enrolment.csr_der, &format!("client:{}", enrolment.name), days)
    }

    async fn renew(&self, certificate: &Facts, csr_der: Bytes) -> Result<Response, Failure> {
        self.ca.answer(&csr_der, &certificate.subject, GOOD)
    }

    async fn call(&self, conn: &Conn, request: Request, data: Bytes) -> (Response, Vec<Bytes>) {
        {
            let mut store = self.store.lock();
            if store.not_ready > 0 {
                store.not_ready -= 1;
                return (Response::Failed(Failure::NotReady("electing".into())), vec![]);
            }
        }
        let known = self.store.lock().sessions.contains_key(&conn.session);
        let response = match request {
            Request::Ping if !known => Response::Failed(MetaError::SessionExpired.into()),
            Request::Ping | Request::Sync => Response::Done,
            Request::Mutate {
                slot, seq, command: Command::RevokeCertificate { serial }, ..
            } => {
                let count = u32::try_from(serial).unwrap();
                self.mutate(conn, slot, seq, Reply::Settled { count }, serial)
            }
            Request::LockWait { slot, seq, lock, wait_ms } => {
                let until = Instant::now() + Duration::from_millis(wait_ms.into());
                let _waiting = Waiting::new(&self.store);
                while std::mem::replace(&mut self.store.lock().lock_held, true) {
                    if Instant::now() >= until {
                        return (Response::Failed(Failure::Timeout), vec![]);
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                self.mutate(conn, slot, seq, Reply::Done, lock.ino.0)
            }
            // Echoes the data part.
            Request::PutChunks { .. } => return (Response::Receipts(vec![]), vec![data]),
            // As many parts as there are hashes, 100 KB each.
            Request::GetChunks { hashes } => {
                let parts = hashes.iter().map(|hash| Bytes::from(vec![hash.0[0]; 100_000]));
                return (Response::Chunks(vec![]), parts.collect());
            }
            Request::Goodbye => {
                self.store.lock().sessions.remove(&conn.session);
                Response::Done
            }
            _ => Response::Failed(Failure::Protocol("not in this test".into())),
        };
        (response, vec![])
    }

    fn subscribe(&self, _: &Conn) -> Result<mpsc::Receiver<Event>, Failure> {
        let (sender, receiver) = mpsc::channel(16);
        self.store.lock().subscribers.push(sender);
        Ok(receiver)
    }

    fn disconnected(&self, _: &Conn) {
        self.store.lock().disconnected += 1;
    }
}

/// A running node. Stops when dropped.
pub struct Node {
    pub store: Arc<Mutex<Store>>,
    pub ca: Arc<Ca>,
    pub socket: PathBuf,
    pub address: SocketAddr,
    pub control: Control,
    lease_ms: u32,
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    task: Option<tokio::task::JoinHandle<()>>,
    _dir: Arc<tempfile::TempDir>,
}

impl Node {
    pub fn start() -> Node {
        Node::start_with(30_000)
    }

    pub fn start_with(lease_ms: u32) -> Node {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let ca = Arc::new(Ca::new("ClaudeFS test"));
        Node::launch(Arc::default(), ca, dir, lease_ms, own_address())
    }

    fn launch(
        store: Arc<Mutex<Store>>,
        ca: Arc<Ca>,
        dir: Arc<tempfile::TempDir>,
        lease_ms: u32,
        address: SocketAddr,
    ) -> Node {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let socket = dir.path().join("fsd.sock");
        let tls = server_config(&ca.identity("node:1", GOOD)).unwrap();
        let config = ServerConfig {
            protocols: fsd_rpc::message::PROTOCOLS,
            unix: Some(socket.clone()),
            allowed_uids: vec![],
            tcp: Some((address, tls)),
        };
        let server = runtime.block_on(Server::bind(config)).unwrap();
        let address = server.tcp_address().unwrap();
        let control = server.control();
        let (stop, stopped) = watch::channel(false);
        let service = Service { store: store.clone(), ca: ca.clone(), lease_ms };
        let task = Some(runtime.spawn(server.run(Arc::new(service), stopped)));
        let runtime = Some(runtime);
        Node { store, ca, socket, address, control, lease_ms, runtime, stop, task, _dir: dir }
    }

    /// Stops the node in order, as SIGTERM would; its store stays.
    pub fn stop(&mut self) {
        self.stop.send_replace(true);
        if let (Some(runtime), Some(task)) = (&self.runtime, self.task.take()) {
            runtime.block_on(task).unwrap();
        }
        self.kill();
    }

    /// Stops the node in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }

    /// The same node, started again on the same socket and port.
    pub fn restart(&mut self) {
        self.kill();
        let (store, ca) = (self.store.clone(), self.ca.clone());
        let next = Node::launch(store, ca, self._dir.clone(), self.lease_ms, self.address);
        *self = next;
    }

    pub fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.socket.clone())
    }

    pub fn tcp(&self, subject: &str) -> Endpoint {
        Endpoint::Tcp { addrs: vec![self.address], identity: self.ca.identity(subject, GOOD) }
    }

    /// A token that the node knows.
    pub fn invite(&self, uses: u32) -> Invitation {
        let mut store = self.store.lock();
        let token = Token::new(
            fsd_rpc::token::Purpose::Client,
            [store.tokens.len() as u8 + 1; 16],
            self.ca.fingerprint,
        );
        store.tokens.insert(token.hash(), uses);
        Invitation { token, servers: vec![self.address.to_string()] }
    }
}

/// An address of the loopback network that no other test uses, so that a restarted node finds its port
/// free.
fn own_address() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let count = COUNT.fetch_add(1, Ordering::Relaxed) % 250 + 1;
    SocketAddr::from(([127, 64 | high & 63, low, count], 0))
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Long enough for any machine; nothing waits this long unless it is broken.
pub const LONG: Duration = Duration::from_secs(120);

pub fn options() -> ConnectOptions {
    ConnectOptions { client: "test".into(), deadline: LONG, ..ConnectOptions::default() }
}

/// The tests' mutation; its reply is [`counted`].
pub fn change(number: u64) -> Command {
    Command::RevokeCertificate { serial: number }
}

pub fn counted(number: u64) -> Reply {
    Reply::Settled { count: u32::try_from(number).unwrap() }
}

/// Polls until it is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < until, "waited {LONG:?} for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
