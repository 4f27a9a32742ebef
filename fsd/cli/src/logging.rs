//! Where a long-running command writes what it does.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use crate::failed::{Exit, Failed};

/// Directory of the log files of root's mounts.
const LOG_DIR: &str = "/var/log/claudefs";

/// The log of a mount that has none named: `/var/log/claudefs/mount-mnt-claudefs.log`.
pub fn default_file(mountpoint: &Path) -> PathBuf {
    let name: Vec<String> = mountpoint
        .components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    let mut name = format!("mount-{}", name.join("-"));
    // NAME_MAX is 255 bytes; the end of a path tells more than its start.
    while name.len() > 200 {
        let cut = name.char_indices().nth(7).map_or(name.len(), |(at, _)| at);
        name = format!("mount-{}", &name[cut..]);
    }
    Path::new(LOG_DIR).join(format!("{name}.log"))
}

/// Logs to this file, or to stderr. `CFS_LOG` chooses what: `info` (the default), `debug`, `fuse=trace`, …
pub fn start(file: Option<&Path>) -> Result<(), Failed> {
    let filter = EnvFilter::try_from_env("CFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    let Some(path) = file else {
        // Only the first one counts, and there is no other.
        let _ = log.with_writer(std::io::stderr).with_ansi(crate::output::colours()).try_init();
        return Ok(());
    };
    let failed = |error: std::io::Error| {
        let what = format!("cannot write the log {}: {error}", path.display());
        Failed::new(Exit::Failed, "LOG_FILE", what).next("name another one with --log-file")
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let file =
        OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(failed)?;
    let _ = log.with_writer(Mutex::new(file)).with_ansi(false).try_init();
    // Nobody reads the stderr of a process in the background.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "panicked")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_called_after_its_mountpoint() {
        let name = |path: &str| default_file(Path::new(path)).display().to_string();
        assert_eq!(name("/mnt/claudefs"), "/var/log/claudefs/mount-mnt-claudefs.log");
        let long = name(&format!("/{}", "ä/".repeat(400)));
        assert!(long.len() < 250 && long.ends_with(".log"), "{long}");
    }
}
