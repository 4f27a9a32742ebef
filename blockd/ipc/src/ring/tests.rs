use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn arena() -> Arc<Arena> {
    Arc::new(Arena::ordinary(2 * layout::QUEUE_BYTES).unwrap())
}

proptest! {
    /// The ring is a bounded queue.
    #[test]
    fn a_ring_is_a_bounded_queue(pushes in proptest::collection::vec(any::<Option<u64>>(), 0..300)) {
        let arena = arena();
        format(&arena, 8);
        let (mut producer, _) = client(&arena, 8);
        let (mut consumer, _) = server(&arena, 8);
        let mut model = VecDeque::new();
        for push in pushes {
            match push {
                Some(word) => {
                    let pushed = producer.push([word; 8]).unwrap();
                    prop_assert_eq!(pushed, model.len() < 8);
                    if pushed {
                        model.push_back([word; 8]);
                    }
                }
                None => prop_assert_eq!(consumer.pop().unwrap(), model.pop_front()),
            }
            prop_assert_eq!(producer.used().unwrap() as usize, model.len());
        }
    }

    /// Whatever the peer writes into the shared words, we give an error or an entry, never a panic.
    #[test]
    fn a_hostile_peer_gets_errors(at in 0usize..0x80, value: u32) {
        let arena = arena();
        format(&arena, 4);
        let (mut producer, mut completions) = client(&arena, 4);
        let (mut consumer, mut answers) = server(&arena, 4);
        producer.push([1; 8]).unwrap();
        answers.push([1; 2]).unwrap();
        word32(&arena, at * 4).store(value, Ordering::Relaxed);
        for _ in 0..6 {
            let _ = (producer.push([2; 8]), answers.push([2; 2]));
            let _ = (producer.must_announce(), answers.must_announce());
            let _ = (consumer.prepare_sleep(), completions.prepare_sleep());
            let _ = (consumer.pop(), completions.pop());
        }
    }
}

#[test]
fn impossible_indexes_are_errors() {
    let arena = arena();
    format(&arena, 4);
    let (mut producer, _) = client(&arena, 4);
    let (mut consumer, _) = server(&arena, 4);
    word32(&arena, layout::SQ_TAIL_AT).store(5, Ordering::Relaxed);
    assert_eq!(consumer.pop().unwrap_err().kind(), Kind::Invalid);
    word32(&arena, layout::SQ_HEAD_AT).store(1, Ordering::Relaxed);
    assert_eq!(producer.push([0; 8]).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn entries_cross_threads_in_order_and_sleepers_are_seen() {
    let arena = arena();
    format(&arena, 16);
    let (mut producer, _) = client(&arena, 16);
    let (mut consumer, _) = server(&arena, 16);
    assert!(consumer.prepare_sleep());
    producer.push([0; 8]).unwrap();
    assert!(producer.must_announce());
    assert!(!producer.must_announce());
    assert!(!consumer.prepare_sleep());
    let taker = std::thread::spawn(move || {
        let mut next = 0;
        while next < 20_000 {
            match consumer.pop().unwrap() {
                Some(entry) => {
                    assert_eq!(entry, [next; 8]);
                    next += 1;
                }
                None => std::thread::yield_now(),
            }
        }
    });
    for word in 1..20_000 {
        while !producer.push([word; 8]).unwrap() {
            std::thread::yield_now();
        }
    }
    taker.join().unwrap();
}
