//! Durations and sizes as people write them: `5.0`, `500ms`, `1h`; `1048576`, `64KiB`, `100MB`.
//!
//! Every function is total: what is no quantity, or too large for one, is `None`.

use std::time::Duration;

/// Milliseconds per unit, largest first.
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Bytes per unit, largest first; the binary ones are used for output.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

/// Reads a duration: a number of seconds, or a number with `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text);
    let unit = if unit.is_empty() { "s" } else { unit };
    let (_, millis) = DURATIONS.into_iter().find(|(name, _)| *name == unit)?;
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(millis).map(Duration::from_millis),
        Err(_) => seconds(number.parse::<f64>().ok()? * (millis as f64 / 1000.0)),
    }
}

/// A duration from seconds; `None` when negative, not a number or too large.
pub(super) fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// Reads a size: a number of bytes, or a number with `B`, `KB`, `KiB`, … `TiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    let unit = if unit.is_empty() { "B" } else { unit };
    let (_, bytes) = SIZES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(bytes);
    }
    let exact = number.parse::<f64>().ok()? * bytes as f64;
    (exact < u64::MAX as f64).then_some(exact as u64)
}

/// Number and unit; no sign and no exponent, so that nothing but plain numbers gets through.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// Writes a duration so that [`parse_duration`] reads it back (to the millisecond).
pub fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, per) =
        DURATIONS.into_iter().find(|(_, per)| millis.is_multiple_of(*per)).unwrap_or(("ms", 1));
    format!("{}{unit}", millis / per)
}

/// Writes a size so that [`parse_size`] reads it back.
pub fn show_size(bytes: u64) -> String {
    SIZES
        .into_iter()
        .filter(|(unit, _)| unit.ends_with("iB"))
        .find(|(_, per)| bytes > 0 && bytes.is_multiple_of(*per))
        .map_or_else(|| bytes.to_string(), |(unit, per)| format!("{}{unit}", bytes / per))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_take_seconds_and_units() {
        for (text, millis) in [
            ("5.0", 5000),
            ("0.25", 250),
            ("7", 7000),
            ("500ms", 500),
            ("1.5 s", 1500),
            ("1m", 60_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "1w", "5 5", "1e9", "NaN", "inf", "1..2", ".", "9e99d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert_eq!(parse_duration("18446744073709551615d"), None);
        assert_eq!(parse_duration("99999999999999999999999"), None);
    }

    #[test]
    fn sizes_take_bytes_and_units() {
        for (text, bytes) in [
            ("12", 12),
            ("64KiB", 65_536),
            ("100MB", 100_000_000),
            ("1.5GiB", 1_610_612_736),
            ("1 tb", 1_000_000_000_000),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "MB", "-1", "1XB", "20000000TiB", "99999999999.9TiB", "1e3"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_round_trip(millis in 0..=u64::MAX / 2) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }

        #[test]
        fn sizes_round_trip(bytes: u64) {
            prop_assert_eq!(parse_size(&show_size(bytes)), Some(bytes));
        }

        #[test]
        fn quantities_never_panic(text in "\\PC{0,40}") {
            let _ = (parse_duration(&text), parse_size(&text));
        }
    }
}
