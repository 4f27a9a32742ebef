//! Bytes between a stream socket and [`Memory`] without a copy in between: what a host sends lands where the device
//! reads it, what the device filled goes out from there. Nothing here blocks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Memory;

/// Pieces of one call; further ones wait for the next.
pub const PIECES_MAX: usize = 32;

/// A part of what is sent.
#[derive(Debug)]
pub enum Piece<'a> {
    Bytes(&'a [u8]),
    /// `len` bytes of the memory from `at` on.
    Memory {
        memory: &'a Memory,
        at: usize,
        len: usize,
    },
}

/// Sends the pieces in order, as much as the socket takes now. At most [`PIECES_MAX`] pieces.
pub fn send(socket: BorrowedFd<'_>, pieces: &[Piece<'_>]) -> io::Result<usize> {
    assert!(pieces.len() <= PIECES_MAX, "{} pieces", pieces.len());
    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut vectors = [none; PIECES_MAX];
    for (vector, piece) in vectors.iter_mut().zip(pieces) {
        *vector = match piece {
            Piece::Bytes(bytes) => {
                libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
            }
            Piece::Memory { memory, at, len } => {
                let part = memory.part(*at, *len);
                libc::iovec { iov_base: part.as_ptr().cast(), iov_len: part.len() }
            }
        };
    }
    // SAFETY: an all-zero msghdr is a valid one without address, data and control.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = pieces.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the vectors describe borrowed slices and parts of memories that the caller keeps alive through its
    // pieces; the kernel only reads them, and only during the call.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Receives at most `len` bytes into the memory from `at` on; 0 is the end of the stream.
pub fn receive(
    socket: BorrowedFd<'_>,
    memory: &Memory,
    at: usize,
    len: usize,
) -> io::Result<usize> {
    let part = memory.part(at, len);
    // SAFETY: `part` is inside its memory (checked by `part`), which this operation owns while it is being filled.
    let n = unsafe {
        libc::recv(socket.as_raw_fd(), part.as_ptr().cast(), part.len(), libc::MSG_DONTWAIT)
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn pieces_arrive_in_order_and_nothing_blocks() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let memory = Memory::zeroed(64);
        let nothing = receive(b.as_fd(), &memory, 0, 64).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let data = Memory::copy_of(b"..data..");
        let pieces = [Piece::Bytes(b"head "), Piece::Memory { memory: &data, at: 2, len: 4 }];
        assert_eq!(send(a.as_fd(), &pieces).unwrap(), 9);
        assert_eq!(receive(b.as_fd(), &memory, 10, 20).unwrap(), 9);
        assert_eq!(&memory.to_vec()[10..19], b"head data");
        a.write_all(b"x").unwrap();
        drop(a);
        assert_eq!(receive(b.as_fd(), &memory, 63, 1).unwrap(), 1);
        assert_eq!(receive(b.as_fd(), &memory, 0, 64).unwrap(), 0, "the end");
    }
}
