//! Both halves of the door against each other: a real server with a small service in memory.

#![allow(clippy::unwrap_used)]

mod calls;
mod enrolment;
mod events;
mod garbage;
mod node;
mod proxy;
mod retries;
mod rooms;
mod trust;
