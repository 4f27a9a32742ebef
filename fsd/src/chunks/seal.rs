//! AES-256-GCM over a chunk's stored bytes, with a random nonce; and the cluster key's wrapping.
//!
//! The cluster key is wrapped by a master key, which lives in a file that only its owner reads.
//! Name, lengths, codec and key id are authenticated too, so no record can pose as another.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::{Error, Kind};
use super::format::{self, RecordHeader};

pub const TAG: usize = 16;
const WRAP_MAGIC: &[u8; 8] = b"CFSWRAP1";

/// The key of a cluster, ready for use. Its `Debug` shows the id alone.
pub struct Keys {
    id: u32,
    key: LessSafeKey,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

pub(crate) fn aead(secret: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).expect("32 bytes are a key"))
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has randomness");
    bytes
}

impl Keys {
    pub fn new(id: u32, secret: &[u8; 32]) -> Keys {
        Keys { id, key: aead(secret) }
    }

    /// Reads the wrapped cluster key, or makes both files when neither exists.
    ///
    /// # Errors
    /// `Key`: a file is missing, readable by others or damaged, or the master key is another one.
    pub fn load_or_create(master: &Path, wrapped: &Path, cluster: Uuid) -> Result<Keys, Error> {
        if !wrapped.exists() {
            if !master.exists() {
                write_secret(master, &Zeroizing::new(random::<32>())[..])?;
            }
            let master = read_master(master)?;
            let secret = Zeroizing::new(random::<32>());
            let nonce = random::<12>();
            let mut body = secret.to_vec();
            aead(&master)
                .seal_in_place_append_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(wrap_aad(1, cluster)),
                    &mut body,
                )
                .map_err(|_| Error::new(Kind::Key, "wrapping the cluster key failed"))?;
            let head = [&WRAP_MAGIC[..], &1u32.to_le_bytes(), &nonce, &body].concat();
            write_secret(wrapped, &head)?;
        }
        Keys::load(master, wrapped, cluster)
    }

    /// Reads and unwraps the cluster key.
    ///
    /// # Errors
    /// As [`Keys::load_or_create`].
    pub fn load(master: &Path, wrapped: &Path, cluster: Uuid) -> Result<Keys, Error> {
        let secret = read_master(master)?;
        let bad = |why: &str| Error::new(Kind::Key, format!("{}: {why}", wrapped.display()));
        let bytes = std::fs::read(wrapped).map_err(|error| bad(&error.to_string()))?;
        if let [b'C', b'F', b'S', b'W', b'R', b'A', b'P', format, ..] = bytes[..]
            && format > WRAP_MAGIC[7]
        {
            let (found, reads) = (char::from(format), char::from(WRAP_MAGIC[7]));
            return Err(bad(&format!(
                "format {found} is newer than {reads}, the newest that this fsd reads: upgrade it"
            )));
        }
        if bytes.len() != 8 + 4 + 12 + 32 + TAG || &bytes[..8] != WRAP_MAGIC {
            return Err(bad("is not a wrapped cluster key"));
        }
        let id = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        let nonce: [u8; 12] = bytes[12..24].try_into().expect("twelve bytes");
        let mut body = Zeroizing::new(bytes[24..].to_vec());
        let plain = aead(&secret)
            .open_in_place(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(wrap_aad(id, cluster)),
                &mut body,
            )
            .map_err(|_| {
                bad(&format!(
                    "cannot be unwrapped: {} is not the master key of cluster {cluster}, or the \
                     file is damaged",
                    master.display()
                ))
            })?;
        let secret: Zeroizing<[u8; 32]> =
            Zeroizing::new((&*plain).try_into().map_err(|_| bad("has a wrong length"))?);
        Ok(Keys::new(id, &secret))
    }

    /// Seals in place, appends the tag and gives the header.
    pub(super) fn seal(
        &self,
        hash: raftmeta_types::ChunkHash,
        plain_len: u32,
        codec: u8,
        body: &mut Vec<u8>,
    ) -> RecordHeader {
        let stored_len = (body.len() + TAG) as u32;
        let nonce = random();
        let key_id = self.id;
        let mut head =
            RecordHeader { hash, plain_len, stored_len, codec, key_id, nonce, stored_crc: 0 };
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(record_aad(&head)),
                body,
            )
            .expect("a chunk is far below the limit of the cipher");
        head.stored_crc = format::crc32c(&[body.as_slice()]);
        head
    }

    /// The bytes that were sealed; `None` if anything is not as it was.
    pub(super) fn open(&self, head: &RecordHeader, mut body: Vec<u8>) -> Option<Vec<u8>> {
        if head.key_id != self.id {
            return None;
        }
        let nonce = Nonce::assume_unique_for_key(head.nonce);
        let len = self.key.open_in_place(nonce, Aad::from(record_aad(head)), &mut body).ok()?.len();
        body.truncate(len);
        Some(body)
    }
}

fn wrap_aad(id: u32, cluster: Uuid) -> Vec<u8> {
    [&WRAP_MAGIC[..], &id.to_le_bytes(), cluster.as_bytes()].concat()
}

fn record_aad(head: &RecordHeader) -> [u8; 48] {
    let mut aad = [0; 48];
    aad[..32].copy_from_slice(&head.hash.0);
    aad[32..36].copy_from_slice(&head.plain_len.to_le_bytes());
    aad[36..40].copy_from_slice(&head.stored_len.to_le_bytes());
    aad[40] = head.codec;
    aad[44..].copy_from_slice(&head.key_id.to_le_bytes());
    aad
}

/// The node's master key, from a file that only its owner reads.
pub(crate) fn read_master(path: &Path) -> Result<Zeroizing<[u8; 32]>, Error> {
    let bad = |why: String| Error::new(Kind::Key, format!("master key {}: {why}", path.display()));
    let mut file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let mode = file.metadata().map_err(|error| bad(error.to_string()))?.mode();
    if mode & 0o077 != 0 {
        return Err(bad(format!("mode {:o} lets others read it, chmod 600 it", mode & 0o777)));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(33));
    (&mut file).take(33).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
    let key: [u8; 32] =
        bytes.as_slice().try_into().map_err(|_| bad("is not 32 bytes long".to_owned()))?;
    Ok(Zeroizing::new(key))
}

/// Writes beside, syncs and renames: the file is there whole or not at all.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || -> std::io::Result<()> {
        let beside = path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| Error::new(Kind::Key, format!("writing {}: {error}", path.display())))
}
