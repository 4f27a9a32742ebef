//! `cfs admin cert list | revoke SERIAL`.

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd_rpc::admin::{self, AdminReply, AdminRequest};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};

#[derive(Debug, Subcommand)]
pub enum Cert {
    /// List the certificates
    List(List),
    /// Refuse a certificate from now on: its client has to enrol again
    Revoke(Revoke),
}

#[derive(Debug, Args)]
pub struct List {}

#[derive(Debug, Args)]
pub struct Revoke {
    /// Serial number, as `cfs admin cert list` shows it
    serial: u64,
}

#[derive(Serialize)]
struct View {
    items: Vec<admin::Cert>,
}

impl Cert {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        match self {
            Cert::List(List {}) => list(context),
            Cert::Revoke(Revoke { serial }) => {
                let doing = format!("cannot revoke certificate {serial}");
                match context.connect()?.ask(&doing, AdminRequest::CertRevoke { serial })? {
                    AdminReply::Done => Ok(Exit::Ok),
                    _ => Err(unexpected(&doing).into()),
                }
            }
        }
    }
}

fn list(context: &Context) -> Result<Exit> {
    let doing = "cannot list the certificates";
    let items = match context.connect()?.ask(doing, AdminRequest::CertList)? {
        AdminReply::Certs(items) => items,
        _ => return Err(unexpected(doing).into()),
    };
    output::print(context.format, &View { items })?;
    Ok(Exit::Ok)
}

impl Shown for View {
    const KIND: &'static str = "cert-list";

    fn table(&self, _wide: bool) -> String {
        let row = |cert: &admin::Cert| {
            vec![
                cert.serial.to_string(),
                cert.subject.clone(),
                if cert.revoked { "revoked" } else { "valid" }.into(),
                cert.expires.to_string(),
            ]
        };
        let rows = self.items.iter().map(row).collect();
        output::columns(&["SERIAL", "SUBJECT", "STATE", "EXPIRES"], &[0], rows)
    }

    fn names(&self) -> Vec<String> {
        self.items.iter().map(|cert| cert.serial.to_string()).collect()
    }
}
