//! A prompt's number: its place in the queue, as ComfyUI counts, reads and writes it.
//!
//! The lowest runs first. A client may give one, which is a float from then on; else it comes from
//! a [`Counter`], negated for `front`, and is written as a whole number.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::scan::Json;
use crate::pool::job::Job;
use crate::rejection::{Kind, Rejection};

/// The number of a prompt that is only to be judged: no other comes after it. It survives Python's
/// float and back.
pub const LAST: f64 = f64::MAX;
/// The largest number that a job has: just before [`LAST`].
const LARGEST: f64 = f64::MAX.next_down();

/// A prompt's number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// From the counter.
    Counted(i64),
    /// From the client. Finite.
    Given(f64),
}

impl Number {
    /// The place in the queue.
    pub fn value(self) -> f64 {
        match self {
            Self::Counted(number) => number as f64,
            Self::Given(number) => number,
        }
    }

    /// The number of a job as its client is to see it.
    pub fn of(job: &Job) -> Self {
        let given =
            super::layout::Layout::of(&job.body).is_ok_and(|layout| layout.number.is_some());
        if given { Self::Given(job.number) } else { Self::Counted(job.number as i64) }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted(number) => number.fmt(f),
            Self::Given(number) => f.write_str(&python_float(*number)),
        }
    }
}

/// Gives numbers to prompts that bring none; those that are refused later count too.
#[derive(Debug, Default)]
pub struct Counter(AtomicI64);

impl Counter {
    /// One that goes on with this number.
    pub fn starting_at(number: i64) -> Self {
        Self(AtomicI64::new(number))
    }

    /// The number that the next prompt gets.
    pub fn at(&self) -> i64 {
        self.0.load(Relaxed)
    }

    /// The next number, before all others for the `front`.
    pub fn next(&self, front: bool) -> Number {
        let number = self.0.fetch_add(1, Relaxed);
        Number::Counted(if front { -number } else { number })
    }
}

/// Reads the `number` of a body as `float()` does.
pub(super) fn given(json: Json<'_>) -> Result<f64, Rejection> {
    let number = match json.0 {
        b"true" => Some(1.0),
        b"false" => Some(0.0),
        [b'"', ..] => json.text().and_then(|text| float(&text)),
        _ => json.number(),
    };
    let finite = number.filter(|number| number.is_finite()).ok_or_else(|| {
        let written: String = String::from_utf8_lossy(json.0).chars().take(40).collect();
        Rejection::new(Kind::InvalidValue, format!("number is no finite number: {written}"))
            .cure("the lowest number runs first; leave it out to queue in order of arrival")
    })?;
    Ok(finite.clamp(-LARGEST, LARGEST))
}

/// `float(text)`: underscores may stand between digits.
fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let misplaced = |(at, byte): (usize, &u8)| {
        *byte == b'_' && !(digit(at.checked_sub(1)) && digit(Some(at + 1)))
    };
    if bytes.iter().enumerate().any(misplaced) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `repr(number)` of a finite float.
pub(super) fn python_float(number: f64) -> String {
    let shortest = format!("{number:e}");
    let (digits, power) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let power: i32 = power.parse().unwrap_or_default();
    if (-4..16).contains(&power) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", power.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn floats_are_written_as_python_does() {
        for (number, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (-5.5, "-5.5"),
            (12.0, "12.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (123_456_789.125, "123456789.125"),
            (LAST, "1.7976931348623157e+308"),
        ] {
            assert_eq!(python_float(number), text);
        }
    }

    #[test]
    fn the_counter_counts_and_front_is_negated() {
        let counter = Counter::starting_at(12);
        let numbers = [false, true, false].map(|front| counter.next(front).to_string());
        assert_eq!(numbers, ["12", "-13", "14"]);
        assert_eq!(Counter::default().next(true).to_string(), "0");
    }

    #[test]
    fn a_number_is_read_as_float_does() {
        let read = |text: &str| given(Json(text.as_bytes())).ok();
        for (text, number) in [
            ("3", 3.0),
            ("-2.50", -2.5),
            ("true", 1.0),
            ("\" 1_0.5\\n\"", 10.5),
            ("1e400", f64::NAN),
            ("\"+1.\"", 1.0),
        ] {
            assert_eq!(read(text), Some(number).filter(|n| n.is_finite()), "{text}");
        }
        for text in [
            "null",
            "NaN",
            "-Infinity",
            "Infinity",
            "\"nan\"",
            "\"x\"",
            "\"\"",
            "[]",
            "{}",
            "\"_1\"",
            "\"1__0\"",
        ] {
            let refused = given(Json(text.as_bytes())).unwrap_err();
            assert_eq!(refused.kind, Kind::InvalidValue, "{text}");
            assert!(refused.message.starts_with("number is no finite number: "), "{text}");
        }
    }

    #[test]
    fn no_number_comes_after_the_last() {
        assert!(given(Json(b"1.7976931348623157e308")).unwrap() < LAST);
        assert_eq!(python_float(LAST).parse(), Ok(LAST));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(number in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
            prop_assert_eq!(python_float(number).parse(), Ok(number));
        }
    }
}
