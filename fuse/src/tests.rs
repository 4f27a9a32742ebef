use crate::budget::Budget;
use crate::buffer::Dirty;
use crate::queue::Queue;

#[test]
fn the_newest_byte_wins() {
    let mut dirty = Dirty::default();
    let mut model = [0u8; 64];
    for (round, (at, len)) in
        [(0, 8), (8, 8), (4, 8), (30, 10), (20, 30), (25, 2), (0, 64), (10, 1)].iter().enumerate()
    {
        let data = vec![round as u8 + 1; *len];
        dirty.write(*at as u64, &data);
        model[*at..at + len].copy_from_slice(&data);
        let mut shown = [0; 64];
        for (at, part) in dirty.parts(&(0..64)) {
            shown[at as usize..at as usize + part.len()].copy_from_slice(part);
        }
        assert_eq!(shown, model);
        assert_eq!(dirty.bytes(), dirty.ranges().map(|(_, data)| data.len()).sum::<usize>());
    }
    dirty.cut(5, u64::MAX);
    assert_eq!(dirty.bytes(), 5);
}

#[test]
fn writes_in_a_row_become_one_range() {
    let mut dirty = Dirty::default();
    (0..10).for_each(|i| dirty.write(i * 4, b"abcd"));
    assert_eq!(dirty.ranges().count(), 1);
}

#[test]
fn older_bytes_go_under_newer_ones() {
    let mut dirty = Dirty::default();
    dirty.write(4, b"new");
    dirty.write_under([(0, &b"0123456789"[..])].into_iter());
    assert_eq!(
        dirty.ranges().flat_map(|(_, data)| data.to_vec()).collect::<Vec<u8>>(),
        b"0123new789"
    );
    assert_eq!((dirty.bytes(), dirty.end()), (10, 10));
}

#[test]
fn parts_are_cut_to_the_range() {
    let mut dirty = Dirty::default();
    dirty.write(0, b"abcdef");
    dirty.write(10, b"ghi");
    assert_eq!(dirty.parts(&(2..11)), [(2, &b"cdef"[..]), (10, &b"g"[..])]);
    assert!(dirty.parts(&(6..10)).is_empty());
}

#[test]
fn the_budget_counts_what_buffers_hold() {
    let budget = Budget::new(100);
    assert!(budget.has_room(1000), "a single write always finds room");
    budget.changed(0, 80);
    assert!(budget.has_room(20) && !budget.has_room(21));
    budget.changed(80, 30);
    assert_eq!(budget.used(), 30);
}

#[test]
fn a_closed_queue_gives_out_what_it_holds() {
    let queue = Queue::new(2);
    assert!(queue.push(1) && queue.push(2) && !queue.push(3));
    queue.close();
    assert!(!queue.push(4));
    assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(1), Some(2), None));
}
