use super::*;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const FILE: Ino = Ino(7);
const OTHER: Ino = Ino(8);
const START: Duration = Duration::ZERO;

#[test]
fn holders_are_those_that_opened_and_did_not_close() {
    let mut sessions = Sessions::default();
    sessions.hello(B, [], START).unwrap();
    sessions.hello(A, [], START).unwrap();
    sessions.open(B, FILE).unwrap();
    sessions.open(A, FILE).unwrap();
    assert_eq!(sessions.holders(FILE), [A, B]);
    assert_eq!(sessions.holders(OTHER), []);
    sessions.close(A, FILE);
    assert_eq!(sessions.holders(FILE), [B]);
    sessions.end(B);
    assert_eq!(sessions.holders(FILE), []);
    assert!(sessions.holders.is_empty(), "nothing is kept for closed inodes");
}

#[test]
fn an_awaited_session_may_hold_anything_until_it_is_back_or_ended() {
    let mut sessions = Sessions::restarted([A, B], START);
    assert_eq!(sessions.holders(FILE), [A, B]);
    sessions.hello(A, [FILE], START).unwrap();
    assert_eq!(sessions.holders(FILE), [A, B]);
    assert_eq!(sessions.holders(OTHER), [B]);
    sessions.end(B);
    assert_eq!(sessions.holders(FILE), [A]);
    assert_eq!(sessions.holders(OTHER), []);
}

#[test]
fn a_lease_is_over_after_its_time_and_traffic_renews_it() {
    let mut sessions = Sessions::restarted([A], START);
    sessions.hello(B, [], START).unwrap();
    assert_eq!(sessions.expired(LEASE), []);
    let later = LEASE + Duration::from_millis(1);
    assert_eq!(sessions.expired(later), [A, B]);
    assert!(sessions.touch(B, LEASE));
    assert_eq!(sessions.expired(later), [A]);
    sessions.end(A);
    assert!(!sessions.touch(A, later));
    assert_eq!(sessions.expired(later), []);
}

#[test]
fn time_that_goes_back_does_not_shorten_a_lease() {
    let mut sessions = Sessions::default();
    sessions.hello(A, [], LEASE).unwrap();
    sessions.touch(A, START);
    assert_eq!(sessions.expired(LEASE * 2), []);
}

#[test]
fn only_the_list_of_an_awaited_session_counts() {
    let mut sessions = Sessions::restarted([A], START);
    assert_eq!(sessions.hello(A, [FILE], START), Ok(true));
    assert_eq!(sessions.open(A, OTHER), Ok(true));
    sessions.close(A, FILE);
    // A further connection whose list was made before the close.
    assert_eq!(sessions.hello(A, [FILE], START), Ok(false));
    assert_eq!(sessions.holders(FILE), []);
    assert_eq!(sessions.holders(OTHER), [A]);
    assert!(sessions.holds(A, OTHER) && !sessions.holds(A, FILE) && !sessions.holds(B, OTHER));
    assert_eq!(sessions.activity(A, LEASE), Some((LEASE, 1)));
}

#[test]
fn an_unknown_session_holds_nothing() {
    let mut sessions = Sessions::default();
    sessions.open(A, FILE).unwrap();
    sessions.close(A, FILE);
    assert_eq!(sessions.holders(FILE), []);
}

#[test]
fn one_session_cannot_open_without_bound() {
    let mut sessions = Sessions::restarted([A], START);
    sessions.hello(A, (0..OPEN_MAX as u64).map(Ino), START).unwrap();
    assert_eq!(sessions.open(A, Ino(OPEN_MAX as u64)), Err(TooManyOpen(A)));
    assert_eq!(sessions.open(A, Ino(0)), Ok(false), "open already");
    sessions.close(A, Ino(0));
    assert_eq!(sessions.open(A, Ino(OPEN_MAX as u64)), Ok(true));
}
