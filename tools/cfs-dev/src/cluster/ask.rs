//! Asking the nodes, over their Unix sockets, which no network namespace hides.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fsd_rpc::admin::{AdminReply, AdminRequest, Node, Status, TokenPurpose};
use fsd_rpc::message::{Request, Response};
use fsd_rpc::{Client, ConnectOptions, Endpoint};
use serde_json::Value;

use super::Cluster;
use crate::error::{Doing, Error, Kind, Result};
use crate::programs;
use crate::state::State;
use crate::wait;

/// A node that answers later is asked again, or another one is.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Life of a token, in seconds: it is used at once.
const TOKEN_TTL_SECS: u64 = 600;

/// One node.
pub fn one(directory: &Path, node: &str, request: AdminRequest) -> Result<AdminReply> {
    let socket = directory.join("nodes").join(node).join("fsd.sock");
    // Nobody there is told at once, not after a time of attempts.
    UnixStream::connect(&socket).doing(|| format!("cannot reach {node}"))?;
    let options = ConnectOptions {
        client: "cfs-dev".into(),
        admin: true,
        deadline: ANSWER_WITHIN,
        ..ConnectOptions::default()
    };
    let client = Client::connect(Endpoint::Unix(socket), options);
    let client = client.doing(|| format!("cannot talk to {node}"))?;
    match client.call(&Request::Admin(request), &[]).doing(|| node.to_owned())? {
        (Response::Admin(reply), _) => Ok(reply),
        _ => Err(unexpected(node)),
    }
}

/// The first of the running nodes that answers.
pub fn any(directory: &Path, state: &State, request: &AdminRequest) -> Result<AdminReply> {
    let mut last = Error::new(Kind::Precondition, "no node runs").next("cfs-dev up");
    for node in state.nodes.iter().filter(|node| node.running().is_some()) {
        match one(directory, &node.name, request.clone()) {
            Ok(reply) => return Ok(reply),
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub fn nodes(directory: &Path, state: &State) -> Result<Vec<Node>> {
    match any(directory, state, &AdminRequest::NodeList { with_shards: true })? {
        AdminReply::Nodes(nodes) => Ok(nodes),
        _ => Err(unexpected("the cluster")),
    }
}

pub fn status(directory: &Path, state: &State) -> Result<Status> {
    match any(directory, state, &AdminRequest::Status)? {
        AdminReply::Status(status) => Ok(*status),
        _ => Err(unexpected("the cluster")),
    }
}

pub fn token(directory: &Path, state: &State, purpose: TokenPurpose) -> Result<String> {
    let request = AdminRequest::TokenCreate { ttl_secs: TOKEN_TTL_SECS, uses: 1, purpose };
    match any(directory, state, &request)? {
        AdminReply::TokenCreated { token, .. } => Ok(token.0),
        _ => Err(unexpected("the cluster")),
    }
}

fn unexpected(who: &str) -> Error {
    let what = format!("{who} gave an answer of another kind than was asked for");
    Error::new(Kind::Failed, what).next("are all programs of one build?")
}

impl Cluster {
    /// What the cluster says of its nodes and shards.
    pub fn list(&self) -> Result<Vec<Node>> {
        let state = self.state.lock().clone();
        nodes(&self.options.directory, &state)
    }

    /// `cfs admin …` on the first node that runs, whatever its exit code: its document.
    pub fn admin(&self, arguments: &[&str]) -> Result<Value> {
        let nodes = self.nodes();
        let Some(node) = nodes.iter().find(|node| node.process().is_some()) else {
            return Err(Error::new(Kind::Precondition, "no node runs").next("cfs-dev up"));
        };
        let program = programs::directory(self.options.programs.as_deref())?.join("cfs");
        let timeout = format!("{}s", self.options.limit.as_secs().max(1));
        let mut command = Command::new(program);
        command.arg("admin").args(arguments).args([
            "-o",
            "json",
            "--timeout",
            &timeout,
            "--socket",
        ]);
        command.arg(node.socket()).stdin(Stdio::null());
        let doing = || format!("cfs admin {}", arguments.join(" "));
        let output = command.output().doing(doing)?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let told = String::from_utf8_lossy(&output.stderr);
            Error::new(Kind::Failed, format!("{}: {}: {}", doing(), output.status, told.trim()))
        })
    }

    /// Waits until the cluster has all nodes up and as many copies of everything as it should.
    pub fn settled(&self) -> Result<()> {
        let mut missing = String::new();
        let what = "all nodes up and every shard with all its copies";
        let settled = wait::until(what, self.options.limit, || {
            let wanted: Vec<String> =
                self.state.lock().nodes.iter().map(|node| node.name.clone()).collect();
            // An election may be under way.
            let told = self.list().map(|nodes| self.lacks(&wanted, &nodes));
            missing = told.unwrap_or_else(|error| Some(error.what)).unwrap_or_default();
            Ok(missing.is_empty().then_some(()))
        });
        settled.map_err(|error| Error { what: format!("{}: {missing}", error.what), ..error })
    }

    /// Why it is not settled.
    fn lacks(&self, wanted: &[String], nodes: &[Node]) -> Option<String> {
        for name in wanted {
            let mut named = nodes.iter().filter(|node| node.name == *name);
            match named.clone().find(|node| node.state != "removed") {
                // What an operator has taken out is as it should be.
                None if named.next().is_some() => {}
                None => return Some(format!("{name} has not joined")),
                Some(node) if node.state == "up" && !node.role.is_empty() => {}
                // And what is on its way out.
                Some(node) if node.state == "draining" || node.state == "drained" => {}
                Some(node) => return Some(format!("{name} is {}", node.state)),
            }
        }
        let up = nodes.iter().filter(|node| node.state == "up").count();
        let copies = self.state.lock().replicas.min(up);
        let mut shards = nodes.iter().flat_map(|node| &node.shards);
        let short = shards.find(|shard| shard.in_sync.len() < copies)?;
        Some(format!("shard {} has {} of {copies} copies", short.id, short.in_sync.len()))
    }
}
