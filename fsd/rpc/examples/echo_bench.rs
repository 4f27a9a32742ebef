//! What does a round trip through the door cost, and what does a byte?
//!
//! ```text
//! cargo run --release -p fsd-rpc --example echo_bench [SECONDS]
//! ```
//!
//! Rivals in the same run, alternating: the door over a Unix socket, the door over mutual TLS, and the floor
//! under the former, two threads that pass a message of the same size back and forth over a Unix
//! socket. Only ratios between them mean something on a busy machine.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fsd_rpc::client::{Client, ConnectOptions, Endpoint};
use fsd_rpc::message::{Enrolment, Event, Failure, Hello, Limits, Request, Response, Welcome};
use fsd_rpc::server::{Conn, Handler, Peer, Server, ServerConfig};
use fsd_rpc::tls::{Facts, Identity, server_config};
use raftmeta_types::{ChunkHash, SessionId};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::sync::{mpsc, watch};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Answers at once: what is measured is the door.
struct Echo;

impl Handler for Echo {
    fn admits(&self, _: &Peer) -> bool {
        true
    }

    async fn hello(&self, _: &Peer, _: &Hello) -> Result<Welcome, Failure> {
        let limits = Limits {
            shard_count: 1,
            chunk_min: 16 << 10,
            chunk_avg: 64 << 10,
            chunk_max: 256 << 10,
            inline_max: 16 << 10,
            lease_ms: 60_000,
        };
        Ok(Welcome {
            protocol: 0,
            build: "bench".into(),
            cluster_uuid: uuid::Uuid::nil(),
            cluster_name: "bench".into(),
            session: SessionId(1),
            secret: [0; 16],
            resumed: false,
            servers: Vec::new(),
            signer: None,
            signs_alone: false,
            limits,
        })
    }

    async fn enrol(&self, _: &Peer, _: Enrolment) -> Result<Response, Failure> {
        Err(Failure::Refused("not here".into()))
    }

    async fn renew(&self, _: &Facts, _: Bytes) -> Result<Response, Failure> {
        Err(Failure::Refused("not here".into()))
    }

    async fn call(&self, _: &Conn, request: Request, _: Bytes) -> (Response, Vec<Bytes>) {
        match request {
            // One chunk of 256 KiB per hash, as a read gets them.
            Request::GetChunks { hashes } => {
                static CHUNK: [u8; 256 << 10] = [7; 256 << 10];
                (Response::Done, vec![Bytes::from_static(&CHUNK); hashes.len()])
            }
            _ => (Response::Done, vec![]),
        }
    }

    fn subscribe(&self, _: &Conn) -> Result<mpsc::Receiver<Event>, Failure> {
        Err(Failure::Refused("not here".into()))
    }

    fn disconnected(&self, _: &Conn) {}
}

fn certificates() -> Fallible<(Identity, Identity)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let identity = |name: &str, serial: u64| -> Fallible<Identity> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["claudefs".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(serial.into());
        let certificate_pem = params.signed_by(&key, &issuer)?.pem();
        Ok(Identity {
            certificate_pem,
            key_pem: key.serialize_pem().into(),
            ca_pem: ca_pem.clone(),
        })
    };
    Ok((identity("node:1", 1)?, identity("client:a", 2)?))
}

/// Calls from so many threads for so long: calls a second.
fn rate(threads: usize, time: Duration, call: impl Fn() + Sync) -> f64 {
    let until = Instant::now() + time;
    let started = Instant::now();
    let total: u64 = std::thread::scope(|scope| {
        let count = || {
            let mut calls = 0;
            while Instant::now() < until {
                call();
                calls += 1;
            }
            calls
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(count)).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
    });
    total as f64 / started.elapsed().as_secs_f64()
}

/// Median and 99th percentile of a call's time, in µs.
fn latency(time: Duration, mut call: impl FnMut()) -> (f64, f64) {
    let until = Instant::now() + time;
    let mut all = Vec::new();
    while Instant::now() < until {
        let started = Instant::now();
        call();
        all.push(started.elapsed().as_nanos() as f64 / 1e3);
    }
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() * 99 / 100])
}

/// Two threads and a socket pair: what the system makes any round trip cost.
fn floor(time: Duration) -> Fallible<(f64, f64)> {
    let (mut near, mut far) = UnixStream::pair()?;
    let echo = std::thread::spawn(move || {
        let mut message = [0; 40];
        while far.read_exact(&mut message).is_ok() && far.write_all(&message).is_ok() {}
    });
    let mut message = [0; 40];
    let result = latency(time, || {
        near.write_all(&message).expect("the echo lives");
        near.read_exact(&mut message).expect("the echo lives");
    });
    drop(near);
    echo.join().map_err(|_| "the echoing thread panicked")?;
    Ok(result)
}

fn main() -> Fallible<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse::<f64>())?;
    let time = Duration::from_secs_f64(seconds);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("fsd.sock");
    let (node, client) = certificates()?;
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = ServerConfig {
        unix: Some(socket.clone()),
        tcp: Some((address, server_config(&node)?)),
        ..ServerConfig::default()
    };
    let server = runtime.block_on(Server::bind(config))?;
    let addrs = server.tcp_address().into_iter().collect();
    let (_stop, stopped) = watch::channel(false);
    runtime.spawn(server.run(Arc::new(Echo), stopped));
    let unix = Client::connect(Endpoint::Unix(socket), ConnectOptions::default())?;
    let endpoint = Endpoint::Tcp { addrs, identity: client };
    let tls = Client::connect(endpoint, ConnectOptions::default())?;

    let empty = |client: &Client| {
        client.call(&Request::Sync, &[]).expect("the echo answers");
    };
    let payload = vec![7; 256 << 10];
    let put = |client: &Client| {
        let request = Request::PutChunks { chunks: vec![] };
        client.call(&request, &[&payload]).expect("the echo answers");
    };
    let get = |client: &Client| {
        let request = Request::GetChunks { hashes: vec![ChunkHash([0; 32]); 4] };
        client.call(&request, &[]).expect("the echo answers");
    };
    for round in 1..=3 {
        let (floor, floor_99) = floor(time)?;
        println!("round {round}: socket pair  p50 {floor:6.1} µs  p99 {floor_99:7.1}");
        for (name, client) in [("unix", &unix), ("tls ", &tls)] {
            let (p50, p99) = latency(time, || empty(client));
            let four = rate(4, time, || empty(client));
            println!(
                "  {name}  empty call p50 {p50:6.1} µs  p99 {p99:7.1}  ({:.2} of the floor)  4 \
                 threads {four:6.0}/s",
                p50 / floor,
            );
            let (put_256k, _) = latency(time, || put(client));
            let (get_1m, _) = latency(time, || get(client));
            println!(
                "  {name}  256 KiB put p50 {put_256k:6.1} µs = {:5.0} MiB/s  1 MiB get p50 {get_1m:6.1} \
                 µs = {:5.0} MiB/s",
                0.25e6 / put_256k,
                1e6 / get_1m,
            );
        }
    }
    Ok(())
}
