//! Commands by number (NVMe base 2.0 figures 138 and 313, NVM command set 1.0 figure 22).

pub mod admin {
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const EVENT_REQUEST: u8 = 0x0c;
    pub const KEEP_ALIVE: u8 = 0x18;
    pub const FORMAT: u8 = 0x80;
}

pub mod io {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
    pub const COPY: u8 = 0x19;
    /// Attribute of Dataset Management: give the blocks back.
    pub const DEALLOCATE: u32 = 1 << 2;
    /// Dword 12: durable when it completes.
    pub const FUA: u32 = 1 << 30;
}

/// Log page 02h, SMART and health.
pub const LOG_SMART: u8 = 0x02;
/// Feature 07h, number of queues.
pub const FEATURE_QUEUES: u8 = 0x07;
