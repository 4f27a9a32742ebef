//! raftmeta
