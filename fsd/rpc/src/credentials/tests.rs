use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair};

use super::*;

fn credentials(uuid: u128, days: u64) -> Credentials {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "client:a");
    params.serial_number = Some(77.into());
    params.not_after = (SystemTime::now() + Duration::from_secs(days * 24 * 3600)).into();
    let pem = params.self_signed(&key).unwrap().pem();
    Credentials {
        cluster_name: "prod".into(),
        cluster_uuid: Uuid::from_u128(uuid),
        servers: vec!["127.0.0.1:9401".into(), "::1".into()],
        identity: Identity {
            certificate_pem: pem.clone(),
            key_pem: key.serialize_pem().into(),
            ca_pem: pem,
        },
    }
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let saved = credentials(1, 100);
    saved.save(dir.path()).unwrap();
    let loaded = Credentials::load(dir.path()).unwrap();
    assert_eq!(loaded.cluster_name, "prod");
    assert_eq!(loaded.cluster_uuid, saved.cluster_uuid);
    assert_eq!(loaded.servers, saved.servers);
    assert_eq!(loaded.identity.certificate_pem, saved.identity.certificate_pem);
    assert_eq!(*loaded.identity.key_pem, *saved.identity.key_pem);
    assert!(!loaded.is_near_its_end().unwrap());
    let Endpoint::Tcp { addrs, .. } = loaded.endpoint().unwrap() else { panic!() };
    let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
    assert_eq!(addrs, ["127.0.0.1:9401", "[::1]:9400"]);

    // Of the same cluster they are replaced, of another not.
    credentials(1, 20).save(dir.path()).unwrap();
    assert!(Credentials::load(dir.path()).unwrap().is_near_its_end().unwrap());
    let error = credentials(2, 100).save(dir.path()).unwrap_err();
    assert!(matches!(error, CredentialsError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_used_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let refused = || Credentials::load(dir.path()).unwrap_err();
    assert!(matches!(refused(), CredentialsError::Missing { .. }));

    credentials(1, 0).save(dir.path()).unwrap();
    let error = refused();
    assert!(matches!(error, CredentialsError::Expired { .. }), "{error}");
    assert!(error.to_string().contains("cfs mount --token"));

    credentials(1, 100).save(dir.path()).unwrap();
    let good = std::fs::read_to_string(&path).unwrap();
    let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    mode(0o640);
    assert!(matches!(refused(), CredentialsError::Readable { mode: 0o640, .. }));
    mode(0o600);

    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let key_at = good.find("-----BEGIN PRIVATE KEY").unwrap();
    let swapped = format!("{}{other_key}\"\"\"\n", &good[..key_at]);
    for bad in [
        "",
        "cluster = 1",
        &good[..good.len() / 2],
        &good.replace("servers", "hosts"),
        &good.replace("BEGIN CERTIFICATE", "BEGIN CERTIFICAT"),
        &swapped,
        &"x".repeat(100_000),
    ] {
        std::fs::write(&path, bad).unwrap();
        let error = refused();
        assert!(matches!(error, CredentialsError::Damaged { .. }), "{error}");
        // And it is kept, for whoever wants to look.
        let error = credentials(1, 100).save(dir.path()).unwrap_err();
        assert!(matches!(error, CredentialsError::Damaged { .. }), "{error}");
    }
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert!(matches!(refused(), CredentialsError::Io { .. }));
}

#[test]
fn errors_and_debug_do_not_show_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let saved = credentials(1, 100);
    saved.save(dir.path()).unwrap();
    let path = dir.path().join(FILE_NAME);
    let text = std::fs::read_to_string(&path).unwrap();
    let secret = saved.identity.key_pem.lines().nth(1).unwrap().to_owned();
    assert!(text.contains(&secret));
    // A line of the key itself becomes bad TOML.
    std::fs::write(&path, text.replace(&secret, &format!("{secret}\"\"\" {secret}"))).unwrap();
    let error = Credentials::load(dir.path()).unwrap_err();
    for shown in [error.to_string(), format!("{error:?}"), format!("{saved:?}")] {
        assert!(!shown.contains(&secret[..20]), "{shown}");
    }
}

#[test]
fn only_the_signer_is_trusted_in_the_end() {
    let (mut two, other) = (credentials(1, 100), credentials(1, 100));
    let (signer, alone) = (two.signer().unwrap(), two.identity.ca_pem.clone());
    assert!(!two.trust_signer_alone(), "there is no other");
    assert_eq!(two.identity.ca_pem, alone);
    two.identity.ca_pem += &other.identity.ca_pem;
    assert_eq!(CaFingerprint::all_of_pem(&two.identity.ca_pem).unwrap().len(), 2);
    assert!(two.trust_signer_alone() && !two.trust_signer_alone());
    assert_eq!(CaFingerprint::all_of_pem(&two.identity.ca_pem).unwrap(), [signer]);
    let dir = tempfile::tempdir().unwrap();
    two.save(dir.path()).unwrap();
    assert_eq!(Credentials::load(dir.path()).unwrap().signer().unwrap(), signer);
}
