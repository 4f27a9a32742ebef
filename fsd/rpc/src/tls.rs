//! Mutual TLS from the cluster's own CA: TLS 1.3 only, no system roots, one server name for all.
//!
//! Sessions are not resumed: every handshake looks at both certificates, with their dates.

mod pinned;

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Name that every storage node's certificate carries; addresses may change, this does not.
pub const SERVER_NAME: &str = "claudefs";

/// Bytes of a [`CaFingerprint`].
pub const CA_FINGERPRINT_LEN: usize = 16;

/// First half of the SHA-256 of a CA certificate: nobody finds a second certificate with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaFingerprint(pub [u8; CA_FINGERPRINT_LEN]);

impl std::fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl CaFingerprint {
    /// Of a certificate in DER.
    pub fn of(der: &[u8]) -> CaFingerprint {
        let digest = digest::digest(&digest::SHA256, der);
        let half = digest.as_ref()[..CA_FINGERPRINT_LEN].try_into();
        CaFingerprint(half.expect("SHA-256 has 32 bytes"))
    }

    /// Of the first certificate in a PEM text.
    pub fn of_pem(pem: &str) -> Result<CaFingerprint, TlsError> {
        let what = "CA certificate";
        let certificates = certificates(what, pem)?;
        let first = certificates.first().ok_or(TlsError::Missing { what })?;
        Ok(CaFingerprint::of(first))
    }

    /// Of every certificate in a PEM text: while the authority is replaced, both are trusted.
    pub fn all_of_pem(pem: &str) -> Result<Vec<CaFingerprint>, TlsError> {
        let all = certificates("CA certificate", pem)?;
        Ok(all.iter().map(|der| CaFingerprint::of(der)).collect())
    }
}

/// Certificate, key and CA of one side, PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: Zeroizing<String>,
    pub ca_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{what} is not valid PEM: {source}")]
    Pem { what: &'static str, source: rustls::pki_types::pem::Error },
    #[error("TLS configuration: {0}")]
    Config(#[from] rustls::Error),
    #[error("verification of client certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("no {what} where one belongs")]
    Missing { what: &'static str },
    #[error(
        "the storage node does not belong to the cluster of this certificate or token: check its \
         address; if the cluster's authority was replaced since, enrol again with a new token ({0})"
    )]
    ForeignServer(rustls::Error),
    #[error("the storage node's certificate has ended or has not begun: check both clocks ({0})")]
    ServerDates(rustls::Error),
    #[error(
        "the storage node refused the certificate of this client: it has ended, or is of another \
         cluster or of an authority that was replaced: enrol again with `cfs mount --token` ({0})"
    )]
    Refused(rustls::Error),
    #[error("TLS with the storage node failed: {0}")]
    Handshake(rustls::Error),
}

impl TlsError {
    /// Why two sides did not come together.
    pub(crate) fn from_handshake(error: &rustls::Error) -> TlsError {
        let error = error.clone();
        match &error {
            rustls::Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => TlsError::ServerDates(error),
            rustls::Error::InvalidCertificate(_) => TlsError::ForeignServer(error),
            rustls::Error::AlertReceived(
                AlertDescription::BadCertificate
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::DecryptError
                | AlertDescription::AccessDenied,
            ) => TlsError::Refused(error),
            _ => TlsError::Handshake(error),
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|source| TlsError::Pem { what: "private key", source })
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("CA certificate", ca_pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// Shows the identity's certificate and trusts only its CA.
pub fn client_config(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.ca_pem)?)
        .with_client_auth_cert(
            certificates("certificate", &identity.certificate_pem)?,
            key(&identity.key_pem)?,
        )?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Shows no certificate and trusts the cluster whose CA has this fingerprint: for enrolment.
pub fn enrolling_config(ca: CaFingerprint) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned::PinnedCa::new(ca, provider())))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes clients with a certificate of the identity's CA, and clients without one (they may only
/// enrol: the server half sees to that). A certificate of anyone else fails the handshake. The CA's
/// certificate is shown, too, for those who know only its fingerprint.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let roots = Arc::new(roots(&identity.ca_pem)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()?;
    let mut chain = certificates("certificate", &identity.certificate_pem)?;
    chain.extend(certificates("CA certificate", &identity.ca_pem)?);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key(&identity.key_pem)?)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// [`SERVER_NAME`] as rustls wants it.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("the name is a valid DNS name")
}

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Common name: `client:<name>` or `node:<id>`.
    pub subject: String,
    /// The cluster CA's serials fit 64 bits.
    pub serial: u64,
    /// Seconds since 1970 at which it ends.
    pub expires_secs: i64,
}

/// Reads a certificate in DER; `None` when it is not one of a cluster's CA.
pub fn facts(der: &[u8]) -> Option<Facts> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let serial = certificate.raw_serial();
    let serial = &serial[serial.iter().position(|byte| *byte != 0)?..];
    if serial.len() > 8 {
        return None;
    }
    let serial = serial.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some(Facts { subject, serial, expires_secs: certificate.validity().not_after.timestamp() })
}

/// [`facts`] of the first certificate in a PEM text.
pub fn facts_of_pem(pem: &str) -> Result<Facts, TlsError> {
    let what = "certificate";
    let certificates = certificates(what, pem)?;
    certificates.first().and_then(|der| facts(der)).ok_or(TlsError::Missing { what })
}
