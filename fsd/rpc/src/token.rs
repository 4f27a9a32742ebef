//! One-time enrolment tokens.
//!
//! ```text
//!  cfs1-  ++  base32 of:   0  secret [u8; 16]       what the cluster knows by its hash
//!                         16  ca [u8; 16]           first half of the SHA-256 of the CA certificate
//!                         32  check [u8; 3]         low bytes of the CRC-32C of bytes 0..32
//! ```
//!
//! A token with which a storage node joins starts with `cfsn1-` instead; neither does for the other.
//!
//! 61 characters (62 for nodes), lower case, in Crockford's alphabet (no `i`, `l`, `o`, `u`; read as `1`, `1`, `0`). Who
//! enrols has no CA yet: the token carries its fingerprint, so that nobody between can pose as the
//! cluster. The check tells a typing error from a token that the cluster does not know.
//!
//! A token is handed out as an [`Invitation`], `TOKEN@HOST[:PORT][,…]`, so that one word is all that a new
//! client needs.

use zeroize::Zeroizing;

use crate::tls::{CA_FINGERPRINT_LEN, CaFingerprint};

/// What every token of clients starts with; the digit is the version of the format.
pub const PREFIX: &str = "cfs1-";
/// What every token of storage nodes starts with.
pub const NODE_PREFIX: &str = "cfsn1-";
const SECRET_LEN: usize = 16;
const CHECK_LEN: usize = 3;
const BYTES: usize = SECRET_LEN + CA_FINGERPRINT_LEN + CHECK_LEN;
/// Characters behind the prefix: 35 bytes are 56 groups of five bits, without a rest.
const DIGITS: usize = BYTES * 8 / 5;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

const _: () = assert!(DIGITS * 5 == BYTES * 8);

/// Who may use a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A client of the network enrols (`cfs mount --token`).
    Client,
    /// A storage node joins the cluster (`cfs server join`).
    Node,
}

impl Purpose {
    fn prefix(self) -> &'static str {
        match self {
            Purpose::Client => PREFIX,
            Purpose::Node => NODE_PREFIX,
        }
    }

    fn context(self) -> &'static str {
        match self {
            Purpose::Client => "claudefs enrolment token v1",
            Purpose::Node => "claudefs node token v1",
        }
    }
}

/// A token in the hands of its user. `Debug` shows nothing of the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    purpose: Purpose,
    secret: Zeroizing<[u8; SECRET_LEN]>,
    ca: CaFingerprint,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Token");
        shown.field("purpose", &self.purpose).field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// Why a text is no token. Never repeats the text: it may be a token with a typing error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token does not start with `{PREFIX}`: copy all of it")]
    Prefix,
    #[error(
        "the token is of format {0}, this program reads 1: upgrade it, or have a token made by a node of its own \
         version"
    )]
    Version(u32),
    #[error("the token is {found} characters long instead of {expected}: copy all of it")]
    Length { found: usize, expected: usize },
    #[error("the token has a character that no token has at position {0}")]
    Character(usize),
    #[error("the token has a typing error: its check digits do not fit")]
    Check,
    #[error("what follows the `@` of the token is not a list of HOST or HOST:PORT")]
    Servers,
}

impl Token {
    pub fn new(purpose: Purpose, secret: [u8; SECRET_LEN], ca: CaFingerprint) -> Token {
        Token { purpose, secret: Zeroizing::new(secret), ca }
    }

    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The CA that the cluster of this token has.
    pub fn ca(&self) -> &CaFingerprint {
        &self.ca
    }

    /// What the cluster keeps of the token: `TokenInfo::hash`.
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key(self.purpose.context(), &self.bytes()[..])
    }

    fn bytes(&self) -> Zeroizing<[u8; BYTES]> {
        let mut bytes = Zeroizing::new([0; BYTES]);
        bytes[..SECRET_LEN].copy_from_slice(&self.secret[..]);
        bytes[SECRET_LEN..SECRET_LEN + CA_FINGERPRINT_LEN].copy_from_slice(&self.ca.0);
        let check = crate::frame::crc32c(&bytes[..BYTES - CHECK_LEN]).to_le_bytes();
        bytes[BYTES - CHECK_LEN..].copy_from_slice(&check[..CHECK_LEN]);
        bytes
    }

    /// The token as it is given to its user. The only way to see the secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        let bytes = self.bytes();
        let prefix = self.purpose.prefix();
        let mut text = Zeroizing::new(String::with_capacity(prefix.len() + DIGITS));
        text.push_str(prefix);
        for digit in 0..DIGITS {
            let value = (0..5).fold(0, |value, bit| {
                let at = digit * 5 + bit;
                value << 1 | usize::from(bytes[at / 8] >> (7 - at % 8) & 1)
            });
            text.push(char::from(ALPHABET[value]));
        }
        text
    }
}

