//! Files of the group: the machine's. Under test those of a simulated disk too.

#[cfg(test)]
pub(crate) use crate::sim::files::{
    File, OpenOptions, create_dir_all, exists, read_dir, remove_file, rename,
};
#[cfg(not(test))]
pub(crate) use std::fs::{
    File, OpenOptions, create_dir_all, exists, read_dir, remove_file, rename,
};

use std::io;

/// Does what takes long and waits for the disk, beside everything else. It is done even if nobody waits any more.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    #[cfg(test)]
    if crate::sim::executor::is_on() {
        return crate::sim::blocking(work).await;
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
