//! The file `credentials.toml`. Whatever is in it: credentials whose key fits, or a refusal that names the file
//! and shows nothing of the key.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use fsd_rpc::credentials::{Credentials, FILE_NAME, resolve};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::with_scratch;

pub const DICTIONARY: &[&[u8]] = &[
    b"cluster = ",
    b"uuid = ",
    b"servers = [",
    b"certificate = ",
    b"\"\"\"",
    b"-----BEGIN CERTIFICATE-----",
    b"-----END PRIVATE KEY-----",
    b"\\u0000",
];

/// PKCS #8 of an Ed25519 key, but for its 32 bytes.
const KEY_HEAD: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A key of nobody and its certificate, the same in every run.
fn identity() -> &'static (String, String) {
    static IDENTITY: OnceLock<(String, String)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let key = KeyPair::try_from([&KEY_HEAD[..], &[0x5a; 32]].concat()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "client:seed");
        params.serial_number = Some(77.into());
        (key.serialize_pem(), params.self_signed(&key).unwrap().pem())
    })
}

pub fn seeds() -> Vec<Vec<u8>> {
    let (key, certificate) = identity();
    let whole = format!(
        "cluster = \"seed\"\nuuid = \"00000000-0000-0000-0000-000000000001\"\n\
         servers = [\"127.0.0.1:9400\", \"[::1]:9400\"]\n\
         ca = \"\"\"\n{certificate}\"\"\"\ncertificate = \"\"\"\n{certificate}\"\"\"\n\
         key = \"\"\"\n{key}\"\"\"\n"
    );
    vec![whole.into_bytes(), b"cluster = \"a\"\nservers = []\n".to_vec()]
}

pub fn target(bytes: &[u8]) {
    with_scratch(|dir| {
        let path = dir.join(FILE_NAME);
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.create(true).write(true).truncate(true).mode(0o600).open(&path).unwrap();
        file.write_all(bytes).unwrap();
        match Credentials::load(dir) {
            Ok(credentials) => same_again(&credentials, dir),
            Err(error) => {
                let message = error.to_string();
                assert!(message.contains(FILE_NAME), "{message}");
                let secret = identity().0.lines().nth(1).unwrap();
                assert!(!message.contains(&secret[24..]), "{message}");
            }
        }
    });
}

fn same_again(credentials: &Credentials, dir: &std::path::Path) {
    // Names would be looked up; addresses are not.
    let is_address = |server: &String| server.chars().all(|c| "0123456789.:[]".contains(c));
    if credentials.servers.iter().all(is_address) {
        _ = resolve(&credentials.servers);
    }
    credentials.save(dir).unwrap();
    let again = Credentials::load(dir).unwrap();
    assert_eq!(again.cluster_uuid, credentials.cluster_uuid);
    assert_eq!(again.servers, credentials.servers);
}
