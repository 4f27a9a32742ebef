//! The Diffie-Hellman groups of DH-HMAC-CHAP: ffdhe2048 to ffdhe8192 of RFC 7919, generator 2.
//!
//! The primes are derived as the RFC derives them, from the digits of e and a number for each:
//!
//! ```text
//! 64 ones │ the first digits of e in binary, plus X − 1 │ 64 ones
//! ```
//! Exponents are short, which the RFC allows, and secret; powers take the same time whatever they are.

use std::sync::OnceLock;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use zeroize::Zeroizing;

/// Bytes of an exponent: 416 bits, and RFC 7919 wants 400 for the largest group.
const EXPONENT_BYTES: usize = 52;

/// A group, by its identifier on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Ffdhe2048,
    Ffdhe3072,
    Ffdhe4096,
    Ffdhe6144,
    Ffdhe8192,
}

/// The digits of e: ⌊e · 2⁸⁰⁶²⌋.
const E: &str = "\
adf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe36363\
0c75d8f681b202aec4617ad3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f\
0c70e0e68b77e2a689daf3efe8721df158a136ade73530acca4f483a797abc0ab182b324fb61d108a94bb2c8e3\
fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb190b07a7c8ee0a6d709e02fce1cdf7e2ecc03404cd\
28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005c58ef1837d1683b2c6\
f34a26c1b2effa886b4238611fcfdcde355b3b6519035bbc34f4def99c023861b46fc9d6e6c9077ad91d2691f7\
f7ee598cb0fac186d91caefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff5cae82\
ab9c9df69ee86d2bc522363a0dabc521979b0deada1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c\
25e41d2b669e1ef16e6f52c3164df4fb7930e9e4e58857b6ac7d5f42d69f6d187763cf1d5503400487f55ba57e\
31cc7a7135c886efb4318aed6a1e012d9e6832a907600a918130c46dc778f971ad0038092999a333cb8b7a1a1d\
b93d7140003c2a4ecea9f98d0acc0a8291cdcec97dcf8ec9b55a7f88a46b4db5a851f44182e1c68a007e5e0dd9\
020bfd64b645036c7a4e677d2c38532a3a23ba4442caf53ea63bb454329b7624c8917bdd64b1c0fd4cb38e8c33\
4c701c3acdad0657fccfec719b1f5c3e4e46041f388147fb4cfdb477a52471f7a9a96910b855322edb6340d8a0\
0ef092350511e30abec1fff9e3a26e7fb29f8c183023c3587e38da0077d9b4763e4e4b94b2bbc194c6651e77ca\
f992eeaac0232a281bf6b3a739c1226116820ae8db5847a67cbef9c9091b462d538cd72b03746ae77f5e62292c\
311562a846505dc82db854338ae49f5235c95b91178ccf2dd5cacef403ec9d1810c6272b045b3b71f9dc6b80d6\
3fdd4a8e9adb1e6962a69526d43161c1a41d570d7938dad4a40e329ccff46aaa36ad004cf600c8381e425a31d9\
51ae64fdb23fcec9509d43687feb69edd1cc5e0b8cc3bdf64b10ef86b63142a3ab8829555b2f747c932665cb2c\
0f1cc01bd70229388839d2af05e454504ac78b7582822846c0ba35c35f5c59160cc046fd8251541fc68c9c86b0\
22bb7099876a460e7451a8a93109703fee1c217e6c3826e52c51aa691e0e423cfc99e9e31650c1217b624816cd\
ad9a95f9d5b8019488d9c0a0a1fe3075a577e23183f81d4a3f2fa4571efc8ce0ba8a4fe8b6855dfe72b0a66ede\
d2fbabfbe58a30fafabe1c5d71a87e2f741ef8c1fe86fea6bbfde530677f0d97d11d49f7a8443d0822e506a9f4\
614e011e2a94838ff88cd68c8bb7c51eef6d";

/// For a power of each group, made when it is used first.
static PARAMETERS: [OnceLock<BoxedMontyParams>; 5] = [const { OnceLock::new() }; 5];

impl Group {
    pub fn of_id(id: u8) -> Option<Group> {
        match id {
            1 => Some(Group::Ffdhe2048),
            2 => Some(Group::Ffdhe3072),
            3 => Some(Group::Ffdhe4096),
            4 => Some(Group::Ffdhe6144),
            5 => Some(Group::Ffdhe8192),
            _ => None,
        }
    }

    pub fn id(self) -> u8 {
        match self {
            Group::Ffdhe2048 => 1,
            Group::Ffdhe3072 => 2,
            Group::Ffdhe4096 => 3,
            Group::Ffdhe6144 => 4,
            Group::Ffdhe8192 => 5,
        }
    }

    /// The better of what a host offers, lowest first: ffdhe3072 is strong enough, and of the stronger ones the quicker is
    /// taken, for a power takes milliseconds of the reactor's time.
    pub fn rank(self) -> u8 {
        match self {
            Group::Ffdhe3072 => 0,
            Group::Ffdhe4096 => 1,
            Group::Ffdhe6144 => 2,
            Group::Ffdhe8192 => 3,
            Group::Ffdhe2048 => 4,
        }
    }

    /// Bytes of the prime, of a public value and of a shared secret.
    pub fn bytes(self) -> usize {
        match self {
            Group::Ffdhe2048 => 256,
            Group::Ffdhe3072 => 384,
            Group::Ffdhe4096 => 512,
            Group::Ffdhe6144 => 768,
            Group::Ffdhe8192 => 1024,
        }
    }

    /// The number X of RFC 7919, appendix A.
    fn x(self) -> u32 {
        match self {
            Group::Ffdhe2048 => 560_316,
            Group::Ffdhe3072 => 2_625_351,
            Group::Ffdhe4096 => 5_736_041,
            Group::Ffdhe6144 => 15_705_020,
            Group::Ffdhe8192 => 10_965_728,
        }
    }

