use std::collections::HashMap;

use super::*;

fn name(n: u64) -> ChunkHash {
    ChunkHash(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn place(n: u64) -> Location {
    Location { slot: n as u32, offset: 16, stored_len: 9, plain_len: 7 }
}

#[test]
fn it_agrees_with_a_hash_map_and_takes_at_most_64_bytes_a_chunk() {
    let mut table = Table::default();
    let mut model = HashMap::new();
    for n in 0..200_000u64 {
        assert_eq!(table.insert(name(n), place(n)), model.insert(name(n), place(n)));
        if n % 5 == 0 {
            let gone = name(n * 7 % (n + 1));
            assert_eq!(table.remove(&gone), model.remove(&gone));
        }
        if n % 11 == 0 {
            let again = name(n / 2);
            assert_eq!(table.insert(again, place(1)), model.insert(again, place(1)));
        }
        if n > 10_000 && n % 1000 == 0 {
            let each = table.bytes() as f64 / table.len() as f64;
            assert!(each <= 64.0, "{each} bytes for each of {}", table.len());
        }
    }
    assert_eq!(table.len(), model.len());
    assert_eq!(table.iter().copied().collect::<HashMap<_, _>>(), model);
    for (hash, at) in model {
        assert_eq!(table.get(&hash), Some(at));
        assert_eq!(table.remove(&hash), Some(at));
        assert_eq!(table.get(&hash), None);
    }
    assert_eq!(table.len(), 0);
}
