use super::*;

fn random(len: usize) -> Vec<u8> {
    blake3::Hasher::new().finalize_xof().take_bytes(len)
}

trait TakeBytes {
    fn take_bytes(self, len: usize) -> Vec<u8>;
}

impl TakeBytes for blake3::OutputReader {
    fn take_bytes(mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.fill(&mut out);
        out
    }
}

#[test]
fn what_compresses_is_found_and_what_does_not_is_not_tried() {
    let lens = [0, 1, 63, 64, 1000, 4096, 5000, 16 << 10, 64 << 10, 256 << 10];
    for len in lens {
        let noise = random(len);
        // Entropy alone: there are no repetitions to be found.
        let base64: Vec<u8> = noise.iter().map(|byte| b' ' + byte % 64).collect();
        let text: Vec<u8> =
            b"it was a dark and stormy night; ".iter().copied().cycle().take(len).collect();
        for (plain, compresses) in [(&noise, false), (&base64, true), (&text, true)] {
            let (codec, stored) = compress(plain);
            let expected = if compresses && len >= 1000 { ZSTD } else { codec };
            assert_eq!(codec, expected, "{len} bytes, {}", plain.first().unwrap_or(&0));
            assert!(codec == RAW && stored == *plain || stored.len() <= len - len / 16);
            assert_eq!(decompress(codec, stored.clone(), len).as_ref(), Some(plain));
            assert_eq!(decompress(codec, stored.clone(), len + 1), None);
            assert_eq!(decompress(9, stored, len), None);
        }
        assert!(len < 4096 || is_hopeless(&noise), "{len}");
        assert!(!is_hopeless(&base64) && !is_hopeless(&text), "{len}");
    }
}
