//! Who is let in over the network, and whom a client believes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fsd_rpc::client::{CallError, Endpoint};
use fsd_rpc::frame::{self, Kind};
use fsd_rpc::message::{ChunkPut, Failure, Hello, PROTOCOLS, Request, Response, Role};
use fsd_rpc::tls::{self, Identity, TlsError};
use fsd_rpc::{Client, ConnectOptions};
use raftmeta_types::ChunkHash;
use rustls::{ClientConnection, StreamOwned};

use crate::node::{Ca, Days, GOOD, LONG, Node, change, options, wait_for};

fn refused(node: &Node, identity: Identity) -> TlsError {
    let endpoint = Endpoint::Tcp { addrs: vec![node.address], identity };
    let started = Instant::now();
    let error = Client::connect(endpoint, options()).unwrap_err();
    // Not by trying again until the deadline.
    assert!(started.elapsed() < LONG / 2);
    match error {
        CallError::Tls(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn certificates_of_others_and_of_another_time_are_refused() {
    let node = Node::start();
    let stranger = Ca::new("stranger").identity("client:a", GOOD);
    // The client knows first: the node's certificate is not of its CA.
    let error = refused(&node, stranger.clone());
    assert!(matches!(error, TlsError::ForeignServer(_)), "{error}");
    // Believing the node does not help.
    let error = refused(&node, Identity { ca_pem: node.ca.pem.clone(), ..stranger });
    assert!(matches!(error, TlsError::Refused(_)), "{error}");
    for days in [Days { from: -10, count: 5 }, Days { from: 5, count: 5 }] {
        let error = refused(&node, node.ca.identity("client:a", days));
        assert!(matches!(error, TlsError::Refused(_)), "{error}");
    }
    assert_eq!(node.store.lock().greetings, 0);
    Client::connect(node.tcp("client:a"), options()).unwrap();
}

#[test]
fn a_node_must_have_a_nodes_certificate() {
    // A client of the same cluster poses as a node.
    let ca = Ca::new("ClaudeFS test");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::server_config(&ca.identity("client:evil", GOOD)).unwrap();
    let posing = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut tls = rustls::ServerConnection::new(config).unwrap();
        tls.complete_io(&mut tcp).unwrap_err();
    });
    let endpoint = Endpoint::Tcp { addrs: vec![address], identity: ca.identity("client:a", GOOD) };
    let error = Client::connect(endpoint, options()).unwrap_err();
    assert!(matches!(error, CallError::Tls(TlsError::ForeignServer(_))), "{error:?}");
    posing.join().unwrap();
}

#[test]
fn a_revoked_certificate_is_refused_and_its_connections_end() {
    let node = Node::start();
    let identity = node.ca.identity("client:a", GOOD);
    let serial = tls::facts_of_pem(&identity.certificate_pem).unwrap().serial;
    let endpoint = Endpoint::Tcp { addrs: vec![node.address], identity };
    let client = Client::connect(endpoint.clone(), options()).unwrap();
    let other = Client::connect(node.tcp("client:b"), options()).unwrap();
    let local = Client::connect(node.unix(), options()).unwrap();
    client.mutate(false, change(1)).unwrap();

    node.store.lock().revoked.insert(serial);
    node.control.recheck();
    wait_for("the end of the connection", || node.store.lock().disconnected > 0);
    let error = client.mutate(false, change(2)).unwrap_err();
    assert!(matches!(error, CallError::Failure(Failure::Refused(_))), "{error:?}");
    let error = Client::connect(endpoint, options()).unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");

    other.mutate(false, change(3)).unwrap();
    local.mutate(false, change(4)).unwrap();
    assert_eq!(node.store.lock().applied, [1, 3, 4]);
    assert_eq!(node.store.lock().disconnected, 1);
}

#[test]
fn an_open_connection_ends_when_its_waiting_request_is_of_a_revoked_client() {
    let node = Node::start();
    let client = Client::connect(node.tcp("client:a"), options()).unwrap();
    let events = std::sync::mpsc::channel();
    client.subscribe(move |event| events.0.send(event).unwrap_or_default()).unwrap();
    wait_for("the subscription", || !node.store.lock().subscribers.is_empty());
    node.store.lock().revoked.extend(1..100);
    node.control.recheck();
    wait_for("the end of both", || node.store.lock().disconnected == 2);
}

#[test]
fn a_new_certificate_of_the_node_serves_new_connections() {
    let node = Node::start();
    let other = Ca::new("other");
    let client = Client::connect(node.tcp("client:a"), options()).unwrap();
    node.control.set_tls(tls::server_config(&other.identity("node:1", GOOD)).unwrap());
    client.mutate(false, change(1)).unwrap();
    let error = refused(&node, node.ca.identity("client:a", GOOD));
    assert!(matches!(error, TlsError::ForeignServer(_)), "{error}");
    let identity = other.identity("client:a", GOOD);
    let endpoint = Endpoint::Tcp { addrs: vec![node.address], identity };
    Client::connect(endpoint, options()).unwrap();
}

/// TLS without a client certificate.
fn anonymous(node: &Node) -> StreamOwned<ClientConnection, TcpStream> {
    let config = tls::enrolling_config(node.ca.fingerprint).unwrap();
    let tls = ClientConnection::new(config, tls::server_name()).unwrap();
    let tcp = TcpStream::connect(node.address).unwrap();
    tcp.set_read_timeout(Some(LONG)).unwrap();
    StreamOwned::new(tls, tcp)
}

fn hello(role: Role) -> Request {
    Request::Hello(Hello { protocols: PROTOCOLS, build: "test".into(), role })
}

fn ask(stream: &mut (impl Read + Write), request: &Request) -> Response {
    frame::write(stream, Kind::Request, request, &[]).unwrap();
    frame::read(stream).unwrap().message(Kind::Reply).unwrap()
}

fn assert_over(stream: &mut impl Read) {
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?}");
}

