//! A mount: the process that serves it, how it goes to the background, and how it is told to end.
//!
//! ```text
//!   cfs mount DIR ── checks, enrols ──▶ itself again, in the background ── mounts ──┐
//!        ▲                                                                          │
//!        └───────────── "ready", or its error and exit code ────────────────────────┤
//!                                                                                   ▼
//!   cfs umount DIR ── control socket of the mount ──▶ unmount, last sync ──▶ "ok", or why not
//!   umount DIR, fusermount3 -u DIR ── kernel ───────▶ the process sees the end, syncs and exits
//! ```

pub mod background;
pub mod control;
pub mod options;
pub mod serve;
