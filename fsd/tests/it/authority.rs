//! Who is trusted: the authority is replaced while clients work, and whoever does not belong is refused by name.

use std::io::{Read, Write};

use fsd::config::Config;
use fsd_rpc::admin::{AdminReply, AdminRequest, CaRotation, TokenPurpose};
use fsd_rpc::credentials::{self, Credentials, Joining};
use fsd_rpc::tls::CaFingerprint;
use fsd_rpc::{CallError, Client, ConnectOptions};
use raftmeta_types::{FileKind, Ino};
use tempfile::TempDir;

use crate::site::{Site, loopback};
use crate::support::*;

/// A client of the network with a directory of its own, enrolled now.
pub fn enrolled(site: &Site, name: &str) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let invitation = site.token(TokenPurpose::Client);
    let got = credentials::enrol(&invitation, name, "test", PATIENCE).unwrap();
    got.save(home.path()).unwrap();
    home
}

pub fn connect(home: &TempDir) -> Result<Client, CallError> {
    let options = ConnectOptions {
        client: "test:/mnt".into(),
        deadline: PATIENCE,
        credentials: Some(home.path().to_owned()),
        ..ConnectOptions::default()
    };
    Client::connect(Credentials::load(home.path()).unwrap().endpoint().unwrap(), options)
}

fn rotation(site: &Site, asked: usize) -> Option<CaRotation> {
    match site.try_ask(asked, AdminRequest::CaStatus) {
        Ok(AdminReply::Ca(status)) => status.rotation,
        other => panic!("{other:?}"),
    }
}

fn counted(node: &Node, why: &str, least: u64) {
    let begin = format!("claudefs_refused_total{{why=\"{why}\"}} ");
    until(&format!("{least} refusals of {why} are counted"), || {
        let text = node.metrics();
        let count = text.lines().find_map(|line| line.strip_prefix(&begin))?;
        (count.parse::<u64>().ok()? >= least).then_some(())
    });
}

#[test]
fn an_authority_is_replaced_while_clients_work() {
    let mut site = Site::of(3, 2);
    let (home, idle) = (enrolled(&site, "busy"), enrolled(&site, "idle"));
    let client = connect(&home).unwrap();
    let session = client.session();
    client.make(Ino::ROOT, "before", FileKind::Regular);
    let old = Credentials::load(home.path()).unwrap().signer().unwrap();

    site.ask(0, AdminRequest::CaRotate { finish: false });
    let second = site.try_ask(1, AdminRequest::CaRotate { finish: false }).unwrap_err().to_string();
    assert!(second.contains("under way already"), "{second}");
    // Whoever leads next goes on with it.
    let leader = site.leader(1);
    site.nodes[leader].kill();
    client.make(Ino::ROOT, "during", FileKind::Regular);
    site.nodes[leader].restart();
    until("the busy client has a new certificate, and the idle one is waited for", || {
        let rotation = rotation(&site, 0)?;
        let waited: Vec<&str> =
            rotation.clients_waited_for.iter().map(|cert| cert.subject.as_str()).collect();
        (rotation.stage == "issuing" && waited == ["client:idle"]).then_some(())
    });
    // The cluster has given it before the client has kept it.
    let renewed = until("the new certificate is kept", || {
        let kept = Credentials::load(home.path()).unwrap();
        (kept.signer().unwrap() != old).then_some(kept)
    });
    // Until it is over both authorities are good, for nodes that restart as well.
    site.nodes[1].stop();
    site.nodes[1].restart();
    site.ask(0, AdminRequest::CaRotate { finish: true });
    until("the old authority is gone", || rotation(&site, 0).is_none().then_some(()));

    client.make(Ino::ROOT, "after", FileKind::Regular);
    assert_eq!(client.session(), session, "the mount has gone on");
    until("the client trusts the old authority no more", || {
        let now = Credentials::load(home.path()).unwrap();
        let trusted = CaFingerprint::all_of_pem(&now.identity.ca_pem).unwrap();
        (trusted == [renewed.signer().unwrap()]).then_some(())
    });
    let refused = connect(&idle).expect_err("an old certificate is refused").to_string();
    assert!(refused.contains("authority was replaced"), "{refused}");
    // Everything that is new is of the new one.
    let fresh = enrolled(&site, "fresh");
    connect(&fresh).unwrap().make(Ino::ROOT, "fresh", FileKind::Regular);
    site.add();
    site.nodes.iter_mut().for_each(Node::kill);
    site.nodes.iter_mut().for_each(Node::restart);
    site.settled();
    let mut names = client.names(Ino::ROOT);
    names.sort();
    assert_eq!(names, ["after", "before", "during", "fresh"]);
}

