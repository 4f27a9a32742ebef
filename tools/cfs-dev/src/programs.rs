//! Where the programs of the product are.

use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Kind, Result};

/// Whether a tool of the system is installed.
pub fn is_in_path(name: &str) -> bool {
    search(name).is_some()
}

fn search(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// `cfs-dev`, for processes that it starts of itself: that of the directory given, else the running program.
pub fn own(given: Option<&Path>) -> Result<PathBuf> {
    let given = given.map(|directory| directory.join("cfs-dev")).filter(|path| path.is_file());
    match given {
        Some(path) => Ok(path),
        None => std::env::current_exe().doing(|| "cannot tell where this program is".into()),
    }
}

/// Directory of `cfs` and `blockd`: the one given, else that of the running program, else of `cfs` in the PATH.
pub fn directory(given: Option<&Path>) -> Result<PathBuf> {
    let beside = std::env::current_exe().doing(|| "cannot tell where this program is".into())?;
    let candidates = match given {
        Some(directory) => vec![directory.to_owned()],
        None => {
            let beside = beside.parent().map(Path::to_owned);
            let searched = search("cfs").and_then(|cfs| Some(cfs.parent()?.to_owned()));
            beside.into_iter().chain(searched).collect()
        }
    };
    let complete = |directory: &&PathBuf| {
        ["cfs", "blockd"].iter().all(|program| directory.join(program).is_file())
    };
    candidates.iter().find(complete).cloned().ok_or_else(|| {
        let places: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        let what = format!("there are no programs `cfs` and `blockd` in {}", places.join(" or "));
        Error::new(Kind::Precondition, what).next("cargo build --workspace --bins")
    })
}
