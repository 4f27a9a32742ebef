//! `cfs admin node remove [--lost [--confirm [--accept-data-loss]]] NODE`.

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{AdminReply, AdminRequest, CopiesLeft, NodeLost};
use serde::Serialize;

use super::super::Context;
use super::change::{self, Named};
use crate::connect::unexpected;
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};

#[derive(Debug, Args)]
#[command(after_help = "\
Without --lost nothing may count on the node any more: it is drained, or down and made up for, so that everything is
there on other nodes as often as it should be.

With --lost its disks are gone for good, and what counted on it goes on with the copies that are left, even where they
are fewer than needed otherwise. Refused for a node that answers. Say it without --confirm first, and read what it
costs. The node never comes back: its number is not used again, and a new one joins with a token.")]
pub struct Remove {
    #[command(flatten)]
    named: Named,
    /// Its disks are gone for good; without --confirm only says what would happen
    #[arg(long)]
    lost: bool,
    /// With --lost: do it
    #[arg(long, requires = "lost")]
    confirm: bool,
    /// With --confirm: shards of which no copy is left begin anew, without what was in them
    #[arg(long, requires = "confirm")]
    accept_data_loss: bool,
}

#[derive(Serialize)]
#[serde(transparent)]
struct View(NodeLost);

impl Remove {
    pub fn run(self, context: &Context) -> Result<Exit> {
        let Remove { named, lost, confirm, accept_data_loss } = self;
        let doing = format!("cannot remove {}", named.node);
        let admin = context.connect()?;
        if !lost {
            let request = AdminRequest::NodeRemove { node: named.node };
            let moved = change::ask(&admin, &doing, request)?;
            output::print(context.format, &change::View(moved))?;
            return Ok(Exit::Ok);
        }
        let request = AdminRequest::NodeRemoveLost { node: named.node, confirm, accept_data_loss };
        let view = match admin.ask(&doing, request)? {
            AdminReply::NodeLost(told) => View(told),
            _ => return Err(unexpected(&doing).into()),
        };
        output::print(context.format, &view)?;
        if view.0.done { Ok(Exit::Ok) } else { Err(unconfirmed(&doing, &view.0).into()) }
    }
}

fn unconfirmed(doing: &str, told: &NodeLost) -> Failed {
    let what = format!("{doing}: nothing was changed");
    let next = match told.lost_shards.as_slice() {
        [] => "if its disks are gone for good, say --confirm",
        _ => {
            "start the nodes that have copies; if there are none, say --confirm --accept-data-loss"
        }
    };
    Failed::new(Exit::Precondition, "NOT_CONFIRMED", what).next(next)
}

impl Shown for View {
    const KIND: &'static str = "node-lost";

    fn table(&self, _wide: bool) -> String {
        let NodeLost { node, name, done, copies_wanted, left, lost_shards, voters } = &self.0;
        let verb = if *done { "is" } else { "would be" };
        let mut text = format!("n{node} {name} {verb} removed for good\n");
        for one in left {
            text += &format!("  {}\n", goes_on(one, *copies_wanted));
        }
        if !lost_shards.is_empty() {
            let numbers: Vec<String> = lost_shards.iter().map(u16::to_string).collect();
            let numbers = numbers.join(", ");
            text += &match done {
                true => format!("  begun anew, without what was in them: {}\n", numbered(&numbers)),
                false => format!("  without any copy in sync: {}\n", numbered(&numbers)),
            };
        }
        if left.is_empty() && lost_shards.is_empty() {
            text += "  no shard counts on it\n";
        }
        text + &format!("  {voters} voters of the metadata are left\n")
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.name.clone()]
    }
}

fn numbered(numbers: &str) -> String {
    let many = if numbers.contains(',') { "shards" } else { "shard" };
    format!("{many} {numbers}")
}

fn goes_on(left: &CopiesLeft, wanted: u32) -> String {
    let CopiesLeft { copies, shards, shards_waiting } = left;
    let (noun, verb) = if *shards == 1 { ("shard", "goes") } else { ("shards", "go") };
    let waiting = match shards_waiting {
        0 => String::new(),
        waiting => format!("; {waiting} of them when nodes are back that do not answer now"),
    };
    format!("{shards} {noun} {verb} on with {copies} of {wanted} copies{waiting}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_costs_is_said_by_copies_and_numbers() {
        let mut view = View(NodeLost {
            node: 3,
            name: "c".into(),
            done: false,
            copies_wanted: 3,
            left: vec![
                CopiesLeft { copies: 1, shards: 1, shards_waiting: 0 },
                CopiesLeft { copies: 2, shards: 7, shards_waiting: 2 },
            ],
            lost_shards: vec![4, 9],
            voters: 4,
        });
        let expected = "\
n3 c would be removed for good
  1 shard goes on with 1 of 3 copies
  7 shards go on with 2 of 3 copies; 2 of them when nodes are back that do not answer now
  without any copy in sync: shards 4, 9
  4 voters of the metadata are left
";
        assert_eq!(view.table(false), expected);
        let failed = unconfirmed("cannot remove c", &view.0);
        assert_eq!(failed.exit.code(), 6);
        assert!(failed.to_string().contains("--accept-data-loss"), "{failed}");
        view.0 = NodeLost { done: true, left: vec![], lost_shards: vec![], ..view.0 };
        let text = view.table(false);
        assert!(text.contains("is removed") && text.contains("no shard counts"), "{text}");
        let failed = unconfirmed("cannot remove c", &view.0).to_string();
        assert!(failed.contains("--confirm") && !failed.contains("--accept"), "{failed}");
    }
}
