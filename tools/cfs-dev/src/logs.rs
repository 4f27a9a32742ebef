//! The logs of a cluster's members as one, filtered by agent.
//!
//! What is there already is sorted by time, a line without one staying behind the line before it; what comes later is
//! shown as it comes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::agent::{Agent, Line};
use crate::error::{Doing, Result};
use crate::state::State;

/// Longest line that is waited for; what is longer is shown in parts.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of one log that are read at once: of a longer one the start is left out.
const READ_BYTES_MAX: u64 = 16 << 20;

/// Names of the fault controller and of the monitoring where members have theirs.
pub const CONTROLLER: &str = "controller";
pub const MONITOR: &str = "monitor";

/// One member's log.
#[derive(Debug)]
struct Source {
    member: String,
    path: PathBuf,
    /// Bytes that were read already.
    offset: u64,
    /// The start of a line whose end has not come.
    rest: Vec<u8>,
    /// Whether the line before was wanted: what belongs to it is, too.
    wanted: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Logs {
    sources: Vec<Source>,
    agent: Option<Agent>,
}

impl Logs {
    /// Of all members, the fault controller and the monitoring, or of one.
    pub fn of(directory: &Path, state: &State, member: Option<&str>, agent: Option<Agent>) -> Logs {
        let source = |folder: &str, name: &str| Source {
            member: name.to_owned(),
            path: directory.join(folder).join(name).join("log"),
            offset: 0,
            rest: Vec::new(),
            wanted: agent.is_none(),
        };
        let nodes = state.nodes.iter().map(|node| source("nodes", &node.name));
        let clients = state.clients.iter().map(|client| source("clients", &client.name));
        // Both are beside the nodes and clients, in a directory of their own name.
        let controller = state.controller.iter().map(|_| source("", CONTROLLER));
        let monitor = state.monitor.iter().map(|_| source("", MONITOR));
        let chosen = |source: &Source| member.is_none_or(|member| member == source.member);
        Logs {
            sources: nodes.chain(clients).chain(controller).chain(monitor).filter(chosen).collect(),
            agent,
        }
    }

    /// What has been written since the last call: `MEMBER | LINE`.
    pub fn next(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let width = self.sources.iter().map(|source| source.member.len()).max().unwrap_or(0);
        for source in &mut self.sources {
            source.read(self.agent, width, &mut lines)?;
        }
        lines.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(lines.into_iter().map(|(_, line)| line).collect())
    }
}

impl Source {
    /// Appends the new lines that are wanted, each with the time by which it is sorted.
    fn read(
        &mut self,
        agent: Option<Agent>,
        width: usize,
        lines: &mut Vec<(String, String)>,
    ) -> Result<()> {
        let doing = || format!("cannot read {}", self.path.display());
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            // A member that was never started has none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).doing(doing),
        };
        let len = file.metadata().doing(doing)?.len();
        if len < self.offset {
            // It was cut, or is another one.
            self.offset = 0;
            self.rest.clear();
        }
        self.offset = self.offset.max(len.saturating_sub(READ_BYTES_MAX));
        file.seek(SeekFrom::Start(self.offset)).doing(doing)?;
        let read = file.take(READ_BYTES_MAX).read_to_end(&mut self.rest).doing(doing)?;
        self.offset += read as u64;
        let mut time = String::new();
        while let Some(end) = line_end(&self.rest) {
            let bytes: Vec<u8> = self.rest.drain(..end).collect();
            let line = String::from_utf8_lossy(&bytes);
            let line = line.trim_end_matches('\n');
            if let Some(parsed) = Line::parse(line) {
                parsed.time.clone_into(&mut time);
                self.wanted = agent.is_none_or(|agent| agent.says(parsed.target));
            }
            if self.wanted {
                lines.push((time.clone(), format!("{:width$} | {line}", self.member)));
            }
        }
        Ok(())
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => Some(at + 1),
        None if bytes.len() >= LINE_BYTES_MAX => Some(LINE_BYTES_MAX),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Network, Provider};
    use crate::state::Member;

    fn logs(directory: &Path, agent: Option<Agent>) -> Logs {
        let mut state = State::new("t", Network::choose(Provider::Loopback, "t").unwrap());
        state.nodes =
            vec![Member::new("n1".into(), "i4i.large"), Member::new("n2".into(), "i4i.large")];
        Logs::of(directory, &state, None, agent)
    }

    fn append(directory: &Path, member: &str, text: &str) {
        use std::io::Write;
        let directory = directory.join("nodes").join(member);
        std::fs::create_dir_all(&directory).unwrap();
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(directory.join("log")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_of_all_members_come_in_order_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut logs = logs(directory.path(), None);
        assert!(logs.next().unwrap().is_empty());
        append(
            directory.path(),
            "n1",
            "2026-01-01T00:00:03Z  INFO fsd::node: three\nmore of three\n",
        );
        append(directory.path(), "n2", "2026-01-01T00:00:01Z  INFO fsd::node: one\n2026-01-01T00");
        let lines = logs.next().unwrap();
        assert!(lines[0].ends_with("one") && lines[0].starts_with("n2 | "), "{lines:?}");
        assert!(lines[1].ends_with("fsd::node: three"), "{lines:?}");
        assert_eq!(lines[2], "n1 | more of three");
        assert_eq!(lines.len(), 3);
        append(directory.path(), "n2", ":00:05Z  INFO fsd::node: five\n");
        assert_eq!(logs.next().unwrap(), ["n2 | 2026-01-01T00:00:05Z  INFO fsd::node: five"]);
        assert!(logs.next().unwrap().is_empty());
    }

    #[test]
    fn an_agent_has_its_lines_and_what_belongs_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let text = "\
node n1 of cluster dev is ready
2026-01-01T00:00:01Z  INFO raftmeta::group: elected
  of three
2026-01-01T00:00:02Z  WARN blockd::pool: full
  nearly
";
        append(directory.path(), "n1", text);
        let lines = logs(directory.path(), Some(Agent::A2)).next().unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("elected") && lines[1].ends_with("of three"));
        let lines = logs(directory.path(), Some(Agent::A1)).next().unwrap();
        assert!(lines[0].ends_with("full") && lines.len() == 2, "{lines:?}");
    }
}
