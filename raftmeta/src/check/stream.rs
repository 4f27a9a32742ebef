//! A class of records in key order, a bounded number of them in memory.

use std::iter::{FusedIterator, Peekable};
use std::vec;

use raftmeta_types::{Ino, Inode};
use serde::de::DeserializeOwned;

use crate::kv::{KvError, KvRead, Pair};
use crate::{keys, records};

/// Pairs read at once.
const PAIRS_AT_ONCE: usize = 1024;

/// The pairs of a range. Ends after an error.
pub(super) struct Pairs<'k, K> {
    kv: &'k K,
    from: Vec<u8>,
    to: Vec<u8>,
    read: vec::IntoIter<Pair>,
    ended: bool,
}

impl<'k, K: KvRead> Pairs<'k, K> {
    pub fn class(kv: &'k K, class: u8) -> Pairs<'k, K> {
        Pairs::range(kv, keys::class(class))
    }

    pub fn range(kv: &'k K, (from, to): (Vec<u8>, Vec<u8>)) -> Pairs<'k, K> {
        Pairs { kv, from, to, read: Vec::new().into_iter(), ended: false }
    }

    fn refill(&mut self) -> Result<(), KvError> {
        let pairs = self.kv.scan(&self.from, &self.to, PAIRS_AT_ONCE, false)?;
        match pairs.last() {
            Some((last, _)) if pairs.len() == PAIRS_AT_ONCE => {
                self.from = [&last[..], &[0]].concat();
            }
            _ => self.ended = true,
        }
        self.read = pairs.into_iter();
        Ok(())
    }
}

impl<K: KvRead> Iterator for Pairs<'_, K> {
    type Item = Result<Pair, KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.len() == 0
            && !self.ended
            && let Err(error) = self.refill()
        {
            self.ended = true;
            return Some(Err(error));
        }
        self.read.next().map(Ok)
    }
}

impl<K: KvRead> FusedIterator for Pairs<'_, K> {}

/// The records of a class, decoded.
pub(super) fn class<'k, T: DeserializeOwned + 'k, K: KvRead>(
    kv: &'k K,
    class: u8,
) -> impl Iterator<Item = Result<(Vec<u8>, T), KvError>> + 'k {
    Pairs::class(kv, class).map(|pair| {
        let (key, bytes) = pair?;
        let value = records::decode(&key, &bytes)?;
        Ok((key, value))
    })
}

/// All inodes, in order.
pub(super) fn inodes<'k, K: KvRead>(
    kv: &'k K,
) -> impl Iterator<Item = Result<(Ino, Inode), KvError>> + 'k {
    class(kv, b'I').map(|record| record.map(|(key, inode)| (Ino(keys::first_number(&key)), inode)))
}

/// Goes along a stream that ascends, beside another that does.
pub(super) struct Beside<I: Iterator>(Peekable<I>);

impl<I, N: Ord + Copy, T> Beside<I>
where
    I: Iterator<Item = Result<(N, T), KvError>>,
{
    pub fn new(stream: I) -> Beside<I> {
        Beside(stream.peekable())
    }

    /// The number of the next item.
    pub fn number(&mut self) -> Result<Option<N>, KvError> {
        match self.0.peek() {
            Some(Ok((number, _))) => Ok(Some(*number)),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// The next item if its number is below `to`; every item, if there is no `to`.
    pub fn below(&mut self, to: Option<N>) -> Result<Option<(N, T)>, KvError> {
        let next = self.0.next_if(|item| match (item, to) {
            (Ok((number, _)), Some(to)) => *number < to,
            (Ok(_), None) | (Err(_), _) => true,
        });
        next.transpose()
    }

    /// The next item if it has this number.
    pub fn at(&mut self, number: N) -> Result<Option<T>, KvError> {
        let next = self.0.next_if(|item| match item {
            Ok((other, _)) => *other == number,
            Err(_) => true,
        });
        Ok(next.transpose()?.map(|(_, item)| item))
    }
}
