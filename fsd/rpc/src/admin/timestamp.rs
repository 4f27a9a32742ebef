//! A moment that is compact on the wire and RFC 3339 for people.

use std::fmt;

use raftmeta_types::Time;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const DAY_SECS: i64 = 86400;

/// A point in time. Human-readable formats see `2026-03-01T12:00:00Z`, others a [`Time`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub Time);

impl From<Time> for Timestamp {
    fn from(time: Time) -> Timestamp {
        Timestamp(time)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with milliseconds unless they are zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.secs.div_euclid(DAY_SECS), self.0.secs.rem_euclid(DAY_SECS));
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        match self.0.nanos / 1_000_000 {
            0 => f.write_str("Z"),
            millis => write!(f, ".{millis:03}Z"),
        }
    }
}

/// Year, month and day of the proleptic Gregorian calendar, from days since 1970-01-01: counted in
/// eras of 400 years that begin on the first of March, so that the leap day is the last of a year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// Days since 1970-01-01: the inverse of [`civil`].
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march = (month + 9) % 12;
    let of_year = (153 * march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Reads what `Display` writes.
fn parse(text: &str) -> Option<Time> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let known = (0..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second)
        && (1..=9).contains(&fraction.len());
    if !known {
        return None;
    }
    let nanos = format!("{fraction:0<9}").parse().ok()?;
    let secs = days(year, month, day) * DAY_SECS + hour * 3600 + minute * 60 + second;
    Some(Time { secs, nanos })
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        if !deserializer.is_human_readable() {
            return Time::deserialize(deserializer).map(Timestamp);
        }
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Timestamp).ok_or_else(|| {
            de::Error::custom(format!("`{text}` is not a time such as 2026-03-01T12:00:00Z"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (1_772_366_400, 5_000_000, "2026-03-01T12:00:00.005Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (253_402_300_799, 999_000_000, "9999-12-31T23:59:59.999Z"),
        ];
        for (secs, nanos, text) in cases {
            let time = Time { secs, nanos };
            assert_eq!(Timestamp(time).to_string(), text);
            assert_eq!(parse(text), Some(time), "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_comes_back() {
        for day in (-146_097..146_097).step_by(17) {
            let (year, month, of_month) = civil(day);
            assert_eq!(days(year, month, of_month), day);
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "2026-03-01", "2026-13-01T00:00:00Z", "2026-03-01T24:00:00Z", "x"] {
            assert_eq!(parse(text), None, "{text}");
        }
        // A year that does not fit must not panic either.
        assert!(!Timestamp(Time { secs: i64::MAX, nanos: 0 }).to_string().is_empty());
        assert!(!Timestamp(Time { secs: i64::MIN, nanos: 0 }).to_string().is_empty());
    }
}
