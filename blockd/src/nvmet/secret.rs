//! DH-HMAC-CHAP secrets: `DHHC-1:<hash>:<base64 of key and CRC-32>:` (NVMe base 2.0 §8.13.5.8).

use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

/// A hash of DH-HMAC-CHAP, by its identifier on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub fn of_id(id: u8) -> Option<Hash> {
        match id {
            1 => Some(Hash::Sha256),
            2 => Some(Hash::Sha384),
            3 => Some(Hash::Sha512),
            _ => None,
        }
    }

    pub fn id(self) -> u8 {
        match self {
            Hash::Sha256 => 1,
            Hash::Sha384 => 2,
            Hash::Sha512 => 3,
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Hash::Sha256 => hmac::HMAC_SHA256,
            Hash::Sha384 => hmac::HMAC_SHA384,
            Hash::Sha512 => hmac::HMAC_SHA512,
        }
    }

    /// The hash itself.
    pub fn digest(self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        let algorithm = match self {
            Hash::Sha256 => &digest::SHA256,
            Hash::Sha384 => &digest::SHA384,
            Hash::Sha512 => &digest::SHA512,
        };
        Zeroizing::new(digest::digest(algorithm, bytes).as_ref().to_vec())
    }

    /// HMAC over the parts.
    pub fn mac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.algorithm(), key));
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }
}

/// A secret; it is never shown.
#[derive(Clone)]
pub struct Secret {
    key: Zeroizing<Vec<u8>>,
    transform: Option<Hash>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads the text form. The error says what is wrong, never what the secret is.
    pub fn parse(text: &str) -> Result<Secret, &'static str> {
        let mut fields = text.trim().split(':');
        if fields.next() != Some("DHHC-1") {
            return Err("a secret starts with \"DHHC-1:\"; make one with nvme gen-dhchap-key");
        }
        let transform = match fields.next() {
            Some("00") => None,
            Some("01") => Some(Hash::Sha256),
            Some("02") => Some(Hash::Sha384),
            Some("03") => Some(Hash::Sha512),
            _ => return Err("the secret's hash is none of 00, 01, 02, 03"),
        };
        let encoded = fields.next().ok_or("the secret has no key")?;
        if fields.next() != Some("") || fields.next().is_some() {
            return Err("a secret ends with one ':'");
        }
        let mut key = Zeroizing::new(base64(encoded).ok_or("the secret's key is not base64")?);
        if !matches!(key.len(), 36 | 52 | 68) {
            return Err("a secret's key has 32, 48 or 64 bytes");
        }
        let at = key.len() - 4;
        let sent = u32::from_le_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
        key.truncate(at);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &key) as u32;
        if crc != sent {
            return Err("the secret's CRC is wrong: it was mistyped or cut");
        }
        Ok(Secret { key, transform })
    }

    /// The key as it is used for the name of its owner.
    pub fn transformed(&self, nqn: &str) -> Zeroizing<Vec<u8>> {
        match self.transform {
            None => self.key.clone(),
            Some(hash) => {
                Zeroizing::new(hash.mac(&self.key, &[nqn.as_bytes(), b"NVMe-over-Fabrics"]))
            }
        }
    }
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(body.len() * 3 / 4 + 3);
    let (mut bits, mut count) = (0_u32, 0);
    for c in body.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Made by `nvme gen-dhchap-key --hmac=1 --nqn=nqn.2014-08.org.example:h --secret=000102…1f`, and without a hash.
    pub fn encode(key: &[u8], hash: u8) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut bytes = key.to_vec();
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, key) as u32;
        bytes.extend_from_slice(&crc.to_le_bytes());
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let word =
                chunk.iter().fold(0_u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
            for i in 0..4 {
                if i <= chunk.len() {
                    text.push(char::from(DIGITS[(word >> (18 - 6 * i) & 63) as usize]));
                } else {
                    text.push('=');
                }
            }
        }
        format!("DHHC-1:{hash:02}:{text}:")
    }

    #[test]
    fn what_is_wrong_is_named_and_the_key_is_not_shown() {
        let good = encode(&[7; 32], 1);
        let secret = Secret::parse(&format!("{good}\n")).unwrap();
        assert_eq!(*secret.key, vec![7; 32]);
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_ne!(*secret.transformed("nqn.a"), *secret.transformed("nqn.b"));
        let mut flipped = good.clone().into_bytes();
        flipped[12] ^= 1;
        let cases = [
            ("", "DHHC-1"),
            ("DHHC-1:04:AAAA:", "hash"),
            ("DHHC-1:00:AAAA:", "32, 48 or 64"),
            ("DHHC-1:00:AAA:", "base64"),
            ("DHHC-1:00:AAAA", "ends with"),
            (&String::from_utf8(flipped).unwrap(), "CRC"),
        ];
        for (text, word) in cases {
            let error = Secret::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        for len in [32, 48, 64] {
            Secret::parse(&encode(&vec![9; len], 0)).unwrap();
        }
    }
}
