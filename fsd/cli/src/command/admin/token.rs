//! `cfs admin token create | list`.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd_rpc::admin::{
    self, AdminReply, AdminRequest, TOKEN_TTL_SECS_MAX, TOKEN_USES_MAX, Timestamp, TokenPurpose,
};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::{Exit, Failed};
use crate::output::{self, Shown};
use crate::units;

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token that lets a client of the network enrol, or a storage node join; it is shown only once
    Create(Create),
    /// List tokens by the first digits of their hash
    List(List),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  token=$(cfs admin token create --ttl 10m -o name)
  cfs mount --token $token --server node1:9400 /mnt/claudefs      # on the client

Where the node's configuration says door.advertise the token carries that address, and --server may be left
out.")]
pub struct Create {
    /// How long it may be used: up to 7 days
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = units::parse_duration)]
    ttl: Duration,
    /// How often it may be used
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(TOKEN_USES_MAX)))]
    uses: u32,
    /// For storage nodes (`cfs server join`) instead of clients
    #[arg(long)]
    node: bool,
}

#[derive(Debug, Args)]
pub struct List {}

#[derive(Serialize)]
struct Created {
    token: String,
    expires: Timestamp,
    uses: u32,
}

#[derive(Serialize)]
struct View {
    items: Vec<admin::Token>,
}

impl Token {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Token::Create(create) => create.run(context),
            Token::List(List {}) => list(context),
        }
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<Exit> {
        let ttl_secs = self.ttl.as_secs();
        if !(1..=TOKEN_TTL_SECS_MAX).contains(&ttl_secs) {
            let what = "--ttl: a token lives from 1 second to 7 days";
            return Err(Failed::new(Exit::Usage, "TTL", what).into());
        }
        let doing = "cannot create a token";
        let purpose = if self.node { TokenPurpose::Node } else { TokenPurpose::Client };
        let request = AdminRequest::TokenCreate { ttl_secs, uses: self.uses, purpose };
        let created = match context.connect()?.ask(doing, request)? {
            AdminReply::TokenCreated { token, expires, uses } => {
                Created { token: token.0, expires, uses }
            }
            _ => return Err(unexpected(doing).into()),
        };
        output::print(context.format, &created)?;
        Ok(Exit::Ok)
    }
}

fn list(context: &Context) -> Result<Exit> {
    let doing = "cannot list the tokens";
    let items = match context.connect()?.ask(doing, AdminRequest::TokenList)? {
        AdminReply::Tokens(items) => items,
        _ => return Err(unexpected(doing).into()),
    };
    output::print(context.format, &View { items })?;
    Ok(Exit::Ok)
}

impl Shown for Created {
    const KIND: &'static str = "token";

    /// The token alone on the first line, for who copies it.
    fn table(&self, _wide: bool) -> String {
        let uses = if self.uses == 1 { "once".into() } else { format!("{} times", self.uses) };
        format!("{}\nmay be used {uses}, until {}\n", self.token, self.expires)
    }

    fn names(&self) -> Vec<String> {
        vec![self.token.clone()]
    }
}

impl Shown for View {
    const KIND: &'static str = "token-list";

    fn table(&self, _wide: bool) -> String {
        let row = |token: &admin::Token| {
            vec![
                token.id.clone(),
                match token.purpose {
                    TokenPurpose::Client => "client".into(),
                    TokenPurpose::Node => "node".into(),
                },
                token.uses_left.to_string(),
                token.created.to_string(),
                token.expires.to_string(),
            ]
        };
        let rows = self.items.iter().map(row).collect();
        output::columns(&["TOKEN", "FOR", "USES LEFT", "CREATED", "EXPIRES"], &[2], rows)
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|token| token.id.clone()).collect()
    }
}
