//! Is a history of concurrent operations linearizable? The algorithm of Wing and Gong with Lowe's memory of what was tried
//! (as in Knossos and Porcupine).
//!
//! A history is the operations on one key. Each took effect at one moment between its start and its end, or it may have
//! at any moment after its start, or never, if nobody knows how it ended. The search takes one operation after the
//! other that may be next: one that started before every operation left has ended. A configuration, the set of
//! operations taken and the state after them, is looked at once.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

/// What a key is: states, and what an operation with the result it had does to one.
pub trait Model {
    type State: Clone + Eq + Hash + Debug;
    type Op: Debug;
    fn initial(&self) -> Self::State;
    /// The state after the operation; nothing if it could not have had this result.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
}

/// An operation and when it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry<O> {
    /// Who did it, for people.
    pub process: usize,
    /// Microseconds of one clock.
    pub start_us: u64,
    /// Nothing if it is not known whether it took effect.
    pub end_us: Option<u64>,
    pub op: O,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// The longest sequence of operations that is possible, by their places, and the first that none can be followed by.
    Violation {
        longest: Vec<usize>,
        stuck: usize,
    },
    /// More configurations than were allowed.
    Undecided,
}

/// A place in the search: what is chosen at one depth.
struct Frame<S> {
    /// The state before the choice.
    state: S,
    /// The operation taken.
    taken: usize,
}

/// Looks at `configurations_max` configurations at most.
pub fn check<M: Model>(model: &M, history: &[Entry<M::Op>], configurations_max: usize) -> Verdict {
    let mut order: Vec<usize> = (0..history.len()).collect();
    order.sort_by_key(|at| history[*at].start_us);
    let completed = history.iter().filter(|entry| entry.end_us.is_some()).count();
    let mut taken = Set::new(history.len());
    let mut left = completed;
    let mut state = model.initial();
    let mut seen: HashSet<(Set, M::State)> = HashSet::new();
    let mut stack: Vec<Frame<M::State>> = Vec::new();
    let mut longest: Vec<usize> = Vec::new();
    // Where in `order` to look on at this depth.
    let mut from = 0;
    while left > 0 {
        match next(model, history, &order, &taken, &state, from) {
            Some((place, after)) => {
                let at = order[place];
                taken.insert(at);
                if seen.insert((taken.clone(), after.clone())) {
                    left -= usize::from(history[at].end_us.is_some());
                    stack.push(Frame { state: std::mem::replace(&mut state, after), taken: place });
                    from = 0;
                    if stack.len() > longest.len() {
                        longest = stack.iter().map(|frame| order[frame.taken]).collect();
                    }
                } else {
                    taken.remove(at);
                    from = place + 1;
                }
                if seen.len() > configurations_max {
                    return Verdict::Undecided;
                }
            }
            None => {
                let Some(frame) = stack.pop() else {
                    let open = order
                        .iter()
                        .find(|at| !longest.contains(at) && history[**at].end_us.is_some());
                    let stuck = *open.expect("an operation is left");
                    return Verdict::Violation { longest, stuck };
                };
                let at = order[frame.taken];
                taken.remove(at);
                left += usize::from(history[at].end_us.is_some());
                state = frame.state;
                from = frame.taken + 1;
            }
        }
    }
    Verdict::Linearizable
}

/// The next operation that may be taken, from this place of the order on, and the state after it.
fn next<M: Model>(
    model: &M,
    history: &[Entry<M::Op>],
    order: &[usize],
    taken: &Set,
    state: &M::State,
    from: usize,
) -> Option<(usize, M::State)> {
    // Of those left the first to end has to be taken before any that started later.
    let mut first_end = u64::MAX;
    for place in taken.first_missing(order)..order.len() {
        let entry = &history[order[place]];
        if entry.start_us > first_end {
            break;
        }
        if !taken.has(order[place]) {
            first_end = first_end.min(entry.end_us.unwrap_or(u64::MAX));
        }
    }
    for (place, at) in order.iter().enumerate().skip(from.max(taken.first_missing(order))) {
        if history[*at].start_us > first_end {
            return None;
        }
        if taken.has(*at) {
            continue;
        }
        if let Some(after) = model.step(state, &history[*at].op) {
            return Some((place, after));
        }
    }
    None
}

/// A set of operations.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn new(len: usize) -> Set {
        Set(vec![0; len.div_ceil(64)])
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn remove(&mut self, at: usize) {
        self.0[at / 64] &= !(1 << (at % 64));
    }

    /// The first place of the order whose operation is not in the set.
    fn first_missing(&self, order: &[usize]) -> usize {
        order.iter().position(|at| !self.has(*at)).unwrap_or(order.len())
    }
}

