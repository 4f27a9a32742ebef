//! The thread that keeps a session: pings, and renewal of the certificate before it ends.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Weak, mpsc};
use std::time::{Duration, Instant};

use super::pool::Inner;
use crate::credentials::{Credentials, CredentialsError};
use crate::message::Request;

/// How often the certificate's end is looked at.
const RENEWAL_EVERY: Duration = Duration::from_secs(6 * 3600);

/// When it is tried again after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Nodes that are remembered.
const SERVERS_MAX: usize = 64;

/// Until `stopped` has no sender any more or the client is gone.
pub(super) fn session(weak: &Weak<Inner>, every: Duration, stopped: &mpsc::Receiver<()>) {
    let mut look = Instant::now();
    let mut trusted = None;
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let told = {
            let state = inner.state.lock();
            state.welcome.as_ref().map(|welcome| (welcome.signer, welcome.signs_alone))
        };
        // The authority of the cluster is being replaced: the old one will not be trusted for long, or is no more.
        if std::mem::replace(&mut trusted, told) != told || Instant::now() >= look {
            look = Instant::now() + RENEWAL_EVERY;
            if let Some(dir) = &inner.options.credentials
                && let Err(error) = renew(&inner, dir)
            {
                tracing::warn!(%error, "the certificate was not renewed, next attempt later");
                look = Instant::now() + RETRY_AFTER;
            }
        }
        drop(inner);
        match stopped.recv_timeout(every) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let Some(inner) = weak.upgrade() else { return };
        if inner.aborted.load(Ordering::Acquire) {
            return;
        }
        let until = Instant::now() + every;
        if let Err(error) = inner.attempt(None, &Request::Ping, &[], until).answer {
            tracing::debug!(%error, "ping");
        }
    }
}

/// Keeps the names of nodes that the cluster has told, renews the certificate in the directory if it is time, trusts no
/// authority that was replaced, and shows from now on the certificate that is there.
fn renew(inner: &Inner, dir: &Path) -> Result<(), CredentialsError> {
    let mut credentials = Credentials::load(dir)?;
    // The next mount may come when the nodes of today are gone.
    let (told, signer, signs_alone) = {
        let state = inner.state.lock();
        let welcome = state.welcome.as_ref();
        let alone = welcome.is_some_and(|w| w.signs_alone);
        let told = welcome.map(|w| w.servers.clone()).unwrap_or_default();
        (told, welcome.and_then(|w| w.signer), alone)
    };
    let new: Vec<String> =
        told.into_iter().filter(|server| !credentials.servers.contains(server)).collect();
    if !new.is_empty() && credentials.servers.len() + new.len() <= SERVERS_MAX {
        credentials.servers.extend(new);
        credentials.save(dir)?;
    }
    let replaced = signer.is_some_and(|signer| credentials.signer().is_ok_and(|of| of != signer));
    if replaced || credentials.is_near_its_end()? {
        let until = Instant::now() + inner.options.deadline;
        let ask = |request: &Request| inner.attempt(None, request, &[], until).answer;
        credentials = credentials.renewed(|request| Ok(ask(request)?.0))?;
        credentials.save(dir)?;
        tracing::info!(cluster = %credentials.cluster_name, "the certificate was renewed");
    }
    let is_signer = credentials.signer().is_ok_and(|of| Some(of) == signer);
    if signs_alone && is_signer && credentials.trust_signer_alone() {
        credentials.save(dir)?;
        tracing::info!("the authority that was replaced is trusted no more");
    }
    inner.dial.set_identity(&credentials.identity)?;
    Ok(())
}