#[test]
fn who_does_not_belong_is_refused_by_name_and_counted() {
    let site = Site::of(1, 1);
    let (node, address) = (&site.nodes[0], &site.addresses[0]);
    // A token that was used.
    let invitation = site.token(TokenPurpose::Client);
    credentials::enrol(&invitation, "a", "test", PATIENCE).unwrap();
    for _ in 0..2 {
        let again = credentials::enrol(&invitation, "a", "test", PATIENCE).unwrap_err().to_string();
        assert!(again.contains("used up"), "{again}");
    }
    counted(node, "token", 2);
    // A client of another cluster. It finds out first that the node is not its own.
    let other = Site::of(1, 1);
    let home = enrolled(&other, "stranger");
    let mut stranger = Credentials::load(home.path()).unwrap();
    stranger.servers = vec![address.clone()];
    let options = ConnectOptions { deadline: PATIENCE, ..ConnectOptions::default() };
    let refused = Client::connect(stranger.endpoint().unwrap(), options).unwrap_err().to_string();
    assert!(refused.contains("does not belong to the cluster"), "{refused}");
    counted(node, "handshake", 1);
    // Bytes that are not TLS.
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    counted(node, "handshake", 2);
    // Bytes that are no request, through the socket of the host.
    let mut stream = std::os::unix::net::UnixStream::connect(node.path("fsd.sock")).unwrap();
    stream.write_all(&[7; 64]).unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    counted(node, "garbage", 1);
    // The node still serves, and its log stays short.
    site.client().make(Ino::ROOT, "f", FileKind::Regular);
}

#[test]
fn a_node_whose_clock_is_hours_off_is_not_taken_in() {
    let site = Site::of(1, 1);
    let invitation = site.token(TokenPurpose::Node);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now_ms = since.as_millis() as i64;
    let join = |clock_ms| {
        let joining = Joining { name: "late", address: "127.0.0.1:9400", build: "test", clock_ms };
        credentials::join(&invitation, joining, PATIENCE)
    };
    let behind = join(now_ms - 3 * 3_600_000).unwrap_err().to_string();
    assert!(behind.contains("clock") && behind.contains("behind"), "{behind}");
    let ahead = join(now_ms + 3 * 3_600_000 + 60_000).unwrap_err().to_string();
    assert!(ahead.contains("3 h ahead") && ahead.contains("NTP"), "{ahead}");
    counted(&site.nodes[0], "clock", 2);
    // The token is good for another attempt, with the clock set.
    join(now_ms).unwrap();
}

#[test]
fn a_copy_of_a_node_is_no_second_node() {
    let mut site = Site::of(2, 1);
    site.nodes[1].stop();
    let copy = Node::prepared(Shape::default());
    let from = site.nodes[1].dir.path();
    let mut cp = std::process::Command::new("cp");
    cp.arg("-r").arg(from.join(".")).arg(copy.dir.path());
    assert!(cp.status().unwrap().success());
    let text = std::fs::read_to_string(copy.path("node.toml")).unwrap();
    let text = text.replace(&site.addresses[1], &loopback());
    std::fs::write(copy.path("node.toml"), text).unwrap();
    site.nodes[1].restart();
    site.settled();
    let said = copy.refusal();
    assert!(said.contains("another process is this node already"), "{said}");
    counted(&site.nodes[site.leader(0)], "twin", 1);
    // The one that was there first is still reached.
    site.settled();
    let config = Config::load(&site.nodes[1].path("node.toml")).unwrap();
    let address = config.door.tcp.unwrap().to_string();
    assert_eq!(site.list(0)[1].address, address);
}

#[test]
fn a_manager_of_services_hears_of_the_start_and_the_end() {
    let mut node = Node::prepared(Shape::default());
    let path = node.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    node.environment =
        vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", "300000".into())];
    let heard = || {
        let mut buffer = [0; 1024];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    node.restart();
    let first = heard();
    assert!(first.starts_with("READY=1\nSTATUS=node n of cluster test"), "{first}");
    assert_eq!(heard(), "WATCHDOG=1\n");
    assert_eq!(heard(), "WATCHDOG=1\n");
    node.stop();
    until("it says that it stops", || (heard() == "STOPPING=1\n").then_some(()));
}
