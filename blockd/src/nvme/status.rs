//! Status codes: the one place that decides what a host of ours is told, and what the status of a device means to us
//! (NVMe base 2.0 §3.3.3.2, figures 94 to 100).

/// SCT in bits 10:8, SC in bits 7:0, DNR in bit 14.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

const DNR: u16 = 0x4000;

/// How a command ended, for the engine that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It had no effect that matters and may succeed if it is sent again: all that blockd sends is idempotent.
    Retry,
    /// With this errno.
    Failed(i32),
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Status({self})")
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dnr = if self.0 & DNR != 0 { ", do not retry" } else { "" };
        write!(f, "type {} code {:#04x}{dnr}", self.0 >> 8 & 7, self.0 & 0xff)
    }
}

impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const INVALID_OPCODE: Status = Status(DNR | 0x01);
    pub const INVALID_FIELD: Status = Status(DNR | 0x02);
    /// The device or the daemon failed; another path or a later try may work.
    pub const INTERNAL: Status = Status(0x06);
    pub const ABORT_REQUESTED: Status = Status(0x07);
    pub const INVALID_NAMESPACE: Status = Status(DNR | 0x0b);
    pub const SEQUENCE: Status = Status(DNR | 0x0c);
    pub const SGL_LENGTH: Status = Status(DNR | 0x0f);
    pub const SGL_TYPE: Status = Status(DNR | 0x11);
    pub const SGL_OFFSET: Status = Status(DNR | 0x16);
    pub const WRITE_PROTECTED: Status = Status(DNR | 0x20);
    /// The data digest did not match; the host tries again.
    pub const TRANSIENT: Status = Status(0x22);
    pub const LBA_RANGE: Status = Status(DNR | 0x80);
    /// No space in the pool for a thin volume.
    pub const CAPACITY: Status = Status(DNR | 0x81);
    pub const LOG_PAGE: Status = Status(DNR | 0x109);
    pub const ABORT_LIMIT: Status = Status(DNR | 0x103);
    pub const EVENTS_LIMIT: Status = Status(DNR | 0x105);
    pub const FEATURE_NOT_SAVEABLE: Status = Status(DNR | 0x10d);
    pub const FEATURE_NOT_CHANGEABLE: Status = Status(DNR | 0x10e);
    pub const FEATURE_NOT_NAMESPACE: Status = Status(DNR | 0x10f);
    pub const CONNECT_FORMAT: Status = Status(DNR | 0x180);
    pub const CONNECT_BUSY: Status = Status(0x181);
    pub const CONNECT_PARAMETERS: Status = Status(DNR | 0x182);
    pub const CONNECT_HOST: Status = Status(DNR | 0x184);
    pub const AUTH_REQUIRED: Status = Status(DNR | 0x191);
    /// Copy: more ranges or blocks than allowed.
    pub const SIZE_LIMIT: Status = Status(DNR | 0x183);
    pub const WRITE_FAULT: Status = Status(0x280);
    pub const READ_ERROR: Status = Status(0x281);
    pub const COMPARE_FAILURE: Status = Status(DNR | 0x285);

    /// What a failed operation of the volume becomes.
    pub fn of_errno(errno: i32, write: bool) -> Status {
        match errno {
            0 => Status::SUCCESS,
            libc::ENOSPC => Status::CAPACITY,
            libc::EINVAL => Status::LBA_RANGE,
            // A flush failed once: nothing is served until an operator restarts the daemon.
            libc::ESHUTDOWN => Status(DNR | 0x06),
            libc::EIO if write => Status::WRITE_FAULT,
            libc::EIO => Status::READ_ERROR,
            _ => Status::INTERNAL,
        }
    }

    /// What the end of a command means to the operation that it is part of.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        // Without Command Retry Delay and More.
        let (code, kind) = (self.0 & 0xff, self.0 >> 8 & 7);
        match (kind, code) {
            (0, 0) => Outcome::Done,
            (0, 0x20) => Outcome::Failed(libc::EROFS),
            (0, 0x80) => Outcome::Failed(libc::EINVAL),
            (0, 0x81) => Outcome::Failed(libc::ENOSPC),
            _ if self.0 & DNR != 0 => Outcome::Failed(libc::EIO),
            // Power loss, internal error, aborted, queue deleted, transport, not ready.
            (0, 0x05..=0x08 | 0x22 | 0x82) => Outcome::Retry,
            // Path errors: the host's own words for a reset, too.
            (3, _) => Outcome::Retry,
            _ => Outcome::Failed(libc::EIO),
        }
    }

    #[must_use]
    pub fn is_success(self) -> bool {
        self == Status::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_means() {
        let cases = [
            (0x0000, Outcome::Done),
            (0x0007, Outcome::Retry),
            (0x0006, Outcome::Retry),
            (0x4006, Outcome::Failed(libc::EIO)),
            (0x0371, Outcome::Retry),
            (0x0281, Outcome::Failed(libc::EIO)),
            (0x4080, Outcome::Failed(libc::EINVAL)),
            (0x0081, Outcome::Failed(libc::ENOSPC)),
            (0x4020, Outcome::Failed(libc::EROFS)),
            (0x4002, Outcome::Failed(libc::EIO)),
            // The bits between are hints.
            (0x2000, Outcome::Done),
        ];
        for (word, outcome) in cases {
            assert_eq!(Status(word).outcome(), outcome, "{word:#x}");
        }
        assert_eq!(Status(0x4281).to_string(), "type 2 code 0x81, do not retry");
    }
}
