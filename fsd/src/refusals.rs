//! What came to the doors and was refused: counted each time, logged once for each source and reason.
//!
//! The log of a node that strangers knock at stays readable: at most 1024 pairs of source and reason are
//! remembered, and further ones are counted without a word until the next start.

use std::collections::HashSet;
use std::fmt::Display;

use parking_lot::Mutex;

use crate::metrics::Metrics;

/// Pairs of source and reason that are remembered.
const KNOWN_MAX: usize = 1024;

/// Why somebody was refused; the label of `claudefs_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// A token that is misspelt, unknown, expired or used.
    Token,
    /// A certificate of another CA, out of date or unreadable: the handshake failed.
    Handshake,
    /// A certificate that was revoked, or is another one's than said.
    Certificate,
    /// Bytes that are no request.
    Garbage,
    /// Versions of the protocol that do not meet.
    Protocol,
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
    const ALL: [Why; 9] = [
        Why::Token,
        Why::Handshake,
        Why::Certificate,
        Why::Garbage,
        Why::Protocol,
        Why::Datagram,
        Why::Stranger,
        Why::Clock,
        Why::Twin,
    ];

    fn name(self) -> &'static str {
        match self {
            Why::Token => "token",
            Why::Handshake => "handshake",
            Why::Certificate => "certificate",
            Why::Garbage => "garbage",
            Why::Protocol => "protocol",
            Why::Datagram => "datagram",
            Why::Stranger => "stranger",
            Why::Clock => "clock",
            Why::Twin => "twin",
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
        let is_new = {
            let mut known = self.known.lock();
            known.len() < KNOWN_MAX && known.insert((why, source.clone()))
        };
        if is_new {
            tracing::warn!(source, why = why.name(), %what, "refused; said once, counted always");
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
        refusals.note(Why::Token, &"192.0.2.1", &"unknown");
        for number in 0..2 * KNOWN_MAX {
            refusals.note(Why::Garbage, &number, &"noise");
        }
        assert_eq!(refusals.known.lock().len(), KNOWN_MAX);
        let text = metrics.render();
        for line in [
            "claudefs_refused_total{why=\"datagram\"} 3",
            "claudefs_refused_total{why=\"token\"} 1",
            "claudefs_refused_total{why=\"garbage\"} 2048",
            "claudefs_refused_total{why=\"clock\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
