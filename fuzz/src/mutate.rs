//! A seeded mutation engine: the same seed makes the same inputs, everywhere.

/// Longest input made, in bytes; longer seeds are mutated as they are.
const LEN_MAX: usize = 64 << 10;
/// Most mutations of one input.
const STEPS_MAX: u64 = 8;
/// Numbers at which lengths and counts go wrong.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// Dice of their own for one input of one target.
    pub fn of(seed: u64, target: &str, input: u64) -> Dice {
        let name = target
            .bytes()
            .fold(seed, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut dice = Dice(name);
        dice.0 = dice.next() ^ input;
        dice
    }

    #[allow(clippy::should_implement_trait, reason = "dice never end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }
}

/// An input made out of one or two of the corpus.
pub fn mutate(dice: &mut Dice, corpus: &[Vec<u8>], dictionary: &[&[u8]]) -> Vec<u8> {
    let mut bytes = match dice.below(16) {
        // Now and then nothing but noise.
        0 => (0..dice.below(512)).map(|_| dice.next() as u8).collect(),
        _ => corpus[dice.below(corpus.len())].clone(),
    };
    for _ in 0..1 + dice.next() % STEPS_MAX {
        step(dice, &mut bytes, corpus, dictionary);
    }
    bytes
}

fn step(dice: &mut Dice, bytes: &mut Vec<u8>, corpus: &[Vec<u8>], dictionary: &[&[u8]]) {
    let at = dice.below(bytes.len());
    match dice.below(12) {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = dice.next() as u8;
            }
        }
        3 => bytes.truncate(at),
        4 => bytes.drain(at..at + dice.below(bytes.len() - at)).for_each(drop),
        5 => {
            let noise = (0..1 + dice.below(16)).map(|_| dice.next() as u8).collect::<Vec<_>>();
            insert(bytes, at, &noise);
        }
        6 => {
            let len = 1 + dice.below(32);
            let part = bytes[at..].iter().copied().take(len).collect::<Vec<_>>();
            let to = dice.below(bytes.len());
            insert(bytes, to, &part);
        }
        7 => {
            // The end of another one.
            let other = &corpus[dice.below(corpus.len())];
            bytes.truncate(at);
            insert(bytes, at, &other[dice.below(other.len())..]);
        }
        8 if !dictionary.is_empty() => {
            let word = dictionary[dice.below(dictionary.len())];
            match dice.below(2) {
                0 => overwrite(bytes, at, word),
                _ => insert(bytes, at, word),
            }
        }
        9 => number(dice, bytes, at),
        10 => {
            // A little more or less, in two or four bytes.
            let width = [2, 4][dice.below(2)];
            let mut value = [0; 4];
            let part = bytes[at..].iter().copied().take(width).collect::<Vec<_>>();
            value[..part.len()].copy_from_slice(&part);
            let value =
                u32::from_le_bytes(value).wrapping_add(dice.below(17) as u32).wrapping_sub(8);
            overwrite(bytes, at, &value.to_le_bytes()[..part.len()]);
        }
        _ => number(dice, bytes, at / 8 * 8),
    }
}

/// An edge, or next to one, in 1, 2, 4 or 8 bytes of either order.
fn number(dice: &mut Dice, bytes: &mut [u8], at: usize) {
    let near = EDGES[dice.below(EDGES.len())].wrapping_add(dice.next() % 5).wrapping_sub(2);
    let width = [1, 2, 4, 8][dice.below(4)];
    match dice.below(4) {
        0 => overwrite(bytes, at, &near.to_be_bytes()[8 - width..]),
        _ => overwrite(bytes, at, &near.to_le_bytes()[..width]),
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte = *with);
}

fn insert(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    let room = LEN_MAX.saturating_sub(bytes.len());
    let at = at.min(bytes.len());
    bytes.splice(at..at, what.iter().copied().take(room));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_another_one_others() {
        let corpus = [b"one of the corpus".to_vec(), vec![7; 100], Vec::new()];
        let inputs = |seed| {
            let made = |n| mutate(&mut Dice::of(seed, "name", n), &corpus, &[b"CFSR"]);
            (0..2000).map(made).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().all(|input| input.len() <= LEN_MAX));
        // The empty seed stays empty under most mutations.
        let unlike = inputs(3).iter().filter(|input| !corpus.contains(input)).count();
        assert!(unlike > 1500, "{unlike}");
    }
}
