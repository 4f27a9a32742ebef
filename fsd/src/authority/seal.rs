//! The authority's certificate and key, sealed.
//!
//! ```text
//!  0  magic "CFSCA\0\0\x01"     20  AES-256-GCM of postcard (certificate PEM, key PKCS #8)
//!  8  nonce [u8; 12]             …  tag [u8; 16]
//! ```
//!
//! The key of the cipher is derived from the master key for this use alone; magic and cluster are
//! authenticated, so no other sealed thing, and no other cluster's, can take its place.

use std::path::Path;

use aws_lc_rs::aead::{Aad, Nonce};
use bytes::Bytes;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::AuthorityError;
use super::key::Key;
use crate::chunks::seal::{aead, random, read_master};

const MAGIC: &[u8; 8] = b"CFSCA\0\0\x01";
const NONCE_LEN: usize = 12;
const HEAD_LEN: usize = MAGIC.len() + NONCE_LEN;

fn sealing_key(master: &Path) -> Result<aws_lc_rs::aead::LessSafeKey, AuthorityError> {
    let master = read_master(master)?;
    let key = blake3::derive_key("claudefs certificate authority v1", &master[..]);
    Ok(aead(&Zeroizing::new(key)))
}

fn aad(cluster: Uuid) -> Vec<u8> {
    [&MAGIC[..], cluster.as_bytes()].concat()
}

pub(super) fn seal(
    ca_pem: &str,
    key: &Key,
    master: &Path,
    cluster: Uuid,
) -> Result<Bytes, AuthorityError> {
    // Room for everything, so that no copy of the key is left behind by growing.
    let room = HEAD_LEN + ca_pem.len() + key.pkcs8().len() + 64;
    let body = postcard::to_extend(&(ca_pem, key.pkcs8()), Vec::with_capacity(room));
    let mut body = Zeroizing::new(body.map_err(|error| failed(&error.to_string()))?);
    let nonce: [u8; NONCE_LEN] = random();
    sealing_key(master)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad(cluster)),
            &mut *body,
        )
        .map_err(|_| failed("sealing failed"))?;
    Ok([&MAGIC[..], &nonce, &body].concat().into())
}

pub(super) fn open(
    sealed: &[u8],
    master: &Path,
    cluster: Uuid,
) -> Result<(String, Key), AuthorityError> {
    if sealed.len() < HEAD_LEN || &sealed[..MAGIC.len()] != MAGIC {
        return Err(failed("the record in the metadata is not a sealed authority"));
    }
    let nonce: [u8; NONCE_LEN] = sealed[MAGIC.len()..HEAD_LEN].try_into().expect("12 bytes");
    let mut body = Zeroizing::new(sealed[HEAD_LEN..].to_vec());
    let plain = sealing_key(master)?
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad(cluster)), &mut body)
        .map_err(|_| {
            failed(&format!(
                "{} is not the master key of cluster {cluster}, or the record is damaged",
                master.display()
            ))
        })?;
    let (ca_pem, pkcs8): (String, &[u8]) =
        postcard::from_bytes(plain).map_err(|error| failed(&error.to_string()))?;
    Ok((ca_pem, Key::from_pkcs8(pkcs8)?))
}

fn failed(why: &str) -> AuthorityError {
    AuthorityError::Sealed { why: why.into() }
}
