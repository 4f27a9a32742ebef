//! Extended attributes, and with them POSIX ACLs.

use bytes::Bytes;
use fsd_rpc::message::{Request, Response};
use raftmeta_types::command::XattrMode;
use raftmeta_types::{Command, Ino, Reply, XATTR_NAME_MAX};
use rustix::io::Errno;

use super::flush::Depth;
use super::{Core, Result, unexpected};

/// The kernel asks for it at every write, to take it away.
const CAPABILITY: &[u8] = b"security.capability";

impl Core {
    pub(crate) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        let file = (name == CAPABILITY).then(|| self.open_file(ino)).flatten();
        if let Some(file) = &file
            && file.state.lock().no_capability
        {
            return Err(Errno::NODATA);
        }
        if name.len() > XATTR_NAME_MAX {
            return Err(Errno::RANGE);
        }
        let request = Request::GetXattr { ino, name: Bytes::copy_from_slice(name) };
        match self.call(&request) {
            Ok((Response::Xattr(value), _)) => Ok(value),
            Ok(_) => unexpected(),
            Err(error) => {
                if let Some(file) = file {
                    file.state.lock().no_capability = error == Errno::NODATA;
                }
                Err(error)
            }
        }
    }

    pub(crate) fn list_xattrs(&self, ino: Ino) -> Result<Vec<Bytes>> {
        match self.call(&Request::ListXattr { ino })?.0 {
            Response::Xattrs(names) => Ok(names),
            _ => unexpected(),
        }
    }

    pub(crate) fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> Result<()> {
        let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        self.change_xattr(ino, Command::SetXattr { ino, name, value, mode })
    }

    pub(crate) fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let name = Bytes::copy_from_slice(name);
        self.change_xattr(ino, Command::RemoveXattr { ino, name })
    }

    fn change_xattr(&self, ino: Ino, command: Command) -> Result<()> {
        let file = self.open_file(ino);
        // Held over the change: a durable flush that ends meanwhile would say that nothing is left to sync.
        let flushing = file.as_ref().map(|file| file.flushing.lock());
        if let (Some(file), Some(flushing)) = (&file, &flushing) {
            // An ACL changes the mode, and a mode that is held back would undo it.
            self.flush_held(file, flushing, Depth::Commit)?;
        }
        let Reply::Inode(inode) = self.mutate(command)? else { return unexpected() };
        if let Some(file) = &file {
            let mut state = file.state.lock();
            state.no_capability = false;
            state.undurable = true;
            state.adopt(&inode);
        }
        Ok(())
    }
}