impl std::str::FromStr for Token {
    type Err = TokenError;

    /// Takes surrounding white space and capitals.
    fn from_str(text: &str) -> Result<Token, TokenError> {
        let text = text.trim();
        let begins = |purpose: &Purpose| {
            let prefix = purpose.prefix();
            text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        let purpose = [Purpose::Client, Purpose::Node].into_iter().find(begins);
        let purpose = purpose.ok_or_else(|| match version(text) {
            Some(version) => TokenError::Version(version),
            None => TokenError::Prefix,
        })?;
        let start = purpose.prefix().len();
        let (found, expected) = (text.chars().count(), start + DIGITS);
        if found != expected {
            return Err(TokenError::Length { found, expected });
        }
        let mut bytes = Zeroizing::new([0u8; BYTES]);
        for (digit, character) in text[start..].chars().enumerate() {
            let bad = TokenError::Character(start + digit + 1);
            let value = digit_value(character).ok_or(bad)?;
            for bit in 0..5 {
                let at = digit * 5 + bit;
                bytes[at / 8] |= (value >> (4 - bit) & 1) << (7 - at % 8);
            }
        }
        let (mut secret, mut ca) = ([0; SECRET_LEN], [0; CA_FINGERPRINT_LEN]);
        secret.copy_from_slice(&bytes[..SECRET_LEN]);
        ca.copy_from_slice(&bytes[SECRET_LEN..SECRET_LEN + CA_FINGERPRINT_LEN]);
        let token = Token::new(purpose, secret, CaFingerprint(ca));
        if token.bytes() == bytes { Ok(token) } else { Err(TokenError::Check) }
    }
}

/// A token with the storage nodes where it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub token: Token,
    /// `host` or `host:port`; none if the token came alone.
    pub servers: Vec<String>,
}

impl Invitation {
    /// `TOKEN@SERVER,…`, or the token alone without servers.
    pub fn reveal(&self) -> Zeroizing<String> {
        let token = self.token.reveal();
        match self.servers.is_empty() {
            true => token,
            false => Zeroizing::new(format!("{}@{}", *token, self.servers.join(","))),
        }
    }
}

