//! What a PATH of `cfs admin du` or `stat` names.
//!
//! 1. `:/src` or `--cluster-path /src`: a path in the cluster, whatever is mounted here.
//! 2. A path inside a ClaudeFS mount of this host: the same file in the cluster. The mount table is asked,
//!    not the mount, so this works while it hangs; only when a link leads there is it resolved.
//! 3. Any other absolute path: a path in the cluster. So `/` is the cluster's root.
//! 4. Any other relative path is refused.
//!
//! The source of a mount names its cluster (`NAME@UUID`): a path in a mount of another cluster than the one
//! that answers is refused, not looked up in the wrong place.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fsd_rpc::admin::Target;
use uuid::Uuid;

use crate::failed::{Exit, Failed};
use crate::mounts::{self, Mount};

/// A path, and the mount through which it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub path: PathBuf,
    pub mount: Option<Mount>,
}

/// How the source of a mount names its cluster.
pub fn source(cluster_name: &str, cluster_uuid: &Uuid) -> String {
    let mut digits = cluster_uuid.simple().to_string();
    digits.truncate(8);
    format!("{cluster_name}@{digits}")
}

impl Location {
    /// Resolves a path as the module says.
    pub fn of(path: &Path, cluster_path: bool, mounts: &[Mount]) -> Result<Location, Failed> {
        let bytes = path.as_os_str().as_bytes();
        let usage = |what: String| Failed::new(Exit::Usage, "PATH", what);
        if bytes.is_empty() {
            return Err(usage("the path is empty".into()));
        }
        let marked = bytes.strip_prefix(b":");
        if let Some(named) = marked.or(cluster_path.then_some(bytes)) {
            let named = Path::new(std::ffi::OsStr::from_bytes(named));
            if !named.is_absolute() {
                let what = format!("{}: a path in the cluster begins with /", path.display());
                return Err(usage(what));
            }
            return in_cluster(named);
        }
        let cannot = |error: std::io::Error| {
            Failed::new(Exit::Failed, "PATH", format!("{}: {error}", path.display()))
        };
        let plain = mounts::lexical(path).map_err(cannot)?;
        if let Some(found) = within(&plain, mounts)? {
            return Ok(found);
        }
        // A link of this host may lead into a mount.
        if let Ok(real) = plain.canonicalize()
            && let Some(found) = within(&real, mounts)?
        {
            return Ok(found);
        }
        if path.is_absolute() {
            return in_cluster(&plain);
        }
        let what = format!("{} is not inside a ClaudeFS mount of this host", path.display());
        Err(usage(what).next("name the path in the cluster, as in `:/src`"))
    }

    /// Refuses a location of another cluster.
    pub fn check_cluster(&self, name: &str, uuid: &Uuid) -> Result<(), Failed> {
        let Some(mount) = &self.mount else { return Ok(()) };
        let expected = source(name, uuid);
        if mount.source == expected {
            return Ok(());
        }
        let what = format!(
            "{} is a mount of cluster {}, and the node that answers is of {expected}",
            mount.mountpoint.display(),
            mount.source,
        );
        Err(Failed::new(Exit::Precondition, "OTHER_CLUSTER", what)
            .next("name a node of that cluster with --socket or --server"))
    }

    pub fn target(&self) -> Target {
        Target::Path(Bytes::copy_from_slice(self.path.as_os_str().as_bytes()))
    }
}

fn in_cluster(path: &Path) -> Result<Location, Failed> {
    let plain = mounts::lexical(path).map_err(|error| {
        Failed::new(Exit::Usage, "PATH", format!("{}: {error}", path.display()))
    })?;
    Ok(Location { path: plain, mount: None })
}

/// The location of a path that lies on a ClaudeFS mount.
fn within(path: &Path, mounts: &[Mount]) -> Result<Option<Location>, Failed> {
    let Some(mount) = mounts::covering(mounts, path) else { return Ok(None) };
    if mount.is_ours() {
        let inside = mount.inside(path).map(|path| Location { path, mount: Some(mount.clone()) });
        return Ok(inside);
    }
    let under = mount.mountpoint.parent().and_then(|parent| mounts::covering(mounts, parent));
    match under {
        Some(outer) if outer.is_ours() => {
            let what = format!(
                "{} lies on {}, a {} mounted inside ClaudeFS",
                path.display(),
                mount.mountpoint.display(),
                mount.kind
            );
            Err(Failed::new(Exit::Usage, "PATH", what))
        }
        Some(_) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<Mount> {
        mounts::parse(
            b"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
              51 22 0:46 / /mnt/b rw - fuse.claudefs dev@00000000 rw\n\
              52 51 0:47 / /mnt/b/tmp rw - tmpfs tmpfs rw\n",
        )
    }

    fn path(of: &str, cluster_path: bool) -> Result<(PathBuf, bool), Failed> {
        Location::of(Path::new(of), cluster_path, &table())
            .map(|found| (found.path, found.mount.is_some()))
    }

    #[test]
    fn paths_in_a_mount_and_in_the_cluster() {
        let cases = [
            ("/mnt/b", false, "/", true),
            ("/mnt/b/src/../x", false, "/x", true),
            ("/", false, "/", false),
            ("/src", false, "/src", false),
            (":/mnt/b/src", false, "/mnt/b/src", false),
            ("/mnt/b/src", true, "/mnt/b/src", false),
        ];
        for (given, cluster_path, wanted, mounted) in cases {
            assert_eq!(path(given, cluster_path), Ok((PathBuf::from(wanted), mounted)), "{given}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (given, word) in [
            ("", "empty"),
            (":src", "begins with /"),
            ("no/such", "not inside"),
            ("/mnt/b/tmp/x", "tmpfs"),
        ] {
            let failed = path(given, false).unwrap_err();
            assert_eq!(failed.exit, Exit::Usage);
            assert!(failed.what.contains(word), "{failed}");
        }
    }

    #[test]
    fn a_mount_of_another_cluster_is_refused() {
        let inside = Location::of(Path::new("/mnt/b/x"), false, &table()).unwrap();
        assert_eq!(inside.check_cluster("dev", &Uuid::nil()), Ok(()));
        let failed = inside.check_cluster("prod", &Uuid::nil()).unwrap_err();
        assert!(failed.what.contains("dev@00000000") && failed.what.contains("prod@"), "{failed}");
        let outside = Location::of(Path::new("/x"), false, &table()).unwrap();
        assert_eq!(outside.check_cluster("prod", &Uuid::nil()), Ok(()));
    }
}
