//! Numbers that repeat with their seed (splitmix64): for tests whose failure has to be repeatable.

/// See the module.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A generator of its own for a purpose, so that one draw more here changes nothing there.
    pub fn branch(seed: u64, purpose: &[u64]) -> Random {
        let mut random = Random(seed);
        for word in purpose {
            random.0 ^= word.wrapping_mul(0xff51_afd7_ed55_8ccd);
            random.draw();
        }
        random
    }

    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end - 1`.
    pub fn below(&mut self, end: usize) -> usize {
        assert!(end > 0, "a choice of nothing");
        (self.draw() % end as u64) as usize
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.draw() % 100 < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// So many of them, in any order.
    pub fn some<T: Clone>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut left = from.to_vec();
        (0..count).map(|_| left.swap_remove(self.below(left.len()))).collect()
    }
}

/// Appends noise until there are `len` bytes. None of it is zero, so that a hole is never taken for data.
pub fn fill(bytes: &mut Vec<u8>, random: &mut Random, len: usize) {
    while bytes.len() < len {
        bytes.extend(random.draw().to_le_bytes().map(|byte| byte | 1));
    }
    bytes.truncate(len);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_a_purpose_is_its_own() {
        let draws = |mut random: Random| [0; 8].map(|_| random.draw());
        assert_eq!(draws(Random::new(7)), draws(Random::new(7)));
        assert_ne!(draws(Random::new(7)), draws(Random::new(8)));
        assert_eq!(draws(Random::branch(7, &[])), draws(Random::new(7)));
        assert_ne!(draws(Random::branch(7, &[1])), draws(Random::branch(7, &[2])));
        assert_ne!(draws(Random::branch(7, &[1, 2])), draws(Random::branch(7, &[2, 1])));
    }

    #[test]
    fn some_are_taken_once() {
        let mut taken = Random::new(3).some(&[1, 2, 3, 4, 5], 5);
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 3, 4, 5]);
        let mut bytes = vec![0];
        fill(&mut bytes, &mut Random::new(1), 21);
        assert_eq!(bytes.len(), 21);
        assert!(bytes[1..].iter().all(|byte| *byte != 0));
    }
}
