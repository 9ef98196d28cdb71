//! Looking into the text of one value.

use std::borrow::Cow;

use super::{Key, Scanner};

/// What the inside of a string says. Halves of a surrogate pair, which Python lets stand alone, and
/// bytes that are no UTF-8 become the replacement character.
pub(super) fn unescaped(text: &[u8]) -> Cow<'_, str> {
    if !text.contains(&b'\\') {
        return String::from_utf8_lossy(text);
    }
    let text = String::from_utf8_lossy(text);
    let mut said = String::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some((plain, escape)) = rest.split_once('\\') {
        said.push_str(plain);
        let (character, length) = escaped(escape);
        said.push(character);
        rest = escape.get(length..).unwrap_or_default();
    }
    said.push_str(rest);
    Cow::Owned(said)
}

/// The character that an escape stands for, and how many bytes it takes behind the backslash.
fn escaped(escape: &str) -> (char, usize) {
    let code = |text: &str| {
        let digits = text.strip_prefix('u').and_then(|text| text.get(..4));
        digits.and_then(|digits| u32::from_str_radix(digits, 16).ok())
    };
    let Some(high) = code(escape) else {
        let character = match escape.chars().next() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some(other) => other,
            None => char::REPLACEMENT_CHARACTER,
        };
        return (character, escape.chars().next().map_or(0, char::len_utf8));
    };
    let low = escape.get(5..).and_then(|rest| rest.strip_prefix('\\')).and_then(code);
    match (high, low) {
        (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
            let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 11)
        }
        _ => (char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), 5),
    }
}

/// The text of one value, to look into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json<'a>(pub &'a [u8]);

impl<'a> Json<'a> {
    /// The one value of a text; `None` when it is no JSON.
    pub fn of(text: &'a [u8]) -> Option<Self> {
        let mut scanner = Scanner::new(text);
        let span = scanner.value(&mut ()).ok()?;
        scanner.end().ok()?;
        Some(Self(&text[span]))
    }

    /// The value of a key: the last one, as in Python.
    pub fn get(self, name: &str) -> Option<Self> {
        let mut found = None;
        self.each_member(|key, value| {
            if key.is(name) {
                found = Some(value);
            }
        });
        found
    }

    /// Goes through the members, if it is an object.
    pub fn each_member(self, mut each: impl FnMut(Key<'a>, Self)) {
        let text = self.0;
        // What was walked over once ends early here only when it is no object.
        let _ = Scanner::new(text).members(|scanner, key| {
            let span = scanner.value(&mut ())?;
            each(key, Self(&text[span]));
            Ok(())
        });
    }

    /// Goes through the elements, if it is an array.
    pub fn each_item(self, mut each: impl FnMut(Self)) {
        let text = self.0;
        let _ = Scanner::new(text).items(|scanner| {
            let span = scanner.value(&mut ())?;
            each(Self(&text[span]));
            Ok(())
        });
    }

    /// The element at a place, if it is an array.
    pub fn item(self, place: usize) -> Option<Self> {
        let (mut at, mut found) = (0, None);
        self.each_item(|item| {
            found = found.or((at == place).then_some(item));
            at += 1;
        });
        found
    }

    /// What it says, if it is a string.
    pub fn text(self) -> Option<Cow<'a, str>> {
        match self.0 {
            [b'"', inside @ .., b'"'] => Some(unescaped(inside)),
            _ => None,
        }
    }

    /// Its value, if it begins like a number; infinite where it is too large.
    pub fn number(self) -> Option<f64> {
        let starts = self.0.first().is_some_and(|b| b.is_ascii_digit() || *b == b'-');
        std::str::from_utf8(self.0).ok().filter(|_| starts)?.parse().ok()
    }

    /// Whether it is an object.
    pub fn is_object(self) -> bool {
        self.0.first() == Some(&b'{')
    }

    /// Whether it is an array.
    pub fn is_array(self) -> bool {
        self.0.first() == Some(&b'[')
    }

    /// Whether it is null.
    pub fn is_null(self) -> bool {
        self.0 == b"null"
    }
}
