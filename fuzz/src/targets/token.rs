//! Enrolment tokens and invitations.
//!
//! What is accepted says the same when it is shown again; no refusal repeats the text, for it may be a
//! token with a typing error.

use fsd_rpc::tls::CaFingerprint;
use fsd_rpc::token::{Invitation, PREFIX, Purpose, Token};

pub const DICTIONARY: &[&[u8]] = &[b"cfs1-", b"@", b",", b"[::1]:9400", b"oil", b"\xc3\xbc"];

pub fn seeds() -> Vec<Vec<u8>> {
    let token = |n: u8| Token::new(Purpose::Client, [n; 16], CaFingerprint([n ^ 0x5a; 16]));
    let servers = |list: &[&str]| list.iter().map(|server| (*server).to_owned()).collect();
    let invitation = |n, list: &[&str]| Invitation { token: token(n), servers: servers(list) };
    [
        token(7).reveal().to_string(),
        token(0xff).reveal().to_uppercase(),
        invitation(3, &["node-1:9400", "[fd00::1]:9400"]).reveal().to_string(),
        invitation(9, &["a"]).reveal().to_string(),
    ]
    .map(String::into_bytes)
    .to_vec()
}

pub fn target(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.parse::<Token>() {
        Ok(token) => {
            let shown = token.reveal();
            assert_eq!(shown.parse::<Token>().as_ref(), Ok(&token));
            assert_eq!(token.hash(), shown.parse::<Token>().unwrap().hash());
        }
        Err(error) => {
            let message = error.to_string();
            let secret = text.trim().strip_prefix(PREFIX).unwrap_or_default();
            assert!(secret.len() < 8 || !message.contains(secret), "{message}");
        }
    }
    if let Ok(invitation) = text.parse::<Invitation>() {
        let shown = invitation.reveal();
        assert_eq!(shown.parse::<Invitation>().as_ref(), Ok(&invitation), "{}", *shown);
    }
}
