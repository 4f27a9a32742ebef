use std::net::SocketAddr;
use std::path::Path;
use fsd_rpc::tls::Identity;
use crate::failed::{Exit, Failed};
pub fn load(_d: Option<&Path>) -> Result<Identity, Failed> { Err(Failed::new(Exit::Failed, "X", "x")) }
pub fn enrol(_d: Option<&Path>, _t: &str, _a: &[SocketAddr]) -> Result<(), Failed> { Err(Failed::new(Exit::Failed, "X", "x")) }
