//! Numbers that repeat with their seed (splitmix64), and bytes that repeat with their number.

#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator of its own for a purpose, so that one draw more here changes nothing there.
    pub fn branch(seed: u64, purpose: &[u64]) -> Random {
        let mut random = Random(seed);
        for word in purpose {
            random.0 ^= word.wrapping_mul(0xff51_afd7_ed55_8ccd);
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end - 1`.
    pub fn below(&mut self, end: usize) -> usize {
        assert!(end > 0, "a choice of nothing");
        (self.next() % end as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// So many of them, in any order.
    pub fn some<T: Clone>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut left = from.to_vec();
        (0..count).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }
}

/// The bytes of value `number`: the number, and noise that it determines, none of it zero.
pub fn content(number: u64, len: usize) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes = number.to_le_bytes().to_vec();
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes().map(|byte| byte | 1));
    }
    bytes.truncate(len);
    bytes
}
