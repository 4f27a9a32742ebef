//! Getting a certificate: the first with a token, later ones with the present certificate.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use zeroize::{Zeroize, Zeroizing};

use super::{Credentials, CredentialsError, resolve};
use crate::client::CallError;
use crate::client::connection::Connection;
use crate::client::dial::{dial_tcp, over_tls, unreachable};
use crate::client::pool::distrust;
use crate::frame::FrameError;
use crate::message::{Enrolment, Hello, Join, Joined, PROTOCOLS, Request, Response, Role};
use crate::tls::{self, CaFingerprint, Identity};
use crate::token::{Invitation, Purpose};

/// Enrols this host as `name` at the first storage node that answers. The key is made here and never
/// leaves. The node is trusted because its CA has the fingerprint that the token carries.
///
/// Not repeated once the token was sent: it may have been used up.
pub fn enrol(
    invitation: &Invitation,
    name: &str,
    build: &str,
    deadline: Duration,
) -> Result<Credentials, CredentialsError> {
    if invitation.token.purpose() != Purpose::Client {
        return Err(CredentialsError::Purpose {
            what: "storage nodes: use it with `cfs server join`",
        });
    }
    let until = Instant::now() + deadline;
    let mut connection = first_that_answers(invitation, build, until)?;
    let (key_pem, csr_der) = new_key()?;
    let token = invitation.token.reveal().to_string();
    let enrolment = Enrolment { token, name: name.into(), csr_der };
    let answer = connection.exchange(&Request::Enrol(enrolment), &[], until);
    let enrolled = answer.map_err(CallError::Transport)?.0;
    let credentials = accept(enrolled, key_pem, invitation.servers.clone())?;
    // TLS has verified the node against this fingerprint; what it hands out must be the same CA.
    of_the_token(&credentials.identity, invitation)?;
    Ok(credentials)
}

/// What a node says of itself when it joins.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    pub name: &'a str,
    /// `host:port` where the others reach it.
    pub address: &'a str,
    pub build: &'a str,
    /// Its wall clock, in milliseconds since 1970.
    pub clock_ms: i64,
}

/// Joins the cluster as a storage node, at the first node that answers. What comes back makes it one; the
/// identity's key is made here.
///
/// Not repeated once the token was sent: it may have been used up.
pub fn join(
    invitation: &Invitation,
    joining: Joining<'_>,
    deadline: Duration,
) -> Result<(Joined, Identity), CredentialsError> {
    if invitation.token.purpose() != Purpose::Node {
        let what = "clients: make one with `cfs admin token create --node`";
        return Err(CredentialsError::Purpose { what });
    }
    let until = Instant::now() + deadline;
    let Joining { name, address, build, clock_ms } = joining;
    let mut connection = first_that_answers(invitation, build, until)?;
    let (key_pem, csr_der) = new_key()?;
    let token = invitation.token.reveal().to_string();
    let (name, address) = (name.to_owned(), address.to_owned());
    let join = Join { token, name, address, clock_ms, csr_der };
    let answer = connection.exchange(&Request::Join(join), &[], until);
    let joined = match answer.map_err(CallError::Transport)?.0 {
        Response::Joined(joined) => *joined,
        Response::Failed(failure) => return Err(CallError::from(failure).into()),
        _ => return Err(CallError::UnexpectedAnswer.into()),
    };
    let (certificate_pem, ca_pem) = (joined.certificate_pem.clone(), joined.ca_pem.clone());
    let identity = Identity { certificate_pem, key_pem, ca_pem };
    // Refuses a certificate for another key.
    tls::client_config(&identity)?;
    of_the_token(&identity, invitation)?;
    Ok((joined, identity))
}

/// While the authority is replaced, that of the token is one of two.
fn of_the_token(identity: &Identity, invitation: &Invitation) -> Result<(), CredentialsError> {
    match CaFingerprint::all_of_pem(&identity.ca_pem)?.contains(invitation.token.ca()) {
        true => Ok(()),
        false => Err(CredentialsError::Answer { what: "another CA" }),
    }
}

/// A connection that greeted for enrolment.
fn first_that_answers(
    invitation: &Invitation,
    build: &str,
    until: Instant,
) -> Result<Connection, CredentialsError> {
    let config = tls::enrolling_config(*invitation.token.ca())?;
    let hello =
        Request::Hello(Hello { protocols: PROTOCOLS, build: build.into(), role: Role::Enrol });
    let mut last = None;
    for addr in resolve(&invitation.servers)? {
        let tcp = match dial_tcp(&addr, until) {
            Ok(tcp) => tcp,
            Err(error) => {
                last = Some(CallError::Transport(FrameError::Io(unreachable(&addr, &error))));
                continue;
            }
        };
        let mut connection = Connection::new(over_tls(tcp, config.clone())?, 0);
        match connection.exchange(&hello, &[], until).map_err(distrust) {
            Ok((Response::Done, _)) => return Ok(connection),
            Ok((Response::Failed(failure), _)) => last = Some(failure.into()),
            Ok(_) => last = Some(CallError::UnexpectedAnswer),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("resolve gives at least one address").into())
}

impl Credentials {
    /// The same with a new key and a new certificate. `ask` sends the request on an authenticated
    /// connection.
    pub(crate) fn renewed(
        &self,
        ask: impl FnOnce(&Request) -> Result<Response, CallError>,
    ) -> Result<Credentials, CredentialsError> {
        let (key_pem, csr_der) = new_key()?;
        let renewed = accept(ask(&Request::Renew { csr_der })?, key_pem, self.servers.clone())?;
        // TLS has verified the node by the authority that is known. A new one comes beside it, never instead.
        let known = CaFingerprint::all_of_pem(&self.identity.ca_pem)?;
        let told = CaFingerprint::all_of_pem(&renewed.identity.ca_pem)?;
        if !known.iter().any(|ca| told.contains(ca)) {
            return Err(CredentialsError::Answer { what: "another CA" });
        }
        Ok(renewed)
    }
}

/// A key, and the request (PKCS #10, DER) that proves to have it.
fn new_key() -> Result<(Zeroizing<String>, Bytes), CredentialsError> {
    let mut key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key);
    let pem = Zeroizing::new(key.serialize_pem());
    key.zeroize();
    Ok((pem, request?.der().to_vec().into()))
}

fn accept(
    answer: Response,
    key_pem: Zeroizing<String>,
    servers: Vec<String>,
) -> Result<Credentials, CredentialsError> {
    match answer {
        Response::Enrolled { certificate_pem, ca_pem, cluster_uuid, cluster_name } => {
            let identity = Identity { certificate_pem, key_pem, ca_pem };
            // Refuses a certificate for another key.
            tls::client_config(&identity)?;
            Ok(Credentials { cluster_name, cluster_uuid, servers, identity })
        }
        Response::Failed(failure) => Err(CallError::from(failure).into()),
        _ => Err(CallError::UnexpectedAnswer.into()),
    }
}
