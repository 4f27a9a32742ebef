//! Numbers as people read and write them. Machine formats carry plain integers instead.

use std::time::Duration;

/// `0 B`, `512 B`, `4.0 KiB`, `8.1 TiB`: one decimal below 10, none above 99.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 99.95 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// Thousands apart: `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `2.8x`; `-` when nothing is divided by.
pub fn ratio(of: u64, by: u64) -> String {
    if by == 0 { "-".into() } else { format!("{:.2}x", of as f64 / by as f64) }
}

/// Rounded down; 0 of 0 is 0.
pub fn percent(part: u64, whole: u64) -> u64 {
    let percent = (u128::from(part) * 100).checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// `250ms`, `42s`, `6m10s`, `3h05m`, `12d4h`.
pub fn duration(of: Duration) -> String {
    let secs = of.as_secs();
    let (days, hours, minutes) = (secs / 86400, secs / 3600 % 24, secs / 60 % 60);
    match secs {
        0 => format!("{}ms", of.as_millis()),
        1..60 => format!("{secs}s"),
        60..3600 => format!("{minutes}m{:02}s", secs % 60),
        3600..86400 => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// Reads `90s`, `10m`, `1h`, `7d`, `500ms`, or seconds without a unit; never zero.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("`{text}` is not a duration: a number with ms, s, m, h or d");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(millis) {
        Some(0) => Err("a duration of zero".into()),
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err(format!("`{text}` is longer than time")),
    }
}

/// Reads `4k`, `10G`, `512MiB`, or bytes without a unit; powers of 1024, never zero.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong =
        || format!("`{text}` is not a size: a number with K, M, G or T, which are powers of 1024");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) => Err("a size of zero".into()),
        Some(bytes) => Ok(bytes),
        None => Err(format!("`{text}` is larger than any device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (150 << 20, "150 MiB"),
            (8_905_000_000_000, "8.1 TiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn counts_ratios_and_percents() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(ratio(28, 10), "2.80x");
        assert_eq!(ratio(1, 0), "-");
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(1, 0), 0);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("4k", 4096), ("10G", 10 << 30), ("512MiB", 512 << 20), ("1", 1), ("2T", 2 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "0", "0G", "1.5G", "10GB", "-1", "99999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_written_short_and_read_back() {
        let cases = [
            (Duration::from_millis(250), "250ms"),
            (Duration::from_secs(42), "42s"),
            (Duration::from_secs(370), "6m10s"),
            (Duration::from_secs(3 * 3600 + 300), "3h05m"),
            (Duration::from_secs(12 * 86400 + 4 * 3600), "12d4h"),
        ];
        for (of, text) in cases {
            assert_eq!(duration(of), text);
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "h", "0s", "1y", "-1s", "99999999999999999999s", "9999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
