//! What is done to a cluster so that it shows what it endures, and whether it has.
//!
//! ```text
//!   controller.rs   the process that does it and undoes it, and how it is asked (`cfs-dev fault`)
//!     run.rs        accidents for so long, work meanwhile, then heal and check: the report
//!       plan.rs     which accidents and when: a pure function of the seed and of what the cluster consists of
//!       inflict.rs  one accident from its beginning to its end; disk.rs: full disks, flipped bytes
//!       workload.rs what the clients do; history.rs what they did; linear.rs whether that can be
//! ```
//! An accident is undone by the one that does it. What a controller left that died is undone by the next `cfs-dev up`.

pub mod controller;
mod disk;
mod history;
mod inflict;
mod linear;
mod plan;
pub mod run;
pub mod workload;

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

pub use inflict::{shape as plan_shape, undo};

/// Sorts of accidents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `kill -9` of nodes, later started again
    Kill,
    /// `kill -9` of all nodes: the whole site loses its power
    KillAll,
    /// A node stops in order and is started again
    Restart,
    /// Nodes stand still (SIGSTOP) and go on
    Pause,
    /// Less than half of the nodes cannot reach the others; clients reach one half, both, or one each
    Halves,
    /// What one node says does not reach another; the other direction works
    OneWay,
    /// The node that leads the metadata reaches no other; clients reach it
    LeaderAlone,
    /// Two halves are cut off from each other, one node between them reaches all
    Bridge,
    /// A client reaches no node
    ClientAlone,
    /// The disk of a node is full, with its data, metadata and log on it
    FullDisk,
    /// Bytes of a node's data are overwritten while it is down, and the scrub has to make them good
    Corrupt,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Kill,
        Kind::KillAll,
        Kind::Restart,
        Kind::Pause,
        Kind::Halves,
        Kind::OneWay,
        Kind::LeaderAlone,
        Kind::Bridge,
        Kind::ClientAlone,
        Kind::FullDisk,
        Kind::Corrupt,
    ];

    /// Whether it cuts the network.
    pub fn cuts(self) -> bool {
        use Kind::{Bridge, ClientAlone, Halves, LeaderAlone, OneWay};
        matches!(self, Halves | OneWay | LeaderAlone | Bridge | ClientAlone)
    }

    /// Why it cannot happen to such a cluster.
    pub fn impossible(self, shape: &Shape) -> Option<String> {
        if self.cuts() && !shape.namespaces {
            return Some(
                "members at loopback addresses cannot be cut off; root has namespaces".into(),
            );
        }
        match self {
            Kind::Halves | Kind::OneWay | Kind::LeaderAlone | Kind::Bridge
                if shape.nodes.len() < 3 =>
            {
                Some(format!("it takes three nodes, and {} run", shape.nodes.len()))
            }
            Kind::ClientAlone if shape.clients.is_empty() => Some("there is no client".into()),
            Kind::FullDisk if !shape.own_disks => {
                Some("the nodes share this machine's disk; mount one of its own on each node's directory".into())
            }
            Kind::Corrupt if shape.replicas < 2 => {
                Some("there is one copy of everything: it would be lost".into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no kind is hidden");
        f.write_str(value.get_name())
    }
}

/// What there is that accidents can happen to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Names of the nodes that run, and of the clients.
    pub nodes: Vec<String>,
    pub clients: Vec<String>,
    /// Copies of everything.
    pub replicas: usize,
    /// Whether the network can be cut.
    pub namespaces: bool,
    /// Whether each node's directory is a file system of its own, so that it can be full alone.
    pub own_disks: bool,
}

/// One accident, with those whom it meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accident {
    Kill(Vec<String>),
    Restart(String),
    Pause(Vec<String>),
    /// Members reach each other only if a group has both; see [`crate::net::faults::of_groups`].
    Cut(Vec<Vec<String>>),
    OneWay {
        from: String,
        to: String,
    },
    /// The leader is found when it happens; if nobody tells, it is this one.
    LeaderAlone {
        otherwise: String,
    },
    FullDisk(String),
    Corrupt {
        node: String,
        /// For the choice of bytes.
        choice: u64,
    },
}

impl fmt::Display for Accident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Accident::Kill(nodes) | Accident::Pause(nodes) => f.write_str(&nodes.join(" ")),
            Accident::Restart(node) | Accident::FullDisk(node) => f.write_str(node),
            Accident::Corrupt { node, .. } => f.write_str(node),
            Accident::Cut(groups) => {
                let groups: Vec<_> = groups.iter().map(|group| group.join(" ")).collect();
                f.write_str(&groups.join(" | "))
            }
            Accident::OneWay { from, to } => write!(f, "{from} -> {to}"),
            Accident::LeaderAlone { .. } => f.write_str("the leader | the others"),
        }
    }
}

/// An accident at its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub accident: Accident,
    /// Time of peace before it.
    pub peace: Duration,
    /// How long it lasts.
    pub lasts: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, for {:.1} s", self.kind, self.accident, self.lasts.as_secs_f64())
    }
}

/// Asks a run to end early.
#[derive(Debug, Default)]
pub struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn set(&self) {
        *self.asked.lock() = true;
        self.changed.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *self.asked.lock()
    }

    /// Sleeps so long, or until it is asked to stop.
    pub fn sleep(&self, time: Duration) {
        self.changed.wait_while_for(&mut self.asked.lock(), |asked| !*asked, time);
    }
}
