//! `device.…`: the devices of this blockd, and those that it might have.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Answer;
use crate::daemon::Daemon;
use crate::device::{Spare, contents, identity_of};
use crate::engine::Health;
use crate::pool::Pool;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    path: PathBuf,
    /// Whatever is on the device.
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wipe {
    path: PathBuf,
    /// Every byte, not only what says what it is.
    #[serde(default)]
    zero: bool,
}

pub fn list(daemon: &Daemon) -> Value {
    let list = daemon.pools().iter().map(|pool| {
        let status = pool.status();
        json!({
            "path": status.path,
            "engine": status.engine,
            "bytes": pool.device().bytes(),
            "uuid": status.uuid,
            "volumes": status.volumes,
            "extent_bytes": status.extent_bytes,
            "extents": status.extents,
            "extents_free": status.extents_free,
            "state": state(pool),
            "facts": pool.device().facts(),
            "fault": pool.device().fault().map(|f| json!(f.settings())),
        })
    });
    list.collect::<Vec<_>>().into()
}

fn state(pool: &Pool) -> &'static str {
    let status = pool.status();
    if matches!(pool.device().facts().health, Health::Failed(_)) {
        "failed"
    } else if status.wiped {
        "wiped"
    } else if status.metadata_failed {
        "metadata-failed"
    } else if pool.volumes().iter().any(|v| v.is_poisoned()) {
        "poisoned"
    } else {
        "ok"
    }
}

/// The pool of a path, by whatever name it is called.
fn open<'a>(path: &Path, pools: &'a [Arc<Pool>]) -> Option<&'a Arc<Pool>> {
    let same = |pool: &&Arc<Pool>| {
        let own = pool.status().path;
        let own = Path::new(&own);
        own == path || matches!((own.canonicalize(), path.canonicalize()), (Ok(a), Ok(b)) if a == b)
    };
    pools.iter().find(same)
}

/// Resets the controller beneath a device of this blockd.
pub fn reset(Named { path }: &Named, daemon: &Daemon) -> Answer {
    daemon.reset(&path.display().to_string())?;
    Ok(Value::Null)
}

pub fn identify(Named { path }: &Named, pools: &[Arc<Pool>]) -> Answer {
    let identity = match open(path, pools) {
        None => Spare::open(path)?.identify()?,
        Some(pool) => {
            let name = pool.status().path;
            let found = contents(&name, pool.device())?;
            identity_of(&name, pool.device(), found, Some("this blockd".to_owned()))
        }
    };
    Ok(json!(identity))
}

pub fn format(Format { path, force }: &Format, pools: &[Arc<Pool>]) -> Answer {
    match open(path, pools) {
        None => Spare::open(path)?.format(*force)?,
        Some(pool) => {
            let volumes = pool.volumes();
            if !volumes.is_empty() && !force {
                let names: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
                return Err(crate::Error::NotBlank {
                    path: pool.status().path,
                    what: format!("a pool with the volumes {}", names.join(", ")),
                }
                .into());
            }
            drop(volumes);
            pool.format()?;
        }
    }
    Ok(Value::Null)
}

pub fn wipe(Wipe { path, zero }: &Wipe, pools: &[Arc<Pool>]) -> Answer {
    let in_use = match open(path, pools) {
        None => {
            Spare::open(path)?.wipe(*zero)?;
            false
        }
        Some(pool) => {
            pool.wipe(*zero)?;
            true
        }
    };
    Ok(json!({ "restart_needed": in_use }))
}