#[test]
fn without_a_certificate_one_may_enrol_and_nothing_else() {
    let node = Node::start();
    let secret = [1; 16];
    let session = raftmeta_types::SessionId(1);
    Client::connect(node.unix(), options()).unwrap();
    let greetings = node.store.lock().greetings;
    for role in [
        Role::Admin,
        Role::NewSession { client: "evil".into() },
        Role::Session { session, secret, client: String::new(), open: vec![] },
    ] {
        let mut stream = anonymous(&node);
        let answer = ask(&mut stream, &hello(role));
        assert!(matches!(answer, Response::Failed(Failure::Refused(_))), "{answer:?}");
        assert_over(&mut stream);
    }
    for request in [
        Request::Ping,
        Request::StatFs,
        Request::PutChunks { chunks: vec![ChunkPut { hash: ChunkHash([0; 32]), len: 1 }] },
        Request::Renew { csr_der: Default::default() },
    ] {
        let mut stream = anonymous(&node);
        let answer = ask(&mut stream, &request);
        assert!(matches!(answer, Response::Failed(Failure::Protocol(_))), "{answer:?}");
        assert_over(&mut stream);
        let mut stream = anonymous(&node);
        assert!(matches!(ask(&mut stream, &hello(Role::Enrol)), Response::Done));
        let answer = ask(&mut stream, &request);
        assert!(matches!(answer, Response::Failed(Failure::Protocol(_))), "{answer:?}");
        assert_over(&mut stream);
    }
    assert_eq!(node.store.lock().greetings, greetings);
}

#[test]
fn plain_bytes_at_the_network_door_get_nothing_of_ours() {
    let node = Node::start();
    let mut frame = Vec::new();
    frame::write(&mut frame, Kind::Request, &hello(Role::Admin), &[]).unwrap();
    for bytes in [&frame[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 64], &[0x16, 3, 1, 255, 255]] {
        let mut tcp = TcpStream::connect(node.address).unwrap();
        tcp.set_read_timeout(Some(LONG)).unwrap();
        tcp.write_all(bytes).unwrap();
        tcp.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer);
        // At most a TLS alert: type 21, two bytes.
        assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{answer:?}");
    }
    assert_eq!(node.store.lock().greetings, 0);
    Client::connect(node.tcp("client:a"), options()).unwrap();
}

#[test]
fn tls_1_2_is_not_spoken() {
    let node = Node::start();
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    let ca = rustls::pki_types::CertificateDer::from_pem_slice(node.ca.pem.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let built = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(built), tls::server_name()).unwrap();
    let mut tcp = TcpStream::connect(node.address).unwrap();
    tls.complete_io(&mut tcp).unwrap();
    assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn another_cluster_at_the_same_place_is_not_the_heir() {
    let node = Node::start();
    let short = ConnectOptions { deadline: Duration::from_secs(120), ..options() };
    let client = Client::connect(node.unix(), short).unwrap();
    client.mutate(false, change(1)).unwrap();
    node.store.lock().other_cluster = true;
    node.store.lock().sessions.clear();
    let error = client.mutate(false, change(2)).unwrap_err();
    assert!(error.to_string().contains("any more"), "{error}");
    assert_eq!(node.store.lock().applied, [1]);
}
