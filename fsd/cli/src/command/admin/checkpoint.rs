//! `cfs admin checkpoint`.

use anyhow::Result;
use clap::Args;
use fsd_rpc::admin::{AdminReply, AdminRequest};

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;

#[derive(Debug, Args)]
pub struct Checkpoint {}

impl Checkpoint {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let doing = "cannot write a checkpoint";
        match context.connect()?.ask(doing, AdminRequest::Checkpoint)? {
            AdminReply::Done => Ok(Exit::Ok),
            _ => Err(unexpected(doing).into()),
        }
    }
}
