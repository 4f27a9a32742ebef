//! The ioctls of an NVMe generic device, and the structure that they share with io_uring (linux/nvme_ioctl.h).
//!
//! ```text
//! 0 opcode · 1 flags · 2..4 0 · 4..8 nsid · 8..16 dwords 2, 3 · 16..24 metadata · 24..32 address
//! 32..36 metadata length · 36..40 data length · 40..64 dwords 10 to 15 · 64..68 timeout ms · 68..72 result
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::nvme::bytes::{put32, put64};
use crate::nvme::command::Command;
use crate::nvme::identify::SMART_BYTES;
use crate::nvme::opcode::LOG_SMART;
use crate::nvme::status::Status;

/// `NVME_URING_CMD_IO`, as the structure above in the big submission entry.
pub const URING_IO: u32 = 0xc048_4e80;
const NVME_ID: libc::Ioctl = 0x4e40;
const NVME_ADMIN: libc::Ioctl = 0xc048_4e41u32 as libc::Ioctl;
const NVME_RESET: libc::Ioctl = 0x4e44;
const COMMAND_BYTES: usize = 72;
/// A device that does not answer an admin command by then counts as not answering.
const ADMIN_TIME: Duration = Duration::from_secs(5);

/// The structure, for `len` bytes of data at `address`.
pub fn encode(command: &Command, address: u64, len: u32, timeout_ms: u32) -> [u8; 80] {
    let mut b = [0; 80];
    b[0] = command.opcode;
    put32(&mut b, 4, command.nsid);
    put64(&mut b, 24, address);
    put32(&mut b, 36, len);
    for (i, dword) in command.dwords.iter().enumerate() {
        put32(&mut b, 40 + i * 4, *dword);
    }
    put32(&mut b, 64, timeout_ms);
    b
}

/// The namespace that the device is.
pub fn namespace_id(file: &File) -> io::Result<u32> {
    // SAFETY: this ioctl takes no argument and returns a number.
    let nsid = unsafe { libc::ioctl(file.as_raw_fd(), NVME_ID) };
    match u32::try_from(nsid) {
        Ok(nsid) if nsid > 0 => Ok(nsid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Runs an admin command that fills `data`.
pub fn admin(file: &File, command: &Command, data: &mut [u8]) -> io::Result<()> {
    admin_within(file, command, data, ADMIN_TIME)
}

/// Runs an admin command that fills `data`, if there is some, and may take as long as that.
pub fn admin_within(
    file: &File,
    command: &Command,
    data: &mut [u8],
    within: Duration,
) -> io::Result<()> {
    let address = if data.is_empty() { 0 } else { data.as_mut_ptr() as u64 };
    let timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
    let whole = encode(command, address, data.len() as u32, timeout_ms);
    // Aligned as the kernel's structure is.
    let mut words = [0_u64; COMMAND_BYTES / 8];
    for (word, bytes) in words.iter_mut().zip(whole.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("eight"));
    }
    // SAFETY: the words are a whole `nvme_passthru_cmd` whose address and length are those of `data`, exclusively
    // borrowed for the call; the kernel writes at most that many bytes there, and the result into the words.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), NVME_ADMIN, words.as_mut_ptr()) };
    match result {
        0 => Ok(()),
        ..0 => Err(io::Error::last_os_error()),
        status => Err(io::Error::other(format!("the device says: {}", Status(status as u16)))),
    }
}

/// The SMART log page.
pub fn smart(file: &File) -> io::Result<[u8; SMART_BYTES]> {
    let mut page = [0; SMART_BYTES];
    admin(file, &Command::log_page(LOG_SMART, SMART_BYTES as u32), &mut page)?;
    Ok(page)
}

/// Has the kernel reset the controller.
pub fn reset(controller: &Path) -> io::Result<()> {
    let file = File::open(controller)?;
    // SAFETY: this ioctl takes no argument.
    match unsafe { libc::ioctl(file.as_raw_fd(), NVME_RESET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure() {
        let mut command = Command::identify(1, 0, 7);
        command.dwords[5] = 0x1122_3344;
        let b = encode(&command, 0x1_0000_0002, 4096, 30);
        assert_eq!((b[0], b[4], b[24], b[28]), (0x06, 7, 2, 1));
        assert_eq!(
            (b[36..40].to_vec(), b[40], b[60..64].to_vec(), b[64]),
            (vec![0, 16, 0, 0], 1, vec![0x44, 0x33, 0x22, 0x11], 30)
        );
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::tempfile().unwrap();
        assert!(namespace_id(&file).is_err());
        assert!(smart(&file).is_err());
    }
}
