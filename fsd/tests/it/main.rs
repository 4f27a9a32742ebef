//! A whole storage node, as its clients see it: the binary `fsd` with its block daemon in a directory of
//! its own, driven through `fsd_rpc::Client` over the Unix socket.

#![allow(clippy::unwrap_used)]

mod support;

mod authority;
mod change;
mod clock;
mod crash;
mod doors;
mod files;
mod lost;
mod refusals;
mod sessions;
mod site;
mod space;
mod strangers;
