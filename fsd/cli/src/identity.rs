//! Who this host is for the cluster: the credentials in `~/.cfs`, and enrolment with a token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fsd_rpc::client::CallError;
use fsd_rpc::credentials::{self, Credentials, CredentialsError};
use fsd_rpc::message::Failure;
use fsd_rpc::token::Invitation;
use raftmeta_types::MetaError;
use raftmeta_types::cluster::TokenRefusal;

use crate::failed::{self, Exit, Failed};
use crate::mounts;

/// Longest name of a client in a certificate, in bytes.
const NAME_BYTES_MAX: usize = 57;

/// The directory of the credentials: the one named, else `~/.cfs`.
pub fn directory(named: Option<&Path>) -> Result<PathBuf, Failed> {
    let directory = match named {
        Some(directory) => directory.to_owned(),
        None => match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
            Some(home) => Path::new(&home).join(".cfs"),
            None if rustix::process::geteuid().is_root() => "/root/.cfs".into(),
            None => {
                let failed = Failed::new(Exit::Failed, "NO_HOME", "HOME is not set");
                return Err(failed.next("name the directory of the certificate with --identity"));
            }
        },
    };
    mounts::lexical(&directory).map_err(|error| {
        Failed::new(Exit::Failed, "PATH", format!("{}: {error}", directory.display()))
    })
}

/// Whether credentials lie there, good or bad.
pub fn exists(directory: &Path) -> bool {
    directory.join(credentials::FILE_NAME).exists()
}

/// The credentials in the directory.
pub fn load(directory: &Path) -> Result<Credentials, Failed> {
    Credentials::load(directory).map_err(|error| refused("cannot use the certificate", error))
}

/// Gets a certificate for a token and keeps it. A token that was used up already is no failure where the
/// certificate that it gave is still there: an fstab line may carry one.
pub fn enrol(
    directory: &Path,
    invitation: &Invitation,
    timeout: Duration,
) -> Result<Credentials, Failed> {
    let build = env!("CARGO_PKG_VERSION");
    match credentials::enrol(invitation, &host(), build, timeout) {
        Ok(credentials) => {
            credentials
                .save(directory)
                .map_err(|error| refused("cannot keep the certificate", error))?;
            eprintln!(
                "cfs: enrolled in cluster {}; the certificate is in {}",
                credentials.cluster_name,
                directory.display()
            );
            Ok(credentials)
        }
        Err(error) => match Credentials::load(directory) {
            Ok(credentials) if was_used(&error) => {
                eprintln!("cfs: the token was used already: going on with the certificate of then");
                Ok(credentials)
            }
            Ok(_) | Err(_) => Err(refused("cannot enrol", error)),
        },
    }
}

fn was_used(error: &CredentialsError) -> bool {
    let used = Failure::Meta(MetaError::Token(TokenRefusal::Used));
    matches!(error, CredentialsError::Call(CallError::Failure(failure))
        if failure.to_string() == used.to_string())
}

fn refused(doing: &str, error: CredentialsError) -> Failed {
    match error {
        CredentialsError::Call(error) => failed::call(doing, error),
        CredentialsError::Missing { .. } => {
            Failed::new(Exit::Precondition, "NOT_ENROLLED", format!("{doing}: {error}"))
                .next("on a node of the cluster: `cfs admin token create`")
        }
        CredentialsError::Token(_) => {
            Failed::new(Exit::Usage, "TOKEN", format!("{doing}: {error}"))
        }
        CredentialsError::NoServer => {
            Failed::new(Exit::Usage, "NO_SERVER_NAMED", format!("{doing}: {error}"))
        }
        _ => Failed::new(Exit::Failed, "CREDENTIALS", format!("{doing}: {error}")),
    }
}

/// The name of this host as a certificate may carry it.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    clean(name.trim())
}

fn clean(name: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().filter(allowed).take(NAME_BYTES_MAX).collect();
    let name = name.trim_start_matches(['-', '.']);
    if name.is_empty() { "client".into() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_fits_a_certificate() {
        assert_eq!(clean("node-1.example"), "node-1.example");
        assert_eq!(clean("ä b\n"), "b");
        assert_eq!(clean("-.."), "client");
        assert_eq!(clean(&"x".repeat(100)).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn missing_credentials_say_how_to_get_some() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!exists(directory.path()));
        let failed = load(directory.path()).unwrap_err();
        assert_eq!((failed.exit, failed.code.as_str()), (Exit::Precondition, "NOT_ENROLLED"));
        assert!(failed.to_string().contains("token create"), "{failed}");
    }

    #[test]
    fn only_a_used_token_is_forgiven() {
        let with = |refusal| {
            let failure = Failure::Meta(MetaError::Token(refusal));
            was_used(&CredentialsError::Call(CallError::Failure(failure)))
        };
        assert!(with(TokenRefusal::Used));
        assert!(!with(TokenRefusal::Expired) && !with(TokenRefusal::Unknown));
    }
}
