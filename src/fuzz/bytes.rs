//! Taking an input apart: a few bytes that choose, then text that stays readable in the corpus.

use serde_json::Value;

use crate::pool::submission::scan::{Malformed, Scanner};

/// Takes bytes off the front of an input; what is missing counts as zero.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Up to 65,535 bytes, their number first.
    pub(crate) fn counted(&mut self) -> &'a [u8] {
        let length = u16::from_be_bytes([self.byte(), self.byte()]);
        self.take(length.into())
    }

    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// What stands before the next line feed, or all that is left.
    pub(crate) fn line(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == b'\n').unwrap_or(self.0.len());
        let line = self.take(end);
        self.take(1);
        line
    }
}

/// A strict JSON document, if it is one.
pub(crate) fn strict(text: &[u8]) -> Option<Value> {
    serde_json::from_slice(text).ok()
}

/// Whether a text is JSON as Python reads it. What nests too deep for us may be.
pub(crate) fn is_json(text: &[u8]) -> bool {
    let mut scanner = Scanner::new(text);
    let walked = scanner.value(&mut ()).and_then(|_| scanner.end());
    walked != Err(Malformed::Syntax) && std::str::from_utf8(text).is_ok()
}

/// Whether two documents say the same; numbers were read and written once more in between.
pub(crate) fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(key, value)| other.get(key).is_some_and(|other| alike(value, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (Value::Number(one), Value::Number(other)) => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else {
                return one == other;
            };
            (one - other).abs() <= f64::EPSILON * 4.0 * one.abs().max(other.abs())
        }
        _ => one == other,
    }
}
