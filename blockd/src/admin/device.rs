//! `device.…`: the devices of this blockd, and those that it might have.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Answer;
use crate::daemon::Daemon;
use crate::device::{Contents, Spare, Wish, contents, identity_of, raw_of, reformat};
use crate::engine::Health;
use crate::error::Error;
use crate::pool::Pool;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identify {
    path: PathBuf,
    /// With the structures as the controller fills them.
    #[serde(default)]
    raw: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    path: PathBuf,
    /// Whatever is on the device.
    #[serde(default)]
    force: bool,
    /// Only says what would be done.
    #[serde(default)]
    dry_run: bool,
    /// Has the controller format the namespace before.
    nvme: Option<Wish>,
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

pub fn identify(Identify { path, raw }: &Identify, pools: &[Arc<Pool>]) -> Answer {
    let mut identity;
    match open(path, pools) {
        None => {
            let spare = Spare::open(path)?;
            identity = spare.identify()?;
            identity.raw = raw.then(|| spare.raw()).transpose()?;
        }
        Some(pool) => {
            let name = pool.status().path;
            let found = contents(&name, pool.device())?;
            identity = identity_of(&name, pool.device(), found, Some("this blockd".to_owned()));
            identity.raw = raw.then(|| raw_of(&name, pool.device().as_ref())).transpose()?;
        }
    }
    Ok(json!(identity))
}

/// Answers with what was, or would be, done.
pub fn format(format: &Format, pools: &[Arc<Pool>]) -> Answer {
    let Format { path, force, dry_run, nvme } = format;
    let pool = open(path, pools);
    match (nvme, pool) {
        (Some(_), Some(pool)) => {
            let by = "it is a pool of this blockd; take it out of the configuration and restart blockd first".into();
            Err(Error::DeviceBusy { path: pool.status().path, by }.into())
        }
        (Some(wish), None) => Ok(json!(reformat(path, wish, *force, *dry_run)?)),
        (None, None) => {
            let spare = Spare::open(path)?;
            let found = spare.contents()?;
            if !dry_run {
                spare.format(*force)?;
            }
            Ok(json!({ "contents": found }))
        }
        (None, Some(pool)) => {
            let found = contents(&pool.status().path, pool.device())?;
            if !dry_run {
                format_open(pool, &found, *force)?;
            }
            Ok(json!({ "contents": found }))
        }
    }
}

fn format_open(pool: &Pool, found: &Contents, force: bool) -> crate::error::Result<()> {
    if !pool.volumes().is_empty() && !force {
        return Err(Error::NotBlank { path: pool.status().path, what: found.to_string() });
    }
    pool.format()
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
