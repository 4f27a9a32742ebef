//! blockd-ipc
