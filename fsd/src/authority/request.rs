//! Certificate requests: the one place where bytes of a stranger are read by the authority.

use rcgen::{CertificateSigningRequestParams, PublicKey, PublicKeyData};

use super::AuthorityError;

/// Longest request; ours have about 200 bytes.
const REQUEST_LEN_MAX: usize = 4096;
/// An uncompressed point on P-256.
const P256_POINT_LEN: usize = 65;

/// The public key of a request that its private key has signed. What else the request asks for is dropped.
pub(super) fn public_key(der: &[u8]) -> Result<PublicKey, AuthorityError> {
    let refuse = |why: &str| AuthorityError::Request { why: why.into() };
    if der.len() > REQUEST_LEN_MAX {
        return Err(refuse("it is longer than 4096 bytes"));
    }
    // Verifies the signature.
    let request = CertificateSigningRequestParams::from_der(&der.into())
        .map_err(|error| refuse(&error.to_string()))?;
    let key = request.public_key;
    if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT_LEN
    {
        return Err(refuse("its key is not of ECDSA on P-256"));
    }
    Ok(key)
}