    fn prime(self) -> Vec<u8> {
        let len = self.bytes();
        let mut prime = vec![0xff; len];
        let middle = &mut prime[8..len - 8];
        for (byte, digits) in middle.iter_mut().zip(E.as_bytes().chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16).expect("digits of the constant") as u8;
            *byte = digit(digits[0]) << 4 | digit(digits[1]);
        }
        let mut carry = self.x() - 1;
        for byte in middle.iter_mut().rev() {
            carry += u32::from(*byte);
            *byte = carry as u8;
            carry >>= 8;
        }
        prime
    }

    fn parameters(self) -> &'static BoxedMontyParams {
        PARAMETERS[usize::from(self.id()) - 1].get_or_init(|| {
            let prime = Odd::new(BoxedUint::from_be_slice_vartime(&self.prime()));
            BoxedMontyParams::new_vartime(prime.into_option().expect("it ends with ones"))
        })
    }

    /// `base` to the power of an exponent.
    fn power(self, base: BoxedUint, exponent: &[u8; EXPONENT_BYTES]) -> Zeroizing<Vec<u8>> {
        let bits = (EXPONENT_BYTES * 8) as u32;
        let exponent = Zeroizing::new(BoxedUint::from_be_slice_truncated(exponent, bits));
        let base = BoxedMontyForm::new(base, self.parameters());
        let power =
            Zeroizing::new(Zeroizing::new(base.pow_bounded_exp(&exponent, bits)).retrieve());
        Zeroizing::new(power.to_be_bytes().into_vec())
    }
}

/// Our half of an exchange.
#[derive(Clone)]
pub struct Exchange {
    pub group: Group,
    exponent: Zeroizing<[u8; EXPONENT_BYTES]>,
    /// What the other side is told.
    pub public: Vec<u8>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Exchange {
    /// With a new exponent; `None` if the system has no randomness.
    pub fn new(group: Group) -> Option<Exchange> {
        let mut exponent = Zeroizing::new([0; EXPONENT_BYTES]);
        SystemRandom::new().fill(&mut *exponent).ok()?;
        Some(Exchange::of(group, exponent))
    }

    fn of(group: Group, exponent: Zeroizing<[u8; EXPONENT_BYTES]>) -> Exchange {
        let two = BoxedUint::from_be_slice_truncated(&[2], (group.bytes() * 8) as u32);
        let public = group.power(two, &exponent).to_vec();
        Exchange { group, exponent, public }
    }

    /// The secret that both sides share, as long as the prime; `None` if theirs is no public value of the group.
    pub fn shared(&self, theirs: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let bits = (self.group.bytes() * 8) as u32;
        let theirs = BoxedUint::from_be_slice(theirs, bits).ok()?;
        let bytes = theirs.to_be_bytes();
        let mut last = self.group.prime();
        // 0, 1 and p - 1 would make the secret known (RFC 7919 §5.1). Both are in the open: comparing takes what it takes.
        *last.last_mut()? -= 1;
        let is_small =
            bytes[..bytes.len() - 1].iter().all(|b| *b == 0) && bytes[bytes.len() - 1] < 2;
        if is_small || *bytes >= *last {
            return None;
        }
        Some(self.group.power(theirs, &self.exponent))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};

    use super::*;

    const ALL: [Group; 5] =
        [Group::Ffdhe2048, Group::Ffdhe3072, Group::Ffdhe4096, Group::Ffdhe6144, Group::Ffdhe8192];

    fn start_of_hash(bytes: &[u8]) -> String {
        digest(&SHA256, bytes).as_ref()[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Made with Python's integers, where primes p and (p - 1) / 2 were tested, too.
    #[test]
    fn primes_and_powers_are_those_of_others() {
        let expected = [
            ("9cd3b7f336872f46", "d0e3f082db38fd97"),
            ("0eaf67db3a839156", "3c596e231fb1095a"),
            ("4648414224ac881b", "f6109adb42694541"),
            ("227ac9066b3ddd9e", "e6e9fdc4cbc13948"),
            ("770b14efaf6f0499", "6aa9735db54661a3"),
        ];
        let exponent = std::array::from_fn(|i| i as u8 + 1);
        for (group, (prime, power)) in ALL.into_iter().zip(expected) {
            assert_eq!(start_of_hash(&group.prime()), prime, "{group:?}");
            let exchange = Exchange::of(group, Zeroizing::new(exponent));
            assert_eq!(start_of_hash(&exchange.public), power, "{group:?}");
            assert_eq!(Group::of_id(group.id()), Some(group));
        }
    }

    #[test]
    fn both_sides_have_the_same_secret_and_bad_values_are_none() {
        for group in ALL {
            let (ours, theirs) = (Exchange::new(group).unwrap(), Exchange::new(group).unwrap());
            assert_ne!(ours.public, theirs.public);
            let secret = ours.shared(&theirs.public).unwrap();
            assert_eq!(secret, theirs.shared(&ours.public).unwrap());
            assert_eq!(secret.len(), group.bytes());
            let prime = group.prime();
            let mut last = prime.clone();
            *last.last_mut().unwrap() -= 1;
            for bad in [&[][..], &[0], &[1], &prime, &last, &vec![0xff; group.bytes()]] {
                assert!(ours.shared(bad).is_none(), "{group:?}");
            }
            assert!(ours.shared(&vec![1; group.bytes() + 1]).is_none(), "too long");
            *last.last_mut().unwrap() -= 1;
            assert!(ours.shared(&last).is_some());
        }
        assert!(format!("{:?}", Exchange::new(Group::Ffdhe2048)).len() < 60, "nothing secret");
    }
}
