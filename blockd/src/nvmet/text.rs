//! NVMe qualified names and fixed-width text fields.

/// Longest name, without the terminating zero (NVMe base 2.0 §4.7).
pub const NQN_BYTES_MAX: usize = 223;
/// The well-known name of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// What the names of exports without one of their own start with.
pub const NQN_PREFIX: &str = "nqn.2025-01.io.github.claudefs:";

/// A name out of its field of 256 bytes: UTF-8, ended by a zero.
pub fn nqn_of(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|b| *b == 0)?;
    let name = std::str::from_utf8(&field[..end]).ok()?;
    is_nqn(name).then_some(name)
}

/// Whether a name may be used: `nqn.` and no control characters.
pub fn is_nqn(name: &str) -> bool {
    name.len() > 4
        && name.len() <= NQN_BYTES_MAX
        && name.starts_with("nqn.")
        && !name.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// Text in a field that is filled up with spaces.
pub fn ascii(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let n = field.len().min(text.len());
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}

/// Text in a field that is filled up with zeros; cut to leave one.
pub fn zero_ended(field: &mut [u8], text: &str) {
    field.fill(0);
    let n = text.len().min(field.len() - 1);
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}
