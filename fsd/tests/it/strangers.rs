//! Who comes again and again and is refused each time: by name, said once, counted always, and nothing is lost by it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use fsd::authority::Authority;
use fsd_rpc::admin::{AdminRequest, TokenPurpose};
use fsd_rpc::credentials::{self, Credentials};
use fsd_rpc::frame::{self, Kind};
use fsd_rpc::message::{
    Enrolment, Failure, Hello, NodeRequest, PROTOCOLS, Request, Response, Role, Versions,
};
use fsd_rpc::nodes::{Nodes, Target};
use fsd_rpc::tls::{self, Identity};
use fsd_rpc::{Client, ConnectOptions, Endpoint};
use raftmeta::{Group, GroupConfig, read};
use raftmeta_types::{FileKind, Ino, NodeId, Time};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use uuid::Uuid;

use crate::authority::{connect, enrolled};
use crate::site::Site;
use crate::support::*;

/// How often each of them comes.
const TIMES: usize = 50;
const DAY_SECS: i64 = 24 * 3600;

/// What a node has counted, by reason.
pub fn counts(node: &Node) -> BTreeMap<String, u64> {
    let text = node.metrics();
    let counts = text.lines().filter_map(|line| {
        let (why, count) =
            line.strip_prefix("claudefs_refused_total{why=\"")?.split_once("\"} ")?;
        Some((why.to_owned(), count.parse().unwrap()))
    });
    counts.collect()
}

/// The log's lines about what was refused, by source and reason.
pub fn said(log: &str) -> BTreeMap<(String, String), Vec<&str>> {
    let mut said: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains("refused; said once")) {
        let part = |name: &str| {
            let rest = line.split_once(&format!(" {name}=\"")).expect(line).1;
            rest.split_once('"').expect(line).0.to_owned()
        };
        said.entry((part("source"), part("why"))).or_default().push(line);
    }
    said
}

/// Asserts that each of these was said, once for each source and reason, with these words.
fn assert_said_once(log: &str, expected: &[(&str, &str)]) {
    let said = said(log);
    for (key, lines) in &said {
        // Of one source different tokens may be bad in different ways.
        let most = if key.1 == "token" { 3 } else { 1 };
        assert!(lines.len() <= most, "{key:?} was said {} times: {lines:#?}", lines.len());
    }
    for (why, words) in expected {
        let lines = said.iter().filter(|(key, _)| key.1 == *why).flat_map(|(_, lines)| lines);
        let found = lines.filter(|line| line.contains(words)).count();
        assert_eq!(found, 1, "{why}, `{words}`: {said:#?}");
    }
}

fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Time { secs: since.as_secs() as i64, nanos: 0 }
}

fn days_from_now(days: i64) -> Time {
    Time { secs: now().secs + days * DAY_SECS, nanos: 0 }
}

/// The cluster's own authority, out of the directory of a node that is stopped.
fn authority_of(node: &Node, cluster: Uuid) -> Authority {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sealed = runtime.block_on(async {
        let config = GroupConfig {
            dir: node.path("data/meta"),
            node_id: 1,
            bootstrap: false,
            checkpoint_entries: u64::MAX,
            address: String::new(),
            transport: None,
        };
        let group = Group::open(config).await.unwrap();
        let sealed = read::authority(&group.view()).unwrap().unwrap();
        group.shutdown().await.unwrap();
        sealed
    });
    Authority::open(&sealed, &node.path("data/master.key"), cluster).unwrap()
}

/// A client with a certificate that was made at that time.
fn client_of(authority: &Authority, name: &str, made: Time) -> Identity {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let issued = authority.client_certificate(request.der(), name, made).unwrap();
    Identity {
        certificate_pem: issued.certificate_pem,
        key_pem: key.serialize_pem().into(),
        ca_pem: authority.ca_pem().to_owned(),
    }
}

fn as_client(address: &str, identity: &Identity) -> String {
    let endpoint =
        Endpoint::Tcp { addrs: vec![address.parse().unwrap()], identity: identity.clone() };
    let options = ConnectOptions { deadline: PATIENCE, ..ConnectOptions::default() };
    Client::connect(endpoint, options).expect_err("it is refused").to_string()
}

