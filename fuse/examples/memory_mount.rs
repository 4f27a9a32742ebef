//! Mounts a cluster in memory, for suites and experiments: what it shows is the client alone.
//!
//!     memory_mount DIR...
//!
//! Every directory is a mount of its own on the same cluster. Ends when all are unmounted.
#![allow(clippy::unwrap_used, dead_code, reason = "its cluster is that of the tests")]

#[path = "../tests/it/memory.rs"]
mod memory;

use fuse::MountOptions;

fn main() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let directories: Vec<String> = std::env::args().skip(1).collect();
    if directories.is_empty() {
        eprintln!("usage: memory_mount DIR...");
        std::process::exit(2);
    }
    let cluster = memory::Cluster::new();
    let mount = |directory: &String| {
        let mut options = MountOptions::new(directory);
        options.allow_other = true;
        (options.nosuid, options.nodev) = (false, false);
        fuse::mount(options, cluster.connect())
    };
    let mounts: Result<Vec<_>, _> = directories.iter().map(mount).collect();
    let ended = mounts.and_then(|mounts| mounts.into_iter().try_for_each(fuse::Session::join));
    if let Err(error) = ended {
        eprintln!("memory_mount: {error}");
        std::process::exit(1);
    }
}
