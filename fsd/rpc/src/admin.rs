//! What administrators ask a storage node (`cfs admin …`).

use serde::{Deserialize, Serialize};

/// Filled in by the admin verbs, one variant each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminRequest {
    Status,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AdminReply {
    Done,
}