fn as_node(address: &str, id: u64, identity: &Identity) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let nodes = Nodes::new(NodeId(id), identity).unwrap();
        let target = Target { node: NodeId(1), address: address.to_owned() };
        let request = Request::Node(NodeRequest::Usage { with_shards: false });
        let answer = nodes.call(&target, &request, &[], PATIENCE).await;
        answer.expect_err("it is refused").to_string()
    })
}

fn over_tls(address: &str, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(ClientConnection::new(config, tls::server_name()).unwrap(), tcp)
}

fn ask(stream: &mut (impl Read + Write), request: &Request) -> Response {
    frame::write(stream, Kind::Request, request, &[]).unwrap();
    frame::read(stream).unwrap().message(Kind::Reply).unwrap()
}

fn hello(protocols: Versions, role: Role) -> Request {
    Request::Hello(Hello { protocols, build: "0.9-test".into(), role })
}

fn failure(response: Response) -> Failure {
    match response {
        Response::Failed(failure) => failure,
        other => panic!("not refused: {other:?}"),
    }
}

/// Bytes of no protocol; whatever is answered.
fn babble(stream: &mut (impl Read + Write), seed: usize) {
    // The other end may hang up before all of it is written, or read.
    let _ = stream.write_all(&noise(seed as u64, 200));
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn who_comes_again_and_again_is_named_once_and_counted_each_time() {
    let mut site = Site::of(1, 1);
    let (node, address) = (&site.nodes[0], site.addresses[0].as_str());
    let client = site.client();
    let ino = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    client.write_chunk(ino, 0, &noise(1, 100_000)).unwrap();
    let good = site.token(TokenPurpose::Client);
    let anonymous = || over_tls(address, tls::enrolling_config(*good.token.ca()).unwrap());
    let enrol = |token: &str| {
        let mut stream = anonymous();
        assert!(matches!(ask(&mut stream, &hello(PROTOCOLS, Role::Enrol)), Response::Done));
        let (name, csr_der) = ("a".into(), Vec::new().into());
        let enrolment = Enrolment { token: token.into(), name, csr_der };
        failure(ask(&mut stream, &Request::Enrol(enrolment))).to_string()
    };

    // Tokens: used, expired, and misspelt. Of another purpose it is unknown.
    let used = good.clone();
    credentials::enrol(&used, "a", "test", PATIENCE).unwrap();
    let expired = {
        let request =
            AdminRequest::TokenCreate { ttl_secs: 1, uses: 1, purpose: TokenPurpose::Client };
        let fsd_rpc::admin::AdminReply::TokenCreated { token, .. } = site.ask(0, request) else {
            panic!("no token");
        };
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let mut invitation: fsd_rpc::token::Invitation = token.0.parse().unwrap();
        invitation.servers = vec![address.to_owned()];
        invitation
    };
    for _ in 0..TIMES {
        for (token, why) in [(&used, "used up"), (&expired, "expired")] {
            let said = credentials::enrol(token, "a", "test", PATIENCE).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
        assert!(enrol("cfs1-0").contains("characters long"));
    }

    // Certificates: revoked, of another authority, and none.
    let home = enrolled(&site, "gone");
    let kept = Credentials::load(home.path()).unwrap();
    let serial = tls::facts_of_pem(&kept.identity.certificate_pem).unwrap().serial;
    connect(&home).unwrap().goodbye();
    site.ask(0, AdminRequest::CertRevoke { serial });
    let other = Authority::create(Uuid::new_v4(), "other", now()).unwrap();
    let foreign =
        Identity { ca_pem: kept.identity.ca_pem.clone(), ..client_of(&other, "foreign", now()) };
    for _ in 0..TIMES {
        let said = as_client(address, &kept.identity);
        assert!(said.contains("revoked"), "{said}");
        let said = as_client(address, &foreign);
        assert!(said.contains("refused the certificate"), "{said}");
        let role = Role::NewSession { client: "nobody".into() };
        let said = failure(ask(&mut anonymous(), &hello(PROTOCOLS, role))).to_string();
        assert!(said.contains("no client certificate"), "{said}");
    }

    // Garbage: no TLS, within TLS, through the socket of the host before and after the greeting, as a datagram.
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for seed in 0..TIMES {
        let mut plain = TcpStream::connect(address).unwrap();
        plain.set_read_timeout(Some(PATIENCE)).unwrap();
        babble(&mut plain, seed);
        babble(&mut anonymous(), seed);
        let mut stream = anonymous();
        assert!(matches!(ask(&mut stream, &hello(PROTOCOLS, Role::Enrol)), Response::Done));
        babble(&mut stream, seed);
        for greets in [false, true] {
            let mut local = UnixStream::connect(node.path("fsd.sock")).unwrap();
            local.set_read_timeout(Some(PATIENCE)).unwrap();
            if greets {
                let answer = ask(&mut local, &hello(PROTOCOLS, Role::Admin));
                assert!(matches!(answer, Response::Welcome(_)), "{answer:?}");
            }
            babble(&mut local, seed);
        }
        // One after the other: a full buffer would drop some.
        let before = counts(node)["datagram"];
        udp.send_to(&noise(seed as u64, 100), address).unwrap();
        until("the datagram is counted", || (counts(node)["datagram"] > before).then_some(()));
    }

    // A session of somebody else.
    let stolen = Role::Session {
        session: client.session(),
        secret: [1; 16],
        client: String::new(),
        open: vec![],
    };
    for _ in 0..TIMES {
        let mut local = UnixStream::connect(node.path("fsd.sock")).unwrap();
        let said = failure(ask(&mut local, &hello(PROTOCOLS, stolen.clone()))).to_string();
        assert!(said.contains("somebody else's"), "{said}");
    }

    let times = TIMES as u64;
    let expected = [
        ("token", 3 * times),
        ("revoked", times),
        ("authority", times),
        ("certificate", times),
        ("handshake", times),
        ("garbage", 4 * times),
        ("datagram", times),
        ("session", times),
    ];
    let counted = until("all of it is counted", || {
        let counts = counts(node);
        expected.iter().all(|(why, count)| counts[*why] >= *count).then_some(counts)
    });
    for (why, count) in counted {
        let wanted = expected.iter().find(|(name, _)| *name == why).map_or(0, |(_, count)| *count);
        assert_eq!(count, wanted, "{why}");
    }
    // Nothing is lost: the one who belongs here has gone on all the time.
    assert!(client.read(ino) == noise(1, 100_000));
    client.make(Ino::ROOT, "g", FileKind::Regular);
    client.goodbye();
    site.nodes[0].stop();
    let log = site.nodes[0].log();
    assert_said_once(
        &log,
        &[
            ("token", "used up"),
            ("token", "expired"),
            ("token", "characters long"),
            ("revoked", "client:gone"),
            ("authority", "UnknownIssuer"),
            ("certificate", "no client certificate"),
            ("handshake", "what="),
            ("garbage", "source=\"uid "),
            ("garbage", "source=\"127."),
            ("datagram", "what="),
            ("session", "somebody else's"),
        ],
    );
}

#[test]
fn certificates_out_of_date_are_refused_at_a_real_node() {
    let mut site = Site::of(1, 1);
    let address = site.addresses[0].clone();
    let client = site.client();
    let ino = client.make(Ino::ROOT, "f", FileKind::Regular).ino;
    client.write_chunk(ino, 0, &noise(1, 100_000)).unwrap();
    let home = enrolled(&site, "in-time");
    let cluster = Credentials::load(home.path()).unwrap().cluster_uuid;
    site.nodes[0].stop();
    let authority = authority_of(&site.nodes[0], cluster);
    site.nodes[0].restart();

    let mut refused = 0;
    // One that ended weeks ago, one that ended an hour ago, and one that begins in a month.
    for made in [
        days_from_now(-400),
        Time { secs: days_from_now(-365).secs - 3600, nanos: 0 },
        days_from_now(30),
    ] {
        let said = as_client(&address, &client_of(&authority, "late", made));
        assert!(said.contains("it has ended"), "{said}");
        let (identity, _) = authority.node_identity(NodeId(2), made).unwrap();
        let said = as_node(&address, 2, &identity);
        assert!(said.contains("it has ended"), "{said}");
        refused += 2;
        let counted = until("both are counted", || {
            let counts = counts(&site.nodes[0]);
            (counts["dates"] >= refused).then_some(counts)
        });
        let others = counted.iter().filter(|(why, _)| *why != "dates");
        assert!(others.into_iter().all(|(_, count)| *count == 0), "{counted:?}");
        assert_eq!(counted["dates"], refused);
    }
    // One that this node shows for another: the date is right, the number is not.
    let (identity, _) = authority.node_identity(NodeId(3), now()).unwrap();
    let said = as_node(&address, 2, &identity);
    assert!(said.contains("not that of node 2"), "{said}");
    // The node lives, and lets in who has a good one.
    connect(&home).unwrap().make(Ino::ROOT, "g", FileKind::Regular);
    assert!(client.read(ino) == noise(1, 100_000));
    client.goodbye();
    site.nodes[0].stop();
    let log = site.nodes[0].log();
    assert_said_once(&log, &[("dates", "certificate"), ("certificate", "not that of node 2")]);
}

#[test]
fn other_versions_of_the_protocol_are_refused_with_both_ranges() {
    let mut site = Site::of(1, 1);
    let address = site.addresses[0].clone();
    let client = site.client();
    client.make(Ino::ROOT, "f", FileKind::Regular);
    let home = enrolled(&site, "in-time");
    let kept = Credentials::load(home.path()).unwrap();
    client.goodbye();
    site.nodes[0].stop();
    let authority = authority_of(&site.nodes[0], kept.cluster_uuid);
    site.nodes[0].restart();
    let node = &site.nodes[0];

    let newer = Versions { min: PROTOCOLS.max + 1, max: PROTOCOLS.max + 3 };
    let older = Versions { min: PROTOCOLS.min - 2, max: PROTOCOLS.min - 1 };
    let as_peer = tls::client_config(&authority.node_identity(NodeId(2), now()).unwrap().0);
    let as_peer = as_peer.unwrap();
    let as_client = tls::client_config(&kept.identity).unwrap();
    let mut asked = 0;
    for (protocols, client_next, node_next) in [
        (newer, "upgrade this node first", "upgrade this node first"),
        (older, "upgrade client first", "upgrade node first"),
    ] {
        let ranges = format!("speaks protocol {protocols}, this node speaks {PROTOCOLS}");
        let local = Role::NewSession { client: "c".into() };
        let mut local_door = UnixStream::connect(node.path("fsd.sock")).unwrap();
        let mut network = over_tls(&address, Arc::clone(&as_client));
        let mut peer = over_tls(&address, Arc::clone(&as_peer));
        for (answer, who, next) in [
            (ask(&mut local_door, &hello(protocols, local.clone())), "client", client_next),
            (ask(&mut network, &hello(protocols, local)), "client", client_next),
            (ask(&mut peer, &hello(protocols, Role::Node { id: NodeId(2) })), "node", node_next),
        ] {
            let failure = failure(answer);
            assert!(matches!(failure, Failure::Protocol(_)), "{failure:?}");
            let said = failure.to_string();
            for part in [&format!("{who} 0.9-test {ranges}")[..], next] {
                assert!(said.contains(part), "{said} / {part}");
            }
            asked += 1;
        }
        until("all are counted", || (counts(node)["protocol"] == asked).then_some(()));
    }
    // A range that reaches to ours is spoken with.
    let both = Versions { min: PROTOCOLS.min - 1, max: PROTOCOLS.max + 1 };
    let mut local_door = UnixStream::connect(node.path("fsd.sock")).unwrap();
    match ask(&mut local_door, &hello(both, Role::Admin)) {
        Response::Welcome(welcome) => assert_eq!(welcome.protocol, PROTOCOLS.max),
        other => panic!("{other:?}"),
    }
    connect(&home).unwrap().find(Ino::ROOT, "f").unwrap();
    site.nodes[0].stop();
    let log = site.nodes[0].log();
    let local = format!("uid {}", rustix::process::geteuid().as_raw());
    assert_said_once(
        &log,
        &[
            ("protocol", &format!("source=\"{local}\"")[..]),
            ("protocol", "client:in-time"),
            ("protocol", "node:2"),
        ],
    );
}
