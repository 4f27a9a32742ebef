//! The replacement of the certificate authority.

use raftmeta_types::cluster::RotationStage::{Introduced, Issuing, Showing};
use raftmeta_types::command::RotateStep::{Advance, Begin, Finish};

use super::*;

fn rotate(fs: &mut Fs, step: raftmeta_types::command::RotateStep) -> MetaResult<Reply> {
    fs.server(Command::Rotate(step))
}

fn certificate(serial: u64, subject: &str, expires_secs: i64) -> CertificateInfo {
    let expires = Time { secs: expires_secs, nanos: 0 };
    CertificateInfo { serial, subject: subject.into(), expires, revoked: false }
}

#[test]
fn an_authority_is_replaced_step_by_step_and_one_at_a_time() {
    let mut fs = Fs::new();
    let far = 1 << 40;
    for (serial, subject, expires) in [
        (1, "client:a", far),
        (2, "client:b", far),
        (3, "client:c", 0),
        (4, "node:1", far),
        (5, "client:d", far),
    ] {
        let certificate = certificate(serial, subject, expires);
        fs.server(Command::RecordCertificate { certificate }).unwrap();
    }
    fs.server(Command::RevokeCertificate { serial: 5 }).unwrap();
    let before = read::authority(&fs.kv).unwrap();
    assert_eq!(rotate(&mut fs, Finish), Err(MetaError::NotFound));
    assert_eq!(rotate(&mut fs, Advance { from: Introduced }), Err(MetaError::NotFound));
    assert!(rotate(&mut fs, Begin { sealed: Bytes::new() }).is_err());
    rotate(&mut fs, Begin { sealed: Bytes::from_static(b"new") }).unwrap();
    let second = Begin { sealed: Bytes::from_static(b"newer") };
    assert_eq!(rotate(&mut fs, second.clone()), Err(MetaError::Exists));
    assert_eq!(read::old_certificates(&fs.kv).unwrap(), []);
    rotate(&mut fs, Advance { from: Introduced }).unwrap();
    // A leader that was late.
    assert_eq!(rotate(&mut fs, Advance { from: Introduced }), Err(MetaError::Superseded));
    assert_eq!(read::old_certificates(&fs.kv).unwrap(), [1, 2]);
    assert_eq!(read::authority(&fs.kv).unwrap(), before, "the old one still counts");

    let certificate = certificate(6, "client:a", far);
    fs.server(Command::RenewCertificate { replaced: 1, certificate }).unwrap();
    assert_eq!(read::old_certificates(&fs.kv).unwrap(), [2]);
    fs.server(Command::RevokeCertificate { serial: 2 }).unwrap();
    assert_eq!(read::old_certificates(&fs.kv).unwrap(), []);
    rotate(&mut fs, Finish).unwrap();
    let rotation = read::rotation(&fs.kv).unwrap().unwrap();
    assert_eq!((rotation.stage, rotation.finish), (Issuing, true));
    rotate(&mut fs, Advance { from: Issuing }).unwrap();
    assert_eq!(rotate(&mut fs, second.clone()), Err(MetaError::Exists));
    rotate(&mut fs, Advance { from: Showing }).unwrap();
    assert_eq!(read::authority(&fs.kv).unwrap().unwrap(), b"new");
    assert_eq!(read::rotation(&fs.kv).unwrap(), None);
    assert_eq!(read::authority_step(&fs.kv).unwrap(), 4);
    rotate(&mut fs, second).unwrap();
}
