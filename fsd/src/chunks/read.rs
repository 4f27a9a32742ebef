//! Reads: checksum, then tag, then length; anything wrong is `Damaged`, never data.

use blockd_ipc::volume::Volume;
use bytes::Bytes;
use raftmeta_types::ChunkHash;

use super::error::{Error, Kind};
use super::format::{BLOCK, RecordHeader, record_bytes};
use super::{ChunkStore, Inner, Location, codec};

impl<V: Volume> ChunkStore<V> {
    /// The plaintext of a chunk.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    pub async fn get(&self, hash: &ChunkHash) -> Result<Bytes, Error> {
        let inner = &self.inner;
        loop {
            let (at, sequence) = {
                let index = inner.index.lock();
                let Some(at) = index.map.get(hash).copied() else {
                    return Err(Error::new(Kind::NotFound, format!("no chunk {hash} here")));
                };
                (at, index.slots[at.slot as usize].sequence)
            };
            let read = inner.read_record(&at, sequence).await;
            let plain = match read {
                Ok(record) => record
                    .filter(|(head, _)| head.hash == *hash)
                    .and_then(|(head, body)| Some((inner.keys.open(&head, body)?, head)))
                    .and_then(|(body, head)| {
                        codec::decompress(head.codec, body, head.plain_len as usize)
                    }),
                Err(error) => return Err(error),
            };
            if let Some(plain) = plain {
                return Ok(plain.into());
            }
            let mut index = inner.index.lock();
            // The cleaner may have moved it while we read.
            if index.map.get(hash) == Some(&at) {
                index.damaged.insert(*hash);
                return Err(Error::new(
                    Kind::Damaged,
                    format!("chunk {hash} in slot {} at {} is damaged", at.slot, at.offset),
                ));
            }
        }
    }

    /// Reads every chunk, against its name too. `progress` hears how many of how many are done.
    pub async fn verify(&self, mut progress: impl FnMut(u64, u64)) -> Vec<(ChunkHash, Error)> {
        let hashes = self.iter_hashes(None);
        let mut bad = Vec::new();
        for (done, hash) in (1..).zip(&hashes) {
            match self.get(hash).await {
                Ok(plain) if blake3::hash(&plain).as_bytes() == &hash.0 => {}
                Ok(_) => bad.push((*hash, Error::new(Kind::Damaged, format!("chunk {hash}")))),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => bad.push((*hash, error)),
            }
            progress(done, hashes.len() as u64);
        }
        bad
    }
}

impl<V: Volume> Inner<V> {
    async fn read_record(
        &self,
        at: &Location,
        sequence: u64,
    ) -> Result<Option<(RecordHeader, Vec<u8>)>, Error> {
        let start = at.offset as usize / BLOCK * BLOCK;
        let end = (at.offset as usize + record_bytes(at.stored_len)).next_multiple_of(BLOCK);
        let offset = self.device.slot_start(at.slot) + start as u64;
        let bytes = self.device.read(offset, end - start).await?;
        let record = RecordHeader::decode(&bytes[at.offset as usize - start..], sequence);
        Ok(record.map(|(head, stored)| (head, stored.to_vec())))
    }
}
