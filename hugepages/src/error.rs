use std::io;

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The length of an arena is not a multiple of 2 MiB, is 0, or is not what its descriptor has.
    #[error("arena of {bytes} bytes: {reason}")]
    Length { bytes: usize, reason: &'static str },
    /// A system call failed.
    #[error("{call} for {bytes} bytes: {source}")]
    System { call: &'static str, bytes: usize, source: io::Error },
    /// A message on the socket did not carry the descriptors that it should.
    #[error("expected {expected} descriptors with the message, got {got}")]
    Descriptors { expected: usize, got: usize },
}
