//! Descriptors over a Unix socket (`SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::Error;

/// Most descriptors in one message.
pub const FDS_MAX: usize = 8;

/// Sends one byte with these descriptors (at most [`FDS_MAX`]); blocks while the socket is full.
///
/// # Errors
/// `System` when the peer is gone.
pub fn send(socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    assert!(fds.len() <= FDS_MAX);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
    assert!(fits, "the space is for FDS_MAX descriptors");
    sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|errno| Error::System { call: "sendmsg", bytes: 1, source: errno.into() })?;
    Ok(())
}

/// Receives what [`send`] sent: exactly `expected` descriptors, close-on-exec.
///
/// # Errors
/// `Descriptors` when the peer sent another number (those received are closed) or closed the socket.
pub fn receive(socket: impl AsFd, expected: usize) -> Result<Vec<OwnedFd>, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut iov = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .map_err(|errno| Error::System { call: "recvmsg", bytes: 1, source: errno.into() })?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if fds.len() != expected {
        return Err(Error::Descriptors { expected, got: fds.len() });
    }
    Ok(fds)
}
