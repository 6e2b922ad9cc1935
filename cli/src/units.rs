//! Sizes and times as people write them. A bare number is refused: nobody knows whether it means bytes or MiB.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A size in bytes, written `64MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A time span, written `30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

/// What is wrong with a size or a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No unit.
    #[error("{0:?} has no unit; write it with one, such as {1}")]
    NoUnit(String, &'static str),
    /// Not a number with a unit.
    #[error("{0:?} is not {1}")]
    Malformed(String, &'static str),
    /// More than the machine can count.
    #[error("{0:?} is too large")]
    TooLarge(String),
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];
const SIZE_EXAMPLE: &str = "64MiB";
const SIZE_KIND: &str = "a size such as 64MiB (units B, KiB, MiB, GiB, TiB, kB, MB, GB, TB)";

const TIME_UNITS_NS: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
const TIME_EXAMPLE: &str = "30s";
const TIME_KIND: &str = "a time such as 30s (units us, ms, s, m, h, d)";

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &SIZE_UNITS, SIZE_EXAMPLE, SIZE_KIND).map(ByteSize)
    }
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, &TIME_UNITS_NS, TIME_EXAMPLE, TIME_KIND).map(|ns| TimeSpan(Duration::from_nanos(ns)))
    }
}

fn parse(text: &str, units: &[(&str, u64)], example: &'static str, kind: &'static str) -> Result<u64, UnitError> {
    let text = text.trim();
    let malformed = || UnitError::Malformed(text.into(), kind);
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if number.is_empty() {
        return Err(malformed());
    }
    if unit.is_empty() {
        return match number {
            "0" => Ok(0),
            _ => Err(UnitError::NoUnit(text.into(), example)),
        };
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*factor).ok_or_else(|| UnitError::TooLarge(text.into()));
    }
    let value = number.parse::<f64>().map_err(|_| malformed())? * *factor as f64;
    if value >= u64::MAX as f64 {
        return Err(UnitError::TooLarge(text.into()));
    }
    Ok(value.round() as u64)
}

impl fmt::Display for ByteSize {
    /// Exact if a binary unit fits, else with one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) =
            SIZE_UNITS[..5].iter().rev().find(|(_, factor)| self.0 >= *factor).unwrap_or(&SIZE_UNITS[0]);
        if self.0.is_multiple_of(*factor) {
            write!(f, "{}{unit}", self.0 / factor)
        } else {
            write!(f, "{:.1}{unit}", self.0 as f64 / *factor as f64)
        }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if ns == 0 {
            return f.write_str("0s");
        }
        let (unit, factor) = TIME_UNITS_NS.iter().rev().find(|(_, factor)| ns >= *factor).unwrap_or(&TIME_UNITS_NS[0]);
        if ns.is_multiple_of(*factor) {
            write!(f, "{}{unit}", ns / factor)
        } else {
            write!(f, "{:.1}{unit}", ns as f64 / *factor as f64)
        }
    }
}

struct FromText<T>(std::marker::PhantomData<T>, &'static str, &'static str);

impl<T: FromStr<Err = UnitError>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.2)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        Err(E::custom(UnitError::NoUnit(number.to_string(), self.1)))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<T, E> {
        Err(E::custom(UnitError::NoUnit(number.to_string(), self.1)))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = FromText::<ByteSize>(std::marker::PhantomData, SIZE_EXAMPLE, SIZE_KIND);
        deserializer.deserialize_any(visitor).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = FromText::<TimeSpan>(std::marker::PhantomData, TIME_EXAMPLE, TIME_KIND);
        deserializer.deserialize_any(visitor).map_err(D::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn size(text: &str) -> Result<u64, UnitError> {
        text.parse::<ByteSize>().map(|size| size.0)
    }

    fn span(text: &str) -> Result<Duration, UnitError> {
        text.parse::<TimeSpan>().map(|span| span.0)
    }

    #[test]
    fn sizes_with_units_are_read() {
        assert_eq!(size("64MiB").unwrap(), 64 << 20);
        assert_eq!(size("1.5 GiB").unwrap(), 3 << 29);
        assert_eq!(size("4kB").unwrap(), 4000);
        assert_eq!(size("7B").unwrap(), 7);
        assert_eq!(size("0").unwrap(), 0);
    }

    #[test]
    fn sizes_without_or_with_wrong_unit_are_refused() {
        assert!(matches!(size("64"), Err(UnitError::NoUnit(..))));
        for text in ["64 mib", "MiB", "", "-1MiB", "1..2MiB", "1MiB 2", "0x10MiB"] {
            assert!(matches!(size(text), Err(UnitError::Malformed(..))), "{text}");
        }
        assert!(matches!(size("99999999TiB"), Err(UnitError::TooLarge(_))));
        assert!(matches!(size("99999999.5TiB"), Err(UnitError::TooLarge(_))));
    }

    #[test]
    fn times_with_units_are_read() {
        assert_eq!(span("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(span("80ms").unwrap(), Duration::from_millis(80));
        assert_eq!(span("0.2ms").unwrap(), Duration::from_micros(200));
        assert_eq!(span("2h").unwrap(), Duration::from_secs(7200));
        assert!(matches!(span("30"), Err(UnitError::NoUnit(..))));
        assert!(matches!(span("30 sec"), Err(UnitError::Malformed(..))));
    }

    #[test]
    fn display_reads_back() {
        for text in ["64MiB", "1GiB", "4KiB", "17B", "0B"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["30s", "80ms", "200us", "2h", "1d"] {
            assert_eq!(text.parse::<TimeSpan>().unwrap().to_string(), text);
        }
        assert_eq!(ByteSize(1_600_000).to_string(), "1.5MiB");
    }
}
