//! What came to the doors and was refused: counted each time, logged once for each source and reason.
//!
//! The log of a node that strangers knock at stays readable: at most 1024 pairs of source and reason are
//! remembered, and further ones are counted without a word until the next start, after one line that says so.

use std::collections::HashSet;
use std::fmt::Display;

use fsd_rpc::server::Refusal;
use parking_lot::Mutex;
use raftmeta_types::cluster::TokenRefusal;

use crate::metrics::Metrics;

/// Pairs of source and reason that are remembered.
const KNOWN_MAX: usize = 1024;

/// Why somebody was refused; the label of `claudefs_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// A token that is not good, or none at all: it is misspelt.
    Token(Option<TokenRefusal>),
    /// Bytes that are no TLS, or somebody who does not trust this node.
    Handshake,
    /// A certificate of another authority.
    Authority,
    /// A certificate that is out of date.
    Dates,
    /// A certificate that was revoked.
    Revoked,
    /// A certificate that is missing, or another one's than said.
    Certificate,
    /// A user of this host who may not use the local door.
    User,
    /// A session that is somebody else's.
    Session,
    /// Bytes that are no request.
    Garbage,
    /// Versions of the protocol that do not meet.
    Protocol,
    /// More connections than there is room for.
    Crowd,
    /// A datagram that is none of the cluster's.
    Datagram,
    /// A node that is not, or not any more, of the cluster.
    Stranger,
    /// A node whose clock is far from this one's.
    Clock,
    /// A second node with the number of another one.
    Twin,
}

impl Why {
    const ALL: [Why; 15] = [
        Why::Token(None),
        Why::Handshake,
        Why::Authority,
        Why::Dates,
        Why::Revoked,
        Why::Certificate,
        Why::User,
        Why::Session,
        Why::Garbage,
        Why::Protocol,
        Why::Crowd,
        Why::Datagram,
        Why::Stranger,
        Why::Clock,
        Why::Twin,
    ];

    fn name(self) -> &'static str {
        match self {
            Why::Token(_) => "token",
            Why::Handshake => "handshake",
            Why::Authority => "authority",
            Why::Dates => "dates",
            Why::Revoked => "revoked",
            Why::Certificate => "certificate",
            Why::User => "user",
            Why::Session => "session",
            Why::Garbage => "garbage",
            Why::Protocol => "protocol",
            Why::Crowd => "crowd",
            Why::Datagram => "datagram",
            Why::Stranger => "stranger",
            Why::Clock => "clock",
            Why::Twin => "twin",
        }
    }
}

impl From<Refusal> for Why {
    fn from(refusal: Refusal) -> Why {
        match refusal {
            Refusal::Handshake => Why::Handshake,
            Refusal::Authority => Why::Authority,
            Refusal::Dates => Why::Dates,
            Refusal::Revoked => Why::Revoked,
            Refusal::Certificate => Why::Certificate,
            Refusal::User => Why::User,
            Refusal::Garbage => Why::Garbage,
            Refusal::Protocol => Why::Protocol,
            Refusal::Crowd => Why::Crowd,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Refusals {
    metrics: Metrics,
    known: Mutex<HashSet<(Why, String)>>,
}

impl Refusals {
    pub fn new(metrics: Metrics) -> Refusals {
        metrics.refusable(Why::ALL.into_iter().map(Why::name));
        Refusals { metrics, known: Mutex::default() }
    }

    /// `source` is an address without a port, or a name: what stays the same when it comes again.
    pub fn note(&self, why: Why, source: &dyn Display, what: &dyn Display) {
        self.metrics.refused(why.name());
        let source = source.to_string();
        let (is_new, is_last) = {
            let mut known = self.known.lock();
            let is_new = known.len() < KNOWN_MAX && known.insert((why, source.clone()));
            (is_new, is_new && known.len() == KNOWN_MAX)
        };
        if is_new {
            tracing::warn!(source, why = why.name(), %what, "refused; said once, counted always");
        }
        if is_last {
            tracing::warn!("{KNOWN_MAX} were refused: from now on others are counted only");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_and_so_many_are_remembered() {
        let metrics = Metrics::new().unwrap();
        let refusals = Refusals::new(metrics.clone());
        for _ in 0..3 {
            refusals.note(Why::Datagram, &"192.0.2.1", &"noise");
        }
        refusals.note(Why::Token(None), &"192.0.2.1", &"misspelt");
        refusals.note(Why::Token(Some(TokenRefusal::Used)), &"192.0.2.1", &"used up");
        assert_eq!(refusals.known.lock().len(), 3, "they are different reasons");
        for number in 0..2 * KNOWN_MAX {
            refusals.note(Why::Garbage, &number, &"noise");
        }
        assert_eq!(refusals.known.lock().len(), KNOWN_MAX);
        let text = metrics.render();
        for line in [
            "claudefs_refused_total{why=\"datagram\"} 3",
            "claudefs_refused_total{why=\"token\"} 2",
            "claudefs_refused_total{why=\"garbage\"} 2048",
            "claudefs_refused_total{why=\"clock\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
