//! The cluster's own certificate authority: it names nodes and clients, and makes enrolment tokens.
//!
//! ```text
//!   InitCluster.sealed_ca ──open──> Authority ──> node_identity     node:<id>      serves the door
//!          ^                          │  │
//!        create + seal                │  └──────> client_certificate client:<name>  from a request
//!                                     └─────────> new_token          cfs1-…        + TokenInfo (hash)
//! ```
//!
//! The key lies in the metadata, sealed under the node's master key (`authority/seal.rs`). Time and names are
//! given to every call; only keys, serial numbers and tokens are drawn. The commands that make what is
//! issued here known (`CreateToken`, `UseToken`) are the caller's.

mod authorities;
mod key;
mod request;
mod seal;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fsd_rpc::admin::{TOKEN_TTL_SECS_MAX, TOKEN_USES_MAX};
use fsd_rpc::tls::{CaFingerprint, Identity, SERVER_NAME};
use fsd_rpc::token::{Purpose, Token};
use raftmeta_types::cluster::{CertificateInfo, TokenInfo};
use raftmeta_types::{NodeId, Time};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use uuid::Uuid;
use zeroize::Zeroizing;

pub use self::authorities::Authorities;
use self::key::Key;
use crate::chunks::seal::random;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Life of the CA's own certificate.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Life of a node's or a client's certificate; both are renewed before.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Life of a token, unless its maker says otherwise.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// Longest life of a token.
pub const TOKEN_LIFE_MAX: Duration = Duration::from_secs(TOKEN_TTL_SECS_MAX);
/// Certificates begin this long before they are made, for hosts whose clock is behind.
const CLOCK_SKEW: Duration = DAY;
/// Longest name of a client, so that the subject stays within X.509's 64 characters.
pub const CLIENT_NAME_MAX: usize = 57;