/// A violation in words: what led to it and what was going on.
pub fn explain<O: Debug>(history: &[Entry<O>], longest: &[usize], stuck: usize) -> String {
    let line = |at: &usize| {
        let Entry { process, start_us, end_us, op } = &history[*at];
        let end = end_us.map_or("?".to_owned(), |end| end.to_string());
        format!("    {start_us:>12} - {end:>12} us  process {process}  {op:?}\n")
    };
    let tail = &longest[longest.len().saturating_sub(12)..];
    let mut text = String::from("  the end of the longest possible order:\n");
    tail.iter().for_each(|at| text += &line(at));
    text += "  which cannot be followed by:\n";
    text += &line(&stuck);
    text += "  others that were under way then, or in doubt:\n";
    let (start, end) = (history[stuck].start_us, history[stuck].end_us.unwrap_or(u64::MAX));
    for (at, entry) in history.iter().enumerate() {
        let overlaps = entry.start_us <= end && entry.end_us.unwrap_or(u64::MAX) >= start;
        if at != stuck && overlaps && !longest.contains(&at) {
            text += &line(&at);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cell with a number.
    struct Cell;

    #[derive(Clone, Debug)]
    enum Op {
        Write(u64),
        Read(u64),
    }

    impl Model for Cell {
        type State = u64;
        type Op = Op;

        fn initial(&self) -> u64 {
            0
        }

        fn step(&self, state: &u64, op: &Op) -> Option<u64> {
            match op {
                Op::Write(value) => Some(*value),
                Op::Read(value) => (state == value).then_some(*state),
            }
        }
    }

    fn verdict(history: &[(u64, Option<u64>, Op)]) -> Verdict {
        let entry = |(process, (start_us, end_us, op)): (usize, &(u64, Option<u64>, Op))| Entry {
            process,
            start_us: *start_us,
            end_us: *end_us,
            op: op.clone(),
        };
        check(&Cell, &history.iter().enumerate().map(entry).collect::<Vec<_>>(), 10_000)
    }

    fn is_good(history: &[(u64, Option<u64>, Op)]) -> bool {
        verdict(history) == Verdict::Linearizable
    }

    #[test]
    fn one_after_the_other() {
        assert!(is_good(&[]));
        assert!(is_good(&[
            (0, Some(1), Op::Read(0)),
            (2, Some(3), Op::Write(1)),
            (4, Some(5), Op::Read(1))
        ]));
        // A stale read.
        let stale =
            [(0, Some(1), Op::Write(1)), (2, Some(3), Op::Write(2)), (4, Some(5), Op::Read(1))];
        assert_eq!(verdict(&stale), Verdict::Violation { longest: vec![0, 1], stuck: 2 });
        // A value that nobody wrote.
        assert!(!is_good(&[(0, Some(1), Op::Read(7))]));
    }

    #[test]
    fn side_by_side_either_may_be_first_but_only_one() {
        let writes = [(0, Some(10), Op::Write(1)), (0, Some(10), Op::Write(2))];
        let with = |reads: &[(u64, Option<u64>, Op)]| [&writes[..], reads].concat();
        assert!(is_good(&with(&[(11, Some(12), Op::Read(1)), (13, Some(14), Op::Read(1))])));
        assert!(is_good(&with(&[(11, Some(12), Op::Read(2))])));
        assert!(!is_good(&with(&[(11, Some(12), Op::Read(2)), (13, Some(14), Op::Read(1))])));
        assert!(!is_good(&with(&[(11, Some(12), Op::Read(0))])));
        // While both are under way it may be seen to change twice.
        let seen =
            [(1, Some(2), Op::Read(0)), (3, Some(4), Op::Read(2)), (5, Some(6), Op::Read(1))];
        assert!(is_good(&with(&seen)));
    }

    #[test]
    fn what_is_in_doubt_happens_late_or_never_and_once() {
        let doubt = [(0, None, Op::Write(1)), (5, Some(6), Op::Write(2))];
        let with = |reads: &[(u64, Option<u64>, Op)]| [&doubt[..], reads].concat();
        assert!(is_good(&with(&[(7, Some(8), Op::Read(2))])));
        assert!(is_good(&with(&[(7, Some(8), Op::Read(2)), (9, Some(10), Op::Read(1))])));
        let twice = [(7, Some(8), Op::Read(1)), (9, Some(10), Op::Read(2))];
        assert!(!is_good(&with(&twice)));
        // Not before it started.
        let early = [(0, Some(1), Op::Read(1)), (2, None, Op::Write(1))];
        assert!(!is_good(&early));
    }

    #[test]
    fn a_long_history_is_decided_and_a_hopeless_one_is_given_up() {
        let mut long = Vec::new();
        for n in 1..400u64 {
            long.push((n * 10, Some(n * 10 + 15), Op::Write(n)));
            long.push((n * 10 + 16, Some(n * 10 + 18), Op::Read(n)));
        }
        assert!(is_good(&long));
        let sequential: Vec<_> = (1..2000u64)
            .flat_map(|n| {
                [(n * 4, Some(n * 4 + 1), Op::Write(n)), (n * 4 + 2, Some(n * 4 + 3), Op::Read(n))]
            })
            .collect();
        assert!(is_good(&sequential));
        let mut wide: Vec<_> = (1..40u64).map(|n| (0, Some(100), Op::Write(n))).collect();
        wide.push((200, Some(201), Op::Read(99)));
        assert_eq!(verdict(&wide), Verdict::Undecided);
        assert!(
            explain(&[Entry { process: 1, start_us: 3, end_us: None, op: 5 }], &[], 0)
                .contains("process 1")
        );
    }
}