impl std::str::FromStr for Invitation {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Invitation, TokenError> {
        let (token, servers) = match text.trim().split_once('@') {
            Some((token, servers)) => (token, servers.split(',').map(str::to_owned).collect()),
            None => (text, Vec::new()),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".:-_[]%".contains(c);
        match servers.iter().all(|s: &String| !s.is_empty() && s.chars().all(allowed)) {
            true => Ok(Invitation { token: token.parse()?, servers }),
            false => Err(TokenError::Servers),
        }
    }
}

/// Of a token of another format.
fn version(text: &str) -> Option<u32> {
    let prefix = text.split_once('-')?.0.to_ascii_lowercase();
    let rest = prefix.strip_prefix("cfs")?;
    rest.strip_prefix('n').unwrap_or(rest).parse().ok()
}

fn digit_value(character: char) -> Option<u8> {
    let character = match character.to_ascii_lowercase() {
        'o' => '0',
        'i' | 'l' => '1',
        other => other,
    };
    ALPHABET.iter().position(|digit| char::from(*digit) == character).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Token {
        let counted = |from: u8| std::array::from_fn(|i| from + 7 * i as u8);
        Token::new(Purpose::Client, counted(3), CaFingerprint(counted(90)))
    }

    #[test]
    fn a_token_comes_back_from_its_text() {
        let text = sample().reveal();
        assert_eq!(text.len(), 61);
        assert_eq!(text.parse::<Token>().unwrap(), sample());
        assert_eq!(format!(" {}\n", text.to_uppercase()).parse::<Token>().unwrap(), sample());
        let read_aloud = text[PREFIX.len()..].replace('1', "l").replace('0', "O");
        assert_eq!(format!("{PREFIX}{read_aloud}").parse::<Token>().unwrap(), sample());
    }

    #[test]
    fn a_token_of_nodes_is_another() {
        let client = sample();
        let node = Token { purpose: Purpose::Node, ..sample() };
        let text = node.reveal();
        assert!(text.starts_with(NODE_PREFIX), "{}", *text);
        assert_eq!(text[NODE_PREFIX.len()..], client.reveal()[PREFIX.len()..]);
        assert_eq!(text.parse::<Token>().unwrap(), node);
        assert_ne!(node.hash(), client.hash());
    }

    #[test]
    fn the_text_is_as_documented() {
        assert_eq!(
            *sample().reveal(),
            "cfs1-0c51260z4rpk8et29585eqk5dhd62t3fesyr92wjk6gafbnnqk1r29hm",
        );
    }

    #[test]
    fn every_wrong_character_is_a_typing_error() {
        let text = sample().reveal();
        for at in PREFIX.len()..text.len() {
            for other in ALPHABET {
                let mut bytes = text.as_bytes().to_vec();
                if bytes[at] == *other {
                    continue;
                }
                bytes[at] = *other;
                let wrong = String::from_utf8(bytes).unwrap();
                assert_eq!(wrong.parse::<Token>(), Err(TokenError::Check), "{wrong}");
            }
        }
    }

    #[test]
    fn what_is_no_token_is_told_why() {
        let text = sample().reveal().to_string();
        let refusal = |text: &str| text.parse::<Token>().unwrap_err();
        assert_eq!(refusal(""), TokenError::Prefix);
        assert_eq!(refusal("cfs2-00000"), TokenError::Version(2));
        assert_eq!(refusal("CFSN12-00000"), TokenError::Version(12));
        assert!(refusal("cfs2-0").to_string().contains("format 2, this program reads 1"));
        assert_eq!(refusal("cfs-00000"), TokenError::Prefix);
        assert_eq!(refusal("äöü€"), TokenError::Prefix);
        assert_eq!(refusal(&text[..60]), TokenError::Length { found: 60, expected: 61 });
        assert_eq!(refusal(&format!("{text}0")), TokenError::Length { found: 62, expected: 61 });
        assert_eq!(refusal(&format!("{}!{}", &text[..8], &text[9..])), TokenError::Character(9));
        let umlaut: String = text.chars().take(60).chain(['ü']).collect();
        assert_eq!(refusal(&umlaut), TokenError::Character(61));
    }

    #[test]
    fn an_invitation_says_where() {
        let token = sample();
        let servers = vec!["node-1.example:9400".to_owned(), "[fd00::1]:9400".to_owned()];
        let invitation = Invitation { token, servers };
        let text = invitation.reveal();
        assert!(text.ends_with("29hm@node-1.example:9400,[fd00::1]:9400"), "{}", *text);
        assert_eq!(text.parse::<Invitation>().unwrap(), invitation);
        let alone = sample().reveal().parse::<Invitation>().unwrap();
        assert_eq!(alone, Invitation { token: sample(), servers: vec![] });
        assert_eq!(*alone.reveal(), *sample().reveal());
        for servers in ["@", "@a,", "@a b", "@a@b", "@a/b"] {
            let text = format!("{}{servers}", *sample().reveal());
            assert_eq!(text.parse::<Invitation>(), Err(TokenError::Servers), "{servers}");
        }
    }

    #[test]
    fn debug_and_errors_keep_the_secret() {
        let token = Token::new(Purpose::Client, [0xab; 16], CaFingerprint([0; 16]));
        let shown = format!("{token:?}");
        assert!(!shown.contains("171") && !shown.contains("ab, ab"), "{shown}");
    }

    #[test]
    fn other_secrets_have_other_hashes() {
        let other = Token::new(Purpose::Client, [1; 16], *sample().ca());
        assert_ne!(other.hash(), sample().hash());
    }
}
