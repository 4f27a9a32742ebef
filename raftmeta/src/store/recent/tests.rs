use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::prelude::*;
use raftmeta_types::Ino;

use super::*;
use crate::keys;

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(number: u8) -> Vec<u8> {
    vec![b'I', number % 6]
}

/// Lists so short that every test meets all their bounds.
const SHORT: Limits = Limits { bytes: 1 << 20, list_pairs: 3, list_bytes: 1000 };

/// Extents around the bounds of windows of two files, and attributes of them.
fn hanging(number: u8) -> Vec<u8> {
    let ino = [0, 0, 0, 0, 0, 0, 0, number & 1];
    let number = number >> 1;
    match number % 4 {
        0 => [&b"X"[..], &ino, &[b'a' + number % 7]].concat(),
        _ => {
            let window = u64::from(number % 5) << 22;
            let window = if number.is_multiple_of(11) { u64::MAX - (3 << 20) } else { window };
            let offset = window + (u64::from(number / 5 % 4) << 20);
            [&b"E"[..], &ino, &offset.to_be_bytes()].concat()
        }
    }
}

fn read_state(
    state: &State,
    from: &[u8],
    to: &[u8],
    limit: usize,
    reverse: bool,
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pairs = state.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
    let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
    match reverse {
        true => pairs.rev().take(limit).map(pair).collect(),
        false => pairs.take(limit).map(pair).collect(),
    }
}

/// A view as the store makes them: a copy of the state, and the commit it stands at if that is known.
struct View {
    state: State,
    at: Option<Commit>,
}

impl View {
    fn read(&self, recent: &Recent, key: &[u8]) -> Option<Vec<u8>> {
        if let Some(found) = self.at.and_then(|at| recent.get(key, at)) {
            return found;
        }
        let value = self.state.get(key).cloned();
        if let Some(at) = self.at {
            recent.keep(key, value.as_deref(), at);
        }
        value
    }

    fn scan(&self, recent: &Recent, range: Range<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let read = |from: &[u8], to: &[u8], limit: usize| {
            Ok(read_state(&self.state, from, to, limit, false))
        };
        let found = self.at.and_then(|at| recent.scan(range, at, &read).unwrap());
        let Range { from, to, limit, reverse } = range;
        found.unwrap_or_else(|| read_state(&self.state, from, to, limit, reverse))
    }
}

