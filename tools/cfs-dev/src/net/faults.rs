//! Cuts between members, by nftables in their namespaces: what comes from a member that is cut off is dropped where it
//! arrives, so each direction is cut by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use parking_lot::Mutex;

use super::{Network, Provider};
use crate::error::{Doing, Error, Kind, Result};

/// Of ours alone, so that nothing else of the namespace is touched.
const TABLE: &str = "cfs_faults";

/// Pairs `(from, to)`: nothing of the first arrives at the second.
pub type Cuts = BTreeSet<(String, String)>;

/// Members that reach each other only if a group has both. Who is in no group is not cut off from anybody.
pub fn of_groups(groups: &[Vec<String>]) -> Cuts {
    let named: BTreeSet<&String> = groups.iter().flatten().collect();
    let together = |a: &String, b: &String| groups.iter().any(|g| g.contains(a) && g.contains(b));
    let mut cuts = Cuts::new();
    for a in &named {
        for b in &named {
            if a != b && !together(a, b) {
                cuts.insert(((*a).clone(), (*b).clone()));
            }
        }
    }
    cuts
}

/// The network as a fault injector sees it.
#[derive(Debug)]
pub struct Net {
    network: Network,
    members: BTreeMap<String, Ipv4Addr>,
    cuts: Mutex<Cuts>,
}

impl Net {
    /// For members of a network that is up.
    pub fn new(network: Network, members: BTreeMap<String, Ipv4Addr>) -> Result<Net> {
        if network.provider != Provider::Namespaces {
            let what = "loopback addresses cannot be cut off from each other";
            return Err(Error::new(Kind::Precondition, what).next("run as root: namespaces can"));
        }
        if !crate::programs::is_in_path("nft") {
            let what = "cutting the network needs `nft`, which is not installed";
            return Err(Error::new(Kind::Precondition, what).next("apt-get install nftables"));
        }
        Ok(Net { network, members, cuts: Mutex::new(Cuts::new()) })
    }

    /// Cuts between the groups and heals everything else; see [`of_groups`].
    pub fn partition(&self, groups: &[Vec<String>]) -> Result<()> {
        self.set(of_groups(groups))
    }

    /// Nothing of `from` arrives at `to` any more; the other direction stays as it is.
    pub fn one_way(&self, from: &str, to: &str) -> Result<()> {
        let mut cuts = self.cuts.lock().clone();
        cuts.insert((from.to_owned(), to.to_owned()));
        self.set(cuts)
    }

    /// Everybody reaches everybody.
    pub fn heal(&self) -> Result<()> {
        self.set(Cuts::new())
    }

    /// Everybody reaches everybody, also where somebody else has cut.
    pub fn clear(&self) -> Result<()> {
        let mut now = self.cuts.lock();
        for member in self.members.keys().filter(|member| self.is_there(member)) {
            self.apply(member, &[])?;
        }
        now.clear();
        Ok(())
    }

    /// Whether a member's namespace is there: after a reboot it is not.
    fn is_there(&self, member: &str) -> bool {
        self.network.namespace(member).is_some_and(|namespace| super::has_namespace(&namespace))
    }

    fn set(&self, cuts: Cuts) -> Result<()> {
        let mut now = self.cuts.lock();
        for (from, to) in &cuts {
            for name in [from, to] {
                if !self.members.contains_key(name) {
                    let what = format!("the cluster has no `{name}`");
                    return Err(Error::new(Kind::Absent, what));
                }
            }
        }
        for member in self.members.keys() {
            let of = |cuts: &Cuts| -> Vec<Ipv4Addr> {
                let here = cuts.iter().filter(|(_, to)| to == member);
                here.map(|(from, _)| self.members[from]).collect()
            };
            let (before, after) = (of(&now), of(&cuts));
            if before != after {
                self.apply(member, &after)?;
            }
        }
        *now = cuts;
        Ok(())
    }

    fn apply(&self, member: &str, from: &[Ipv4Addr]) -> Result<()> {
        let namespace = self.network.namespace(member).expect("checked when this was made");
        let mut nft = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"))
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .doing(|| "cannot start nft".into())?;
        let doing = || format!("cannot change the firewall of {member}");
        // Ends what is written, too.
        nft.stdin
            .take()
            .expect("it was asked for")
            .write_all(script(from).as_bytes())
            .doing(doing)?;
        let output = nft.wait_with_output().doing(doing)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(Kind::Failed, format!("{}: {said}", doing())))
    }
}

/// Replaces the table in one transaction.
fn script(from: &[Ipv4Addr]) -> String {
    let mut script = format!("table ip {TABLE} {{}}\ndelete table ip {TABLE}\n");
    if !from.is_empty() {
        let list = from.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(", ");
        script += &format!(
            "table ip {TABLE} {{\n  chain input {{\n    type filter hook input priority 0;\n    \
             ip saddr {{ {list} }} drop\n  }}\n}}\n"
        );
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn groups_are_cut_off_from_each_other() {
        let cuts = of_groups(&[group(&["n1", "n2"]), group(&["n3"])]);
        let pairs = [("n1", "n3"), ("n2", "n3"), ("n3", "n1"), ("n3", "n2")];
        assert_eq!(cuts, pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
        // A bridge is in both.
        let cuts = of_groups(&[group(&["n1", "n2"]), group(&["n2", "n3"])]);
        assert_eq!(cuts.len(), 2);
        assert!(of_groups(&[]).is_empty());
    }

    #[test]
    fn a_firewall_that_cuts_nothing_is_none() {
        assert!(!script(&[]).contains("drop"));
        let script = script(&[Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)]);
        assert!(script.contains("ip saddr { 198.18.0.1, 198.18.0.2 } drop"), "{script}");
    }
}
