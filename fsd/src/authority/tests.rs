use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{CertificateParams, KeyPair};

use fsd_rpc::token::Purpose;

use super::*;

const NOW: Time = Time { secs: 1_800_000_000, nanos: 5 };
const CLUSTER: Uuid = Uuid::from_u128(7);

fn authority() -> Authority {
    Authority::create(CLUSTER, "dev", NOW).unwrap()
}

fn master(dir: &tempfile::TempDir, byte: u8) -> PathBuf {
    let path = dir.path().join(format!("master-{byte}"));
    let mut file = std::fs::File::create(&path).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    file.write_all(&[byte; 32]).unwrap();
    path
}

fn request(params: &CertificateParams) -> Vec<u8> {
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn the_sealed_authority_opens_under_its_master_key_and_cluster_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (right, wrong) = (master(&dir, 1), master(&dir, 2));
    let authority = authority();
    let sealed = authority.seal(&right, CLUSTER).unwrap();

    let again = Authority::open(&sealed, &right, CLUSTER).unwrap();
    assert_eq!(again.ca_pem(), authority.ca_pem());
    assert_eq!(again.fingerprint(), authority.fingerprint());
    let issued = again.client_certificate(&request(&CertificateParams::default()), "a", NOW);
    issued.unwrap();

    let refused = |sealed: &[u8], master: &PathBuf, cluster| {
        let error = Authority::open(sealed, master, cluster).unwrap_err();
        assert!(matches!(error, AuthorityError::Sealed { .. }), "{error}");
    };
    refused(&sealed, &wrong, CLUSTER);
    refused(&sealed, &right, Uuid::from_u128(8));
    for at in 0..sealed.len() {
        let mut bad = sealed.to_vec();
        bad[at] ^= 1;
        refused(&bad, &right, CLUSTER);
        refused(&sealed[..at], &right, CLUSTER);
    }
}

#[test]
fn the_key_is_not_in_what_is_sealed_or_shown() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority();
    let sealed = authority.seal(&master(&dir, 1), CLUSTER).unwrap();
    // The secret number itself, in the middle of the PKCS #8 document.
    let secret = &authority.issuer.key().pkcs8()[36..68];
    assert!(!sealed.windows(8).any(|window| window == &secret[..8]));
    let shown = format!("{authority:?}");
    assert!(shown.starts_with("Authority { fingerprint: CaFingerprint("), "{shown}");
    assert!(!shown.contains("Key"), "{shown}");
}

#[test]
fn a_node_gets_a_name_that_its_clients_expect() {
    let authority = authority();
    let (identity, info) = authority.node_identity(NodeId(3), NOW).unwrap();
    assert_eq!(info.subject, "node:3");
    assert_eq!(info.expires, Time { secs: NOW.secs + 365 * 86_400, nanos: 0 });
    assert!(!info.revoked);
    fsd_rpc::tls::server_config(&identity).unwrap();
    fsd_rpc::tls::client_config(&identity).unwrap();
    let (_, other) = authority.node_identity(NodeId(3), NOW).unwrap();
    assert_ne!(info.serial, other.serial);
}

#[test]
fn a_client_gets_its_key_certified_and_no_wish_granted() {
    let mut wishes = CertificateParams::new(vec!["claudefs".to_owned()]).unwrap();
    wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    wishes.distinguished_name.push(DnType::CommonName, "node:1");
    wishes.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let authority = authority();
    let issued = authority.client_certificate(&request(&wishes), "web-1.example", NOW).unwrap();
    assert_eq!(issued.info.subject, "client:web-1.example");
    assert!(issued.info.serial != 0 && issued.info.serial >> 63 == 0);

    let facts = fsd_rpc::tls::facts_of_pem(&issued.certificate_pem).unwrap();
    assert_eq!(facts.subject, "client:web-1.example");
    assert_eq!(facts.serial, issued.info.serial);
    assert_eq!(facts.expires_secs, issued.info.expires.secs);
    // As a server it would need the name that it wished for, and as a CA the right to sign.
    let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate_pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    assert!(!certificate.is_ca());
    assert!(certificate.subject_alternative_name().unwrap().is_none());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
}

#[test]
fn bad_requests_are_refused_by_name() {
    let authority = authority();
    let good = request(&CertificateParams::default());
    let refused = |der: &[u8]| {
        let error = authority.client_certificate(der, "a", NOW).unwrap_err();
        assert!(matches!(error, AuthorityError::Request { .. }), "{error}");
    };
    refused(b"");
    refused(&[0x30; 5000]);
    let key = request::public_key(&good).unwrap();
    for at in 0..good.len() {
        refused(&good[..at]);
        // A flipped bit breaks the structure, the key or the signature, or lies outside all of them.
        let mut bad = good.clone();
        bad[at] ^= 4;
        match request::public_key(&bad) {
            Ok(same) => assert_eq!(same, key, "byte {at}"),
            Err(error) => assert!(matches!(error, AuthorityError::Request { .. }), "{error}"),
        }
    }
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        refused(CertificateParams::default().serialize_request(&key).unwrap().der());
    }
    let long = "x".repeat(CLIENT_NAME_MAX + 1);
    for name in ["", "a b", "ä", "a\nb", "node:1", &long] {
        let error = authority.client_certificate(&good, name, NOW).unwrap_err();
        assert!(matches!(error, AuthorityError::Name { .. }), "{name}: {error}");
    }
}

#[test]
fn a_token_is_known_by_its_hash_and_ends() {
    let authority = authority();
    let (token, info) = authority.new_token(NOW, TOKEN_LIFE, 1, Purpose::Client).unwrap();
    let read: Token = token.reveal().parse().unwrap();
    assert_eq!(read.hash(), info.hash);
    assert_eq!(*read.ca(), authority.fingerprint());
    assert_eq!((info.uses_left, info.created), (1, NOW));
    assert_eq!(info.expires, Time { secs: NOW.secs + 3600, ..NOW });
    let (other, _) = authority.new_token(NOW, TOKEN_LIFE, 1, Purpose::Client).unwrap();
    assert_ne!(other, token);

    for life in [Duration::ZERO, TOKEN_LIFE_MAX + DAY] {
        let refused = authority.new_token(NOW, life, 1, Purpose::Client);
        assert!(matches!(refused, Err(AuthorityError::TokenLife)));
    }
    for uses in [0, TOKEN_USES_MAX + 1] {
        let refused = authority.new_token(NOW, TOKEN_LIFE, uses, Purpose::Client);
        assert!(matches!(refused, Err(AuthorityError::TokenUses)));
    }
}
