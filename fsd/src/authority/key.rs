//! A private key (ECDSA on P-256) that is wiped from memory when it is dropped.

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::{Zeroize, Zeroizing};

pub(super) struct Key(KeyPair);

impl Key {
    pub(super) fn generate() -> Result<Key, rcgen::Error> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Key)
    }

    /// From PKCS #8.
    pub(super) fn from_pkcs8(der: &[u8]) -> Result<Key, rcgen::Error> {
        KeyPair::try_from(der).map(Key)
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }

    pub(super) fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}
