//! `cfs-dev` as a user runs it. As root each test is the first process of namespaces of its own (processes, mounts,
//! network): whatever it starts, mounts and makes ends with it. `drain`, `restart` and `twelve` use the library behind the
//! command (`site`).

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod disks;
mod drain;
mod fault;
mod load;
mod monitor;
mod nemesis;
mod refused;
mod restart;
mod rotate;
mod site;
mod twelve;
mod up;
mod world;
