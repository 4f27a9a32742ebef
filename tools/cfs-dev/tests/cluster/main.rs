//! `cfs-dev` as a user runs it. As root each test is the first process of namespaces of its own (processes, mounts,
//! network): whatever it starts, mounts and makes ends with it. `nemesis` uses the library behind the command.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod nemesis;
mod refused;
mod up;
mod world;