/// Why the authority refused.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the certificate authority cannot be opened: {why}")]
    Sealed { why: String },
    #[error("the master key cannot be used: {0}")]
    Master(#[from] crate::chunks::Error),
    #[error("the certificate request is refused: {why}")]
    Request { why: String },
    #[error("client name: {why}")]
    Name { why: String },
    #[error("a token lives from 1 second to {} days", TOKEN_LIFE_MAX.as_secs() / DAY.as_secs())]
    TokenLife,
    #[error("a token is good for 1 to {TOKEN_USES_MAX} uses")]
    TokenUses,
    #[error("making a certificate failed: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// The open authority. `Debug` shows its fingerprint alone.
pub struct Authority {
    issuer: Issuer<'static, Key>,
    ca_pem: String,
    fingerprint: CaFingerprint,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// A certificate and how the cluster remembers it.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate_pem: String,
    pub info: CertificateInfo,
}

impl Authority {
    /// A new authority for a new cluster.
    pub fn create(cluster: Uuid, name: &str, now: Time) -> Result<Authority, AuthorityError> {
        let key = Key::generate()?;
        let mut params = params(&format!("ClaudeFS {name} {}", cluster.simple()), now, CA_LIFE);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Authority {
            issuer: Issuer::new(params, key),
            ca_pem: certificate.pem(),
            fingerprint: CaFingerprint::of(certificate.der()),
        })
    }

    /// For `InitCluster.sealed_ca`: certificate and key, sealed for this cluster under the master key in
    /// that file.
    pub fn seal(&self, master: &Path, cluster: Uuid) -> Result<Bytes, AuthorityError> {
        seal::seal(&self.ca_pem, self.issuer.key(), master, cluster)
    }

    /// What [`Authority::seal`] gave.
    ///
    /// # Errors
    /// `Master`: the file cannot be read. `Sealed`: another master key or cluster, or damaged bytes.
    pub fn open(sealed: &[u8], master: &Path, cluster: Uuid) -> Result<Authority, AuthorityError> {
        let (ca_pem, key) = seal::open(sealed, master, cluster)?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key)?;
        let fingerprint = CaFingerprint::of_pem(&ca_pem)
            .map_err(|error| AuthorityError::Sealed { why: error.to_string() })?;
        Ok(Authority { issuer, ca_pem, fingerprint })
    }

    /// What tokens carry.
    pub fn fingerprint(&self) -> CaFingerprint {
        self.fingerprint
    }

    /// With which nodes seal what they tell each other of who is alive: all nodes have it, and no client.
    pub fn membership_key(&self) -> Zeroizing<[u8; 32]> {
        let key = self.issuer.key().pkcs8();
        Zeroizing::new(blake3::derive_key("claudefs membership v1", key))
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A key and a certificate for a storage node, which serves with it and reaches other nodes.
    pub fn node_identity(
        &self,
        node: NodeId,
        now: Time,
    ) -> Result<(Identity, CertificateInfo), AuthorityError> {
        let key = Key::generate()?;
        let params = node_params(&format!("node:{node}"), now)?;
        let issued = self.issue(params, format!("node:{node}"), &key, now)?;
        let identity = Identity {
            certificate_pem: issued.certificate_pem,
            key_pem: key.pem(),
            ca_pem: self.ca_pem.clone(),
        };
        Ok((identity, issued.info))
    }

    /// A certificate of a storage node for the key in the request (PKCS #10, DER), signed with it.
    pub fn node_certificate(
        &self,
        request_der: &[u8],
        node: NodeId,
        now: Time,
    ) -> Result<Issued, AuthorityError> {
        let key = request::public_key(request_der)?;
        let subject = format!("node:{node}");
        self.issue(node_params(&subject, now)?, subject, &key, now)
    }

    /// A certificate for the key in the request (PKCS #10, DER), signed with it. Nothing else that the
    /// request asks for is granted: the subject is `client:<name>`, the use is that of a client.
    pub fn client_certificate(
        &self,
        request_der: &[u8],
        name: &str,
        now: Time,
    ) -> Result<Issued, AuthorityError> {
        check_name(name)?;
        let key = request::public_key(request_der)?;
        let subject = format!("client:{name}");
        let mut params = params(&subject, now, CERTIFICATE_LIFE);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params, subject, &key, now)
    }

    /// A token and how the cluster remembers it. The token itself is shown once and kept nowhere.
    pub fn new_token(
        &self,
        now: Time,
        life: Duration,
        uses: u32,
        purpose: Purpose,
    ) -> Result<(Token, TokenInfo), AuthorityError> {
        if life.as_secs() == 0 || life > TOKEN_LIFE_MAX {
            return Err(AuthorityError::TokenLife);
        }
        if uses == 0 || uses > TOKEN_USES_MAX {
            return Err(AuthorityError::TokenUses);
        }
        let token = Token::new(purpose, random(), self.fingerprint);
        let expires = later(now, life);
        Ok((
            token.clone(),
            TokenInfo { hash: token.hash(), created: now, expires, uses_left: uses },
        ))
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        subject: String,
        key: &impl PublicKeyData,
        now: Time,
    ) -> Result<Issued, AuthorityError> {
        let serial = random_serial();
        params.serial_number = Some(SerialNumber::from(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        let expires = Time { nanos: 0, ..later(now, CERTIFICATE_LIFE) };
        Ok(Issued {
            certificate_pem: certificate.pem(),
            info: CertificateInfo { serial, subject, expires, revoked: false },
        })
    }
}

/// 63 bits, so that it is positive in ASN.1 within 8 bytes; never 0.
fn random_serial() -> u64 {
    loop {
        let serial = u64::from_be_bytes(random()) >> 1;
        if serial != 0 {
            return serial;
        }
    }
}

fn params(subject: &str, now: Time, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.secs).unwrap_or(0));
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now + life;
    params
}

/// What nodes serve with and reach others.
fn node_params(subject: &str, now: Time) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(subject, now, CERTIFICATE_LIFE);
    params.subject_alt_names = vec![rcgen::SanType::DnsName(SERVER_NAME.try_into()?)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn later(time: Time, by: Duration) -> Time {
    Time { secs: time.secs.saturating_add_unsigned(by.as_secs()), nanos: time.nanos }
}

fn check_name(name: &str) -> Result<(), AuthorityError> {
    let refuse = |why: String| Err(AuthorityError::Name { why });
    if name.is_empty() || name.len() > CLIENT_NAME_MAX {
        return refuse(format!("`{name}` is not 1 to {CLIENT_NAME_MAX} bytes long"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
    if !name.bytes().all(allowed) {
        return refuse(format!("`{}` may hold letters, digits, `-_.@`", name.escape_default()));
    }
    Ok(())
}
