//! From a token to a certificate, and from a certificate to the next.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;

use fsd_rpc::client::CallError;
use fsd_rpc::credentials::{Credentials, CredentialsError, FILE_NAME, enrol};
use fsd_rpc::tls::TlsError;
use fsd_rpc::token::Token;
use fsd_rpc::{Client, ConnectOptions};

use crate::node::{CLUSTER, LONG};
use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};

use crate::node::{Ca, Node, change, counted, options, wait_for};

fn enrolled(node: &Node) -> Credentials {
    enrol(&node.invite(1), "host-1", "test", LONG).unwrap()
}

#[test]
fn a_token_makes_a_client_that_comes_in_and_comes_back() {
    let mut node = Node::start();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".cfs");
    let invitation = node.invite(1).reveal().parse().unwrap();
    let credentials = enrol(&invitation, "host-1", "test", LONG).unwrap();
    assert_eq!(credentials.cluster_uuid, CLUSTER);
    credentials.save(&dir).unwrap();

    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join(FILE_NAME))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    for _ in 0..2 {
        let endpoint = Credentials::load(&dir).unwrap().endpoint().unwrap();
        let client = Client::connect(endpoint, options()).unwrap();
        assert_eq!(client.mutate(true, change(1)).unwrap(), counted(1));
        node.restart();
    }
    let facts = fsd_rpc::tls::facts_of_pem(&credentials.identity.certificate_pem).unwrap();
    assert_eq!(facts.subject, "client:host-1");

    // The token is used up.
    let error = enrol(&invitation, "host-2", "test", LONG).unwrap_err();
    assert!(error.to_string().contains("used up"), "{error}");
}

#[test]
fn a_token_of_another_cluster_is_not_shown_to_this_one() {
    let node = Node::start();
    let mut invitation = node.invite(1);
    let stranger = Ca::new("stranger");
    invitation.token = Token::new(fsd_rpc::token::Purpose::Client, [9; 16], stranger.fingerprint);
    let error = enrol(&invitation, "host", "test", LONG).unwrap_err();
    let foreign = |e: &CredentialsError| {
        matches!(e, CredentialsError::Call(CallError::Tls(TlsError::ForeignServer(_))))
    };
    assert!(foreign(&error), "{error:?}");
    // Nor is a node believed that shows a right CA behind a certificate that is not from it.
    let mut posing = stranger.identity("node:1", crate::node::GOOD);
    posing.ca_pem = node.ca.pem.clone();
    node.control.set_tls(fsd_rpc::tls::server_config(&posing).unwrap());
    let error = enrol(&node.invite(1), "host", "test", LONG).unwrap_err();
    assert!(foreign(&error), "{error:?}");
    assert!(node.store.lock().tokens.values().all(|uses| *uses == 1));
}

#[test]
fn a_wrong_token_is_refused() {
    let node = Node::start();
    let mut invitation = node.invite(1);
    invitation.token = Token::new(fsd_rpc::token::Purpose::Client, [77; 16], node.ca.fingerprint);
    let error = enrol(&invitation, "host", "test", LONG).unwrap_err();
    assert!(error.to_string().contains("unknown token"), "{error}");
}

#[test]
fn the_second_address_answers_when_the_first_does_not() {
    let node = Node::start();
    // Bound, so that nobody else gets it, but not listening.
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let closed: SocketAddr = getsockname(&socket).unwrap().try_into().unwrap();
    let mut invitation = node.invite(1);
    invitation.servers.insert(0, closed.to_string());
    let credentials = enrol(&invitation, "host", "test", LONG).unwrap();
    Client::connect(credentials.endpoint().unwrap(), options()).unwrap();

    invitation.servers = vec![closed.to_string()];
    let error = enrol(&invitation, "host", "test", LONG).unwrap_err();
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    invitation.servers = vec![];
    let error = enrol(&invitation, "host", "test", LONG).unwrap_err();
    assert!(matches!(error, CredentialsError::NoServer), "{error}");
}

#[test]
fn a_certificate_near_its_end_is_renewed_while_mounted() {
    let mut node = Node::start();
    let dir = tempfile::tempdir().unwrap();
    node.store.lock().certificate_days = Some(10);
    let first = enrolled(&node);
    assert!(first.is_near_its_end().unwrap());
    first.save(dir.path()).unwrap();
    let options = ConnectOptions { credentials: Some(dir.path().into()), ..options() };
    let client = Client::connect(first.endpoint().unwrap(), options).unwrap();
    wait_for("the renewal", || !Credentials::load(dir.path()).unwrap().is_near_its_end().unwrap());
    let renewed = Credentials::load(dir.path()).unwrap();
    assert_ne!(*renewed.identity.key_pem, *first.identity.key_pem);
    assert_eq!(renewed.identity.ca_pem, first.identity.ca_pem);
    let subject =
        |c: &Credentials| fsd_rpc::tls::facts_of_pem(&c.identity.certificate_pem).unwrap().subject;
    assert_eq!(subject(&renewed), "client:host-1");
    // The mounted client shows the new one: the old one may be revoked.
    let old = fsd_rpc::tls::facts_of_pem(&first.identity.certificate_pem).unwrap().serial;
    wait_for("the new certificate in use", || {
        node.store.lock().revoked.insert(old);
        node.restart();
        client.mutate(false, change(1)).is_ok()
    });
}

#[test]
fn over_a_unix_socket_there_is_nothing_to_renew() {
    let node = Node::start();
    let client = Client::connect(node.unix(), options()).unwrap();
    let request = fsd_rpc::message::Request::Renew { csr_der: Default::default() };
    let error = client.call(&request, &[]).unwrap_err();
    assert!(error.to_string().contains("no certificate to renew"), "{error}");
}
