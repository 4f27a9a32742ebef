//! `cfs admin client list | revoke SESSION`.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd_rpc::admin::{self, AdminReply, AdminRequest};
use raftmeta_types::SessionId;
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};
use crate::units;

#[derive(Debug, Subcommand)]
pub enum Client {
    /// List the sessions of mounts
    List(List),
    /// End a session: its locks are released, what it had under way fails
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub struct List {}

#[derive(Debug, Args)]
#[command(after_help = "\
The client may come back with its certificate: to keep it out, `cfs admin cert revoke` as well.")]
pub struct Revoke {
    /// Session, as `cfs admin client list` shows it
    session: u64,
}

#[derive(Serialize)]
struct View {
    items: Vec<admin::Client>,
}

impl Client {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Client::List(List {}) => list(context),
            Client::Revoke(Revoke { session }) => {
                let doing = format!("cannot end session {session}");
                let request = AdminRequest::ClientRevoke { session: SessionId(session) };
                match context.connect()?.ask(&doing, request)? {
                    AdminReply::Done => Ok(Exit::Ok),
                    _ => Err(unexpected(&doing).into()),
                }
            }
        }
    }
}

fn list(context: &Context) -> Result<Exit> {
    let doing = "cannot list the clients";
    let items = match context.connect()?.ask(doing, AdminRequest::ClientList)? {
        AdminReply::Clients(items) => items,
        _ => return Err(unexpected(doing).into()),
    };
    output::print(context.format, &View { items })?;
    Ok(Exit::Ok)
}

impl Shown for View {
    const KIND: &'static str = "client-list";

    fn table(&self, _wide: bool) -> String {
        let row = |client: &admin::Client| {
            let idle = |ms| units::duration(Duration::from_millis(ms));
            vec![
                client.session.to_string(),
                client.client.clone(),
                client.identity.clone(),
                client.open_files.to_string(),
                client.idle_ms.map_or("awaited".into(), idle),
                client.opened.to_string(),
            ]
        };
        let rows = self.items.iter().map(row).collect();
        output::columns(
            &["SESSION", "CLIENT", "IDENTITY", "OPEN", "IDLE", "SINCE"],
            &[0, 3, 4],
            rows,
        )
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|client| client.session.to_string()).collect()
    }
}
