//! `cfs-dev` as a user runs it. As root each test is the first process of namespaces of its own (processes, mounts,
//! network): whatever it starts, mounts and makes ends with it. `drain`, `nemesis` and `twelve` use the library behind the command (`site`).

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod drain;
mod load;
mod monitor;
mod nemesis;
mod refused;
mod rotate;
mod site;
mod twelve;
mod up;
mod world;
