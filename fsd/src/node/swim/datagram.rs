//! One datagram between nodes: a message of [`super::protocol`], sealed.
//!
//! ```text
//!  0  magic "CFSM"          8  nonce [u8; 12]
//!  4  version u8  1        20  AES-256-GCM of the message, at most 1300 bytes
//!  5  reserved [u8; 3], 0   …  tag [u8; 16]
//! ```
//! The key is derived from the secret of the cluster's authority (`Authority::membership_key`), which every node
//! has and no client. Bytes 0..8 and the cluster's UUID are authenticated. See docs/formats/membership.md.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::protocol::MESSAGE_LEN_MAX;
use crate::chunks::seal::{aead, random};

const HEAD: [u8; 8] = *b"CFSM\x01\0\0\0";
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const OVERHEAD: usize = HEAD.len() + NONCE_LEN + TAG_LEN;
/// A longer datagram is refused.
pub const DATAGRAM_LEN_MAX: usize = OVERHEAD + MESSAGE_LEN_MAX;

/// Why bytes are no datagram of this cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    #[error("it is {0} bytes long, and datagrams of nodes have {OVERHEAD} to {DATAGRAM_LEN_MAX}")]
    Length(usize),
    #[error("it is not of ClaudeFS")]
    Magic,
    #[error("it has version {0}, this program speaks 1: the older of both nodes needs an upgrade")]
    Version(u8),
    #[error("it is damaged, or sealed with the key of another cluster")]
    Seal,
}

/// The key to seal with, and those that still open.
pub struct Ring {
    keys: Vec<LessSafeKey>,
    cluster: Uuid,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Ring {
    /// The first key seals.
    pub fn new(keys: &[Zeroizing<[u8; 32]>], cluster: Uuid) -> Ring {
        Ring { keys: keys.iter().map(|key| aead(key)).collect(), cluster }
    }

    fn aad(&self) -> [u8; HEAD.len() + 16] {
        let mut aad = [0; HEAD.len() + 16];
        aad[..HEAD.len()].copy_from_slice(&HEAD);
        aad[HEAD.len()..].copy_from_slice(self.cluster.as_bytes());
        aad
    }

    /// `message` as a datagram; `None` if there is no key or the message is too long.
    pub fn seal(&self, message: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        if message.len() > MESSAGE_LEN_MAX {
            return None;
        }
        let nonce: [u8; NONCE_LEN] = random();
        let mut datagram = Vec::with_capacity(OVERHEAD + message.len());
        datagram.extend_from_slice(&HEAD);
        datagram.extend_from_slice(&nonce);
        datagram.extend_from_slice(message);
        let body = &mut datagram[HEAD.len() + NONCE_LEN..];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(self.aad()), body).ok()?;
        datagram.extend_from_slice(tag.as_ref());
        Some(datagram)
    }

    /// The message in a datagram.
    pub fn open(&self, datagram: &[u8]) -> Result<Vec<u8>, DatagramError> {
        if !(OVERHEAD..=DATAGRAM_LEN_MAX).contains(&datagram.len()) {
            return Err(DatagramError::Length(datagram.len()));
        }
        if datagram[..4] != HEAD[..4] {
            return Err(DatagramError::Magic);
        }
        if datagram[4] != HEAD[4] {
            return Err(DatagramError::Version(datagram[4]));
        }
        if datagram[5..8] != HEAD[5..8] {
            return Err(DatagramError::Magic);
        }
        let (head, body) = datagram.split_at(HEAD.len() + NONCE_LEN);
        let nonce: [u8; NONCE_LEN] = head[HEAD.len()..].try_into().expect("12 bytes");
        for key in &self.keys {
            let mut body = body.to_vec();
            let nonce = Nonce::assume_unique_for_key(nonce);
            if let Ok(message) = key.open_in_place(nonce, Aad::from(self.aad()), &mut body) {
                return Ok(message.to_vec());
            }
        }
        Err(DatagramError::Seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(keys: &[u8], cluster: u128) -> Ring {
        let keys: Vec<_> = keys.iter().map(|byte| Zeroizing::new([*byte; 32])).collect();
        Ring::new(&keys, Uuid::from_u128(cluster))
    }

    #[test]
    fn only_the_cluster_of_the_key_opens_a_datagram() {
        let sealed = ring(&[1], 7).seal(b"hello").unwrap();
        assert_eq!(sealed.len(), OVERHEAD + 5);
        assert_eq!(ring(&[1], 7).open(&sealed).unwrap(), b"hello");
        // While the authority changes, both keys are good.
        assert_eq!(ring(&[2, 1], 7).open(&sealed).unwrap(), b"hello");
        assert_eq!(ring(&[2], 7).open(&sealed), Err(DatagramError::Seal));
        assert_eq!(ring(&[1], 8).open(&sealed), Err(DatagramError::Seal));
        assert_eq!(ring(&[], 7).open(&sealed), Err(DatagramError::Seal));
        assert!(ring(&[], 7).seal(b"hello").is_none());
        assert!(ring(&[1], 7).seal(&[0; MESSAGE_LEN_MAX + 1]).is_none());
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_refused() {
        let ring = ring(&[1], 7);
        let good = ring.seal(b"hello").unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ring.open(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(ring.open(&good[..len]).is_err(), "{len} bytes");
        }
        let mut newer = good.clone();
        newer[4] = 2;
        assert_eq!(ring.open(&newer), Err(DatagramError::Version(2)));
        let long = vec![0; DATAGRAM_LEN_MAX + 1];
        assert_eq!(ring.open(&long), Err(DatagramError::Length(long.len())));
    }
}
