//! Arenas, pools and descriptor passing against the real kernel.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hugepages::{Arena, BUFFER_BYTES_MAX, Backing, Buffer, Error, HUGE_PAGE_BYTES, Pool, fds};

#[test]
fn two_mappings_of_one_arena_see_the_same_bytes() {
    let arena = Arc::new(Arena::new(2 * HUGE_PAGE_BYTES).unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    fds::send(&ours, &[arena.fd()]).unwrap();
    let fd = fds::receive(&theirs, 1).unwrap().pop().unwrap();
    let other = Arc::new(Arena::from_fd(fd, 2 * HUGE_PAGE_BYTES).unwrap());
    assert_eq!(other.backing(), arena.backing());

    let mut buffer = Pool::new(arena, HUGE_PAGE_BYTES, || {}).take(5000).unwrap();
    buffer.fill(0xa5);
    assert_eq!(buffer.arena_offset(), Some(HUGE_PAGE_BYTES));
    let same = Pool::new(other, HUGE_PAGE_BYTES, || {}).take(5000).unwrap();
    assert!(same.iter().all(|&byte| byte == 0xa5));
}

#[test]
fn ordinary_pages_do_where_there_are_no_huge_ones() {
    let arena = Arena::ordinary(HUGE_PAGE_BYTES).unwrap();
    assert_eq!(arena.backing(), Backing::Transparent);
    assert_eq!(arena.bytes(), HUGE_PAGE_BYTES);
}

#[test]
fn a_pool_runs_dry_and_says_when_memory_comes_back() {
    let freed = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&freed);
    let arena = Arc::new(Arena::ordinary(HUGE_PAGE_BYTES).unwrap());
    let pool = Pool::new(arena, 0, move || {
        seen.fetch_add(1, Ordering::Relaxed);
    });
    let whole = pool.take(BUFFER_BYTES_MAX).unwrap();
    assert!(pool.take(1).is_none());
    drop(whole);
    assert_eq!(freed.load(Ordering::Relaxed), 1);
    assert_eq!(pool.free_bytes(), HUGE_PAGE_BYTES);
    assert_eq!(pool.take(4097).unwrap().capacity(), 8192);
}

#[test]
fn private_buffers_are_aligned_and_zeroed() {
    let mut buffer = Buffer::private(4097);
    assert_eq!(buffer.as_ptr() as usize % 4096, 0);
    assert!(buffer.iter().all(|&byte| byte == 0));
    assert_eq!(buffer.arena_offset(), None);
    buffer.set_len(8192);
    buffer.fill(1);
    assert_eq!(buffer.len(), 8192);
}

#[test]
fn bad_lengths_and_descriptors_are_refused_by_name() {
    for bytes in [0, 4096, HUGE_PAGE_BYTES + 1] {
        assert!(matches!(Arena::new(bytes), Err(Error::Length { .. })), "{bytes}");
    }
    let arena = Arena::ordinary(HUGE_PAGE_BYTES).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    fds::send(&ours, &[arena.fd()]).unwrap();
    let error = fds::receive(&theirs, 2).unwrap_err();
    assert!(matches!(error, Error::Descriptors { expected: 2, got: 1 }), "{error}");

    fds::send(&ours, &[arena.fd()]).unwrap();
    let fd = fds::receive(&theirs, 1).unwrap().pop().unwrap();
    // A peer that promises more memory than it gave must not make us fault.
    assert!(matches!(Arena::from_fd(fd, 4 * HUGE_PAGE_BYTES), Err(Error::Length { .. })));

    drop(ours);
    assert!(matches!(fds::receive(&theirs, 1), Err(Error::Descriptors { .. })));
}
