use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(number: u8) -> Vec<u8> {
    vec![b'I', number % 6]
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
