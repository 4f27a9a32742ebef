//! Mutual TLS from the cluster's own CA: TLS 1.3 only, no system roots, one server name for all.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Name that every storage node's certificate carries; addresses may change, this does not.
pub const SERVER_NAME: &str = "claudefs";

/// Certificate, key and CA of one side, PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
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
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.ca_pem)?)
        .with_client_auth_cert(
            certificates("certificate", &identity.certificate_pem)?,
            key(&identity.key_pem)?,
        )?;
    Ok(Arc::new(config))
}

/// Takes clients with a certificate of the identity's CA, and clients without one (they may only
/// enrol: the server half sees to that). A certificate of anyone else fails the handshake.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let roots = Arc::new(roots(&identity.ca_pem)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificates("certificate", &identity.certificate_pem)?,
            key(&identity.key_pem)?,
        )?;
    Ok(Arc::new(config))
}

/// [`SERVER_NAME`] as rustls wants it.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("the name is a valid DNS name")
}

/// Common name and serial number of a verified certificate; the cluster CA's serials fit 64 bits.
pub(crate) fn subject_and_serial(der: &CertificateDer<'_>) -> Option<(String, u64)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let subject = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let serial = certificate.raw_serial();
    let serial = &serial[serial.iter().position(|byte| *byte != 0)?..];
    if serial.len() > 8 {
        return None;
    }
    Some((subject, serial.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))))
}
