use crate::buffer::Dirty;

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
        dirty.overlay(0, &mut shown);
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
