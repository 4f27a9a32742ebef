//! `cfs admin ca status | rotate [--finish]`.

use anyhow::Result;
use clap::{Args, Subcommand};
use fsd_rpc::admin::{AdminReply, AdminRequest, CaStatus};
use serde::Serialize;

use super::Context;
use crate::connect::unexpected;
use crate::failed::Exit;
use crate::output::{self, Shown};

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Which authority the cluster has, and how far its replacement is
    Status,
    /// Replace the authority: nodes change over by themselves, mounts renew their certificates
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub struct Rotate {
    /// Do not wait any longer for clients that have not renewed: they will have to enrol again
    #[arg(long)]
    finish: bool,
}

#[derive(Serialize)]
#[serde(transparent)]
struct View(CaStatus);

impl Ca {
    pub(super) fn run(self, context: &Context) -> Result<Exit> {
        let (doing, request) = match self {
            Ca::Status => ("cannot ask for the authority", AdminRequest::CaStatus),
            Ca::Rotate(Rotate { finish }) => {
                ("cannot replace the authority", AdminRequest::CaRotate { finish })
            }
        };
        match context.connect()?.ask(doing, request)? {
            AdminReply::Ca(status) => output::print(context.format, &View(*status))?,
            _ => return Err(unexpected(doing).into()),
        }
        Ok(Exit::Ok)
    }
}

impl Shown for View {
    const KIND: &'static str = "ca-status";

    fn table(&self, _wide: bool) -> String {
        let View(CaStatus { fingerprint, rotation }) = self;
        let mut text = format!("authority    {fingerprint}\n");
        let Some(rotation) = rotation else { return text };
        let new = rotation.fingerprint.as_deref().unwrap_or("-");
        text += &format!("new          {new}, since {}\n", rotation.begun);
        let stage = match rotation.stage.as_str() {
            "introduced" => "introduced: every node is to trust both",
            "issuing" => "issuing: clients get certificates of the new one",
            "showing" => "showing: nodes come with certificates of the new one",
            other => other,
        };
        text += &format!("stage        {stage}\n");
        if !rotation.nodes_waited_for.is_empty() {
            let names = rotation.nodes_waited_for.join(", ");
            text += &format!(
                "waits for    {names}  -> start what is down, or `cfs admin node remove` it\n"
            );
        }
        if !rotation.clients_waited_for.is_empty() && !rotation.finish {
            let count = rotation.clients_waited_for.len();
            let one = &rotation.clients_waited_for[0];
            text += &format!(
                "clients      {count} with an old certificate, one of them {} (serial {})  -> `cfs admin cert \
                 revoke` or `cfs admin ca rotate --finish`\n",
                one.subject, one.serial
            );
        }
        text
    }

    fn names(&self) -> Vec<String> {
        vec![self.0.fingerprint.clone()]
    }
}

#[cfg(test)]
mod tests {
    use fsd_rpc::admin::{CaRotation, Cert};
    use raftmeta_types::Time;

    use super::*;

    #[test]
    fn the_stage_and_who_is_waited_for_are_named() {
        let (fingerprint, time) = ("ab12".to_owned(), Time { secs: 1_800_000_000, nanos: 0 });
        let alone = View(CaStatus { fingerprint: fingerprint.clone(), rotation: None });
        assert_eq!(alone.table(false), "authority    ab12\n");
        let client =
            Cert { serial: 7, subject: "client:a".into(), expires: time.into(), revoked: false };
        let rotation = CaRotation {
            stage: "issuing".into(),
            begun: time.into(),
            fingerprint: Some("cd34".into()),
            finish: false,
            nodes_waited_for: vec!["n3".into()],
            clients_waited_for: vec![client],
        };
        let text = View(CaStatus { fingerprint, rotation: Some(rotation) }).table(false);
        for part in ["ab12", "cd34", "issuing", "n3", "client:a", "serial 7", "--finish"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
}
