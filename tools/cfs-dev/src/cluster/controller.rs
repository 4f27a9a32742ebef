//! The fault controller of a cluster, as a process: `fault::controller` is what it does.

use std::fs;
use std::path::Path;

use super::node::tail;
use super::{Cluster, view};
use crate::error::{Doing, Error, Kind, Result};
use crate::fault::{self, controller};
use crate::process::{Launch, Process};
use crate::{programs, wait};

impl Cluster {
    /// The fault controller, if it runs.
    pub fn controller(&self) -> Option<Process> {
        self.state.lock().controller.clone().filter(Process::is_alive)
    }

    /// Starts it, unless it runs, and waits until it answers.
    pub(super) fn start_controller(&self) -> Result<()> {
        if self.controller().is_none() {
            self.say("starting the fault controller");
            self.launch_controller()?;
        }
        let directory = &self.options.directory;
        let log = controller::log(directory);
        wait::until("the fault controller ready", self.options.limit, || {
            if self.controller().is_none() {
                let what = format!("the fault controller has ended; its log:\n{}", tail(&log));
                return Err(Error::new(Kind::Failed, what)
                    .next(format!("all of it is in {}", log.display())));
            }
            Ok(controller::answers(directory).then_some(()))
        })
    }

    fn launch_controller(&self) -> Result<()> {
        let directory = &self.options.directory;
        let own = controller::directory(directory);
        fs::create_dir_all(&own).doing(|| format!("cannot make {}", own.display()))?;
        let program = programs::own(self.options.programs.as_deref())?;
        let arguments =
            vec!["--state-dir".into(), directory.into(), "fault".into(), "serve".into()];
        let log = controller::log(directory);
        let launch = Launch {
            namespace: None,
            program: &program,
            arguments,
            environment: vec![],
            log: &log,
        };
        self.record_controller(Some(launch.start()?))
    }

    fn record_controller(&self, process: Option<Process>) -> Result<()> {
        self.state.lock().controller = process;
        self.save()
    }

    /// Undoes what a controller has left that died at work.
    pub(super) fn undo_what_is_left(&self) -> Result<()> {
        let died = self.state.lock().controller.is_some() && self.controller().is_none();
        if died { fault::undo(self) } else { Ok(()) }
    }

    /// Ends it at once, whatever it does, and undoes that.
    pub(super) fn end_controller(&self) -> Result<()> {
        if let Some(process) = self.controller() {
            process.kill()?;
        }
        self.undo_what_is_left()?;
        self.record_controller(None)
    }
}

/// Ends the controller of the cluster in this directory before anybody has the lock, which it holds while it is at
/// work. Whether there was one.
pub(super) fn end(directory: &Path) -> Result<bool> {
    match view(directory)?.controller.filter(Process::is_alive) {
        Some(process) => process.kill().map(|()| true),
        None => Ok(false),
    }
}