fn commit(recent: &Recent, state: &mut State, writes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
    let applied = recent.commit(&writes, || {
        for (key, value) in &writes {
            match value {
                Some(value) => state.insert(key.clone(), value.clone()),
                None => state.remove(key),
            };
        }
        Ok::<(), ()>(())
    });
    applied.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Views of any age, read in any order between commits, see their own state and nothing else.
    #[test]
    fn a_view_sees_its_own_moment(steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..200)) {
        let (recent, mut state) = (Recent::new(), State::new());
        let mut views: Vec<View> = Vec::new();
        for (what, which, value) in steps {
            match what % 4 {
                0 => {
                    let large = value % 5 == 0;
                    let bytes = vec![value; if large { VALUE_MAX + 1 } else { 3 }];
                    let removed = value % 3 == 0;
                    commit(&recent, &mut state, vec![(key(which), (!removed).then_some(bytes))]);
                }
                1 => {
                    let (copy, at) = recent.snapshot(|| state.clone());
                    prop_assert!(at.is_some());
                    views.push(View { state: copy, at });
                }
                _ if views.is_empty() => {}
                _ => {
                    let view = &views[usize::from(value) % views.len()];
                    let found = view.read(&recent, &key(which));
                    prop_assert_eq!(found, view.state.get(&key(which)).cloned());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// The same for scans: in either direction, of parts and wholes, whatever is known.
    #[test]
    fn a_scan_sees_its_own_moment(
        steps in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..300),
    ) {
        let (recent, mut state) = (Recent::with(SHORT), State::new());
        let mut views: Vec<View> = Vec::new();
        for (what, which, other, value) in steps {
            match what % 4 {
                0 => {
                    let removed = value % 3 == 0;
                    let bytes = vec![value; if value % 17 == 0 { SHORT.list_bytes } else { 3 }];
                    let mut writes = vec![(hanging(which), (!removed).then_some(bytes.clone()))];
                    if value % 5 == 0 && other != which {
                        writes.push((hanging(other), Some(bytes)));
                    }
                    commit(&recent, &mut state, writes);
                }
                1 => {
                    let (copy, at) = recent.snapshot(|| state.clone());
                    views.push(View { state: copy, at });
                }
                _ if views.is_empty() => {}
                _ => {
                    let view = &views[usize::from(value) % views.len()];
                    let key = hanging(which);
                    let (mut from, mut to) = keys::prefix_range(&key[..9]);
                    if other & 1 == 0 {
                        from.clone_from(&key);
                    }
                    if other & 2 == 0 {
                        to = hanging(other);
                    }
                    let limit = if other & 4 == 0 { 1 + usize::from(other >> 6) } else { 1000 };
                    let reverse = other & 8 == 0;
                    let range = Range { from: &from, to: &to, limit, reverse };
                    let expected = match from < to {
                        true => read_state(&view.state, &from, &to, limit, reverse),
                        false => Vec::new(),
                    };
                    if from < to {
                        prop_assert_eq!(view.scan(&recent, range), expected);
                    }
                    let value = view.state.get(&key).cloned();
                    prop_assert_eq!(view.read(&recent, &key), value);
                }
            }
        }
    }
}

/// How often fjall is read, and how much it gives, while somebody looks at what lies around each write.
fn reads_of(recent: &Recent, offsets: impl Iterator<Item = u64>) -> (usize, usize) {
    let mut state = State::new();
    let (reads, pairs) = (Cell::new(0), Cell::new(0));
    for offset in offsets {
        let file = keys::extents(Ino(5));
        let (start, end) = (keys::extent(Ino(5), offset), keys::extent(Ino(5), offset + 4096));
        let before = Range { from: &file.0, to: &start, limit: 1, reverse: true };
        let within = Range { from: &start, to: &end, limit: 1000, reverse: false };
        for range in [before, within] {
            let read = |from: &[u8], to: &[u8], limit: usize| {
                let found = read_state(&state, from, to, limit, false);
                reads.set(reads.get() + 1);
                pairs.set(pairs.get() + found.len());
                Ok(found)
            };
            let found = recent.scan(range, recent.done(), &read).unwrap();
            let Range { from, to, limit, reverse } = range;
            let found = found.unwrap_or_else(|| {
                reads.set(reads.get() + 1);
                read_state(&state, from, to, limit, reverse)
            });
            assert_eq!(found, read_state(&state, from, to, limit, reverse));
        }
        commit(recent, &mut state, vec![(start, Some(vec![1; 60]))]);
    }
    (reads.get(), pairs.get())
}

#[test]
fn a_file_that_is_overwritten_is_read_from_fjall_once() {
    let overwrites = (0..10_000u64).map(|number| number * 7919 % 256 * 4096);
    assert_eq!(reads_of(&Recent::new(), overwrites), (1, 0));
}

#[test]
fn of_a_large_file_each_window_is_read_from_fjall_once() {
    // 16 windows of 1024 extents each.
    let overwrites = (0..60_000u64).map(|number| number * 7919 % 16384 * 4096);
    let (reads, pairs) = reads_of(&Recent::new(), overwrites);
    assert!(reads <= 1 + 16 + 16, "{reads} reads");
    assert!(pairs <= 16384, "{pairs} pairs");
}

#[test]
fn what_hangs_on_a_new_inode_is_known_to_be_nothing() {
    let recent = Recent::new();
    let mut state = State::new();
    recent.keep(&keys::inode(Ino(5)), None, 0);
    commit(&recent, &mut state, vec![(keys::inode(Ino(5)), Some(vec![1]))]);
    let unread = |_: &[u8], _: &[u8], _: usize| -> Result<Vec<Pair>, KvError> {
        panic!("fjall is not asked")
    };
    for (from, to) in [keys::extents(Ino(5)), keys::xattrs(Ino(5))] {
        let range = Range { from: &from, to: &to, limit: 10, reverse: false };
        assert_eq!(recent.scan(range, recent.done(), &unread).unwrap(), Some(vec![]));
    }
    assert_eq!(recent.get(&keys::xattr(Ino(5), b"user.x"), recent.done()), Some(None));
}

#[test]
fn a_view_taken_in_the_middle_of_a_commit_goes_without() {
    let recent = Recent::new();
    let writes = [(key(1), Some(vec![1]))];
    recent
        .commit(&writes, || {
            assert_eq!(recent.snapshot(|| ()).1, None);
            Ok::<(), ()>(())
        })
        .unwrap();
    assert_eq!(recent.snapshot(|| ()).1, Some(1));
    assert_eq!(recent.get(&key(1), 1), Some(Some(vec![1])));
    assert_eq!(recent.get(&key(1), 0), None, "an older view does not see it");
    // A failed commit may have changed anything: nobody trusts what is kept from then on.
    assert!(recent.commit(&writes, || Err(())).is_err());
    assert_eq!(recent.snapshot(|| ()).1, None);
}

#[test]
fn it_is_bounded_and_keeps_what_is_asked_for() {
    let recent = Recent::new();
    let value = vec![1; 3000];
    let hot = b"Ihot".to_vec();
    recent.keep(&hot, Some(&value), 0);
    for number in 0..100_000u32 {
        recent.keep(&[b"I", &number.to_be_bytes()[..]].concat(), Some(&value), 0);
        if number % 64 == 0 {
            assert!(recent.get(&hot, 0).is_some(), "lost after {number}");
        }
    }
    let bytes: usize = recent
        .shards
        .iter()
        .map(|shard| {
            let shard = shard.lock();
            (shard.young.len() + shard.old.len()) * value.len()
        })
        .sum();
    assert!(bytes <= BYTES_MAX, "{bytes}");
    recent.clear();
    assert_eq!(recent.get(&hot, recent.done()), None);
}
