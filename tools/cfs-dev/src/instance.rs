//! Instance types, as a cloud names them. Here they only say how large a node's pool is: a sparse file, of which what
//! is written takes space.

use crate::error::{Error, Kind, Result};

/// What is taken when nobody says.
pub const DEFAULT: &str = "i4i.large";

/// Pool of a node in bytes, by the size in its type's name.
pub fn pool_bytes(instance_type: &str) -> Result<u64> {
    let wrong = |why: &str| {
        let what = format!("`{instance_type}` is no instance type: {why}");
        Error::new(Kind::Usage, what).next("say one as `i4i.2xlarge`")
    };
    let (family, size) = instance_type.split_once('.').ok_or_else(|| wrong("no FAMILY.SIZE"))?;
    let named = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !named(family) || !family.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(wrong("the family before the dot is not one"));
    }
    let gib = match size {
        "nano" | "micro" | "small" | "medium" | "large" | "xlarge" => 1,
        "metal" => 16,
        _ => match size.strip_suffix("xlarge").map(str::parse::<u64>) {
            Some(Ok(times @ 2..=64)) => times.min(16),
            _ => return Err(wrong("the size after the dot is not one")),
        },
    };
    Ok(gib << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_says_how_large() {
        assert_eq!(pool_bytes(DEFAULT).unwrap(), 1 << 30);
        assert_eq!(pool_bytes("t3.medium").unwrap(), 1 << 30);
        assert_eq!(pool_bytes("i4i.2xlarge").unwrap(), 2 << 30);
        assert_eq!(pool_bytes("i4i.metal").unwrap(), 16 << 30);
        for wrong in
            ["", "i4i", "i4i.", ".large", "i4i.huge", "i4i.0xlarge", "i4i.-1xlarge", "I.large"]
        {
            assert_eq!(pool_bytes(wrong).unwrap_err().kind, Kind::Usage, "{wrong}");
        }
    }
}
