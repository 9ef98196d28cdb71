//! Finding one's way in JSON text without building what it says.
//!
//! A [`Scanner`] walks over text and gives spans: places in the text where a value stands. It takes
//! what Python's `json.loads` takes, bare `NaN` and infinities included, and refuses what that
//! refuses, so that both agree on what a body is. It is iterative, allocates nothing and goes
//! [`MAX_NESTING`] levels deep at most (Python gives up at about as many). Bytes of any kind may be
//! put in; that strings are UTF-8 is not looked at.

mod json;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

pub use json::Json;
use json::unescaped;

/// A place in a text.
pub type Span = Range<usize>;

/// Levels of brackets in a value at most.
pub const MAX_NESTING: usize = 1024;
/// Python refuses to read whole numbers of more digits than this.
const MAX_DIGITS: usize = 4300;

/// Why a text is not walked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is no JSON.
    #[error("it is no JSON")]
    Syntax,
    /// It nests too deep.
    #[error("it nests too deep")]
    Nesting,
}

/// Told of everything in a value that a scanner walks over.
pub trait Watch {
    /// An object (or else an array) begins here.
    fn open(&mut self, _at: usize, _object: bool) {}
    /// The innermost one ends before this place.
    fn close(&mut self, _end: usize) {}
    /// A key of the innermost object, its quotes left out.
    fn key(&mut self, _span: Span) {}
    /// A string with its quotes, a number or a word.
    fn scalar(&mut self, _span: Span) {}
}

/// Nobody watches.
impl Watch for () {}

/// A key of an object.
#[derive(Debug, Clone, Copy)]
pub struct Key<'a> {
    /// Where its opening quote stands.
    pub at: usize,
    text: &'a [u8],
}

impl<'a> Key<'a> {
    /// Whether it is this name, however it is written.
    pub fn is(self, name: &str) -> bool {
        if !self.text.contains(&b'\\') {
            return self.text == name.as_bytes();
        }
        // Each byte of a name takes six at most when escaped.
        self.text.len() <= 6 * name.len() && unescaped(self.text) == name
    }

    /// What it says.
    pub fn text(self) -> Cow<'a, str> {
        unescaped(self.text)
    }
}

/// Walks over text.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// Levels in a value at most.
    levels: usize,
}

impl<'a> Scanner<'a> {
    /// One that stands before the first byte.
    pub fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, levels: MAX_NESTING }
    }

    /// One that goes so many levels deep at most, of [`MAX_NESTING`].
    pub fn shallow(text: &'a [u8], levels: usize) -> Self {
        Self { levels, ..Self::new(text) }
    }

    /// The next byte that is no white space.
    pub fn peek(&mut self) -> Option<u8> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let skipped = rest.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r'));
        self.at += skipped.unwrap_or(rest.len());
        self.text.get(self.at).copied()
    }

    /// Walks over a value.
    pub fn value(&mut self, watch: &mut impl Watch) -> Result<Span, Malformed> {
        self.peek();
        let start = self.at;
        let mut open = Open::default();
        loop {
            if self.begin(&mut open, watch)? {
                continue;
            }
            if self.after(&mut open, watch)? {
                return Ok(start..self.at);
            }
        }
    }

    /// Walks over an object; `each` is to walk over the value of each key.
    pub fn members(
        &mut self,
        mut each: impl FnMut(&mut Self, Key<'a>) -> Result<(), Malformed>,
    ) -> Result<Span, Malformed> {
        let start = self.expect(b'{')?;
        if self.eat(b'}') {
            return Ok(start..self.at);
        }
        loop {
            let key = self.key()?;
            each(self, key)?;
            if self.eat(b'}') {
                return Ok(start..self.at);
            }
            self.expect(b',')?;
        }
    }

    /// Walks over an array; `each` is to walk over each element.
    pub fn items(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<Span, Malformed> {
        let start = self.expect(b'[')?;
        if self.eat(b']') {
            return Ok(start..self.at);
        }
        loop {
            each(self)?;
            if self.eat(b']') {
                return Ok(start..self.at);
            }
            self.expect(b',')?;
        }
    }

    /// Makes sure that nothing follows.
    pub fn end(&mut self) -> Result<(), Malformed> {
        if self.peek().is_none() { Ok(()) } else { Err(Malformed::Syntax) }
    }

    /// The beginning of a value: `true` when it has opened an object or array with something in it.
    fn begin(&mut self, open: &mut Open, watch: &mut impl Watch) -> Result<bool, Malformed> {
        let object = match self.peek() {
            Some(b'{') => true,
            Some(b'[') => false,
            _ => {
                let span = self.scalar()?;
                watch.scalar(span);
                return Ok(false);
            }
        };
        watch.open(self.at, object);
        self.at += 1;
        if self.eat(if object { b'}' } else { b']' }) {
            watch.close(self.at);
            return Ok(false);
        }
        if open.depth >= self.levels {
            return Err(Malformed::Nesting);
        }
        open.push(object)?;
        if object {
            self.watched_key(watch)?;
        }
        Ok(true)
    }

    /// What follows a value: `true` when all that was open is closed.
    fn after(&mut self, open: &mut Open, watch: &mut impl Watch) -> Result<bool, Malformed> {
        while let Some(object) = open.top() {
            if self.eat(b',') {
                if object {
                    self.watched_key(watch)?;
                }
                return Ok(false);
            }
            self.expect(if object { b'}' } else { b']' })?;
            open.pop();
            watch.close(self.at);
        }
        Ok(true)
    }

    fn watched_key(&mut self, watch: &mut impl Watch) -> Result<(), Malformed> {
        let key = self.key()?;
        watch.key(key.at + 1..key.at + 1 + key.text.len());
        Ok(())
    }

    fn key(&mut self) -> Result<Key<'a>, Malformed> {
        if self.peek() != Some(b'"') {
            return Err(Malformed::Syntax);
        }
        let span = self.string()?;
        self.expect(b':')?;
        Ok(Key { at: span.start, text: &self.text[span.start + 1..span.end - 1] })
    }

    fn expect(&mut self, byte: u8) -> Result<usize, Malformed> {
        if self.eat(byte) { Ok(self.at - 1) } else { Err(Malformed::Syntax) }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn scalar(&mut self) -> Result<Span, Malformed> {
        let start = self.at;
        let rest = &self.text[start..];
        if rest.first() == Some(&b'"') {
            return self.string();
        }
        let words: [&[u8]; 6] = [b"true", b"false", b"null", b"NaN", b"Infinity", b"-Infinity"];
        let word = words.iter().find(|word| rest.starts_with(word)).map(|word| word.len());
        let length = word.or_else(|| number_length(rest)).ok_or(Malformed::Syntax)?;
        self.at += length;
        Ok(start..self.at)
    }

    /// A string, from its opening quote on.
    fn string(&mut self) -> Result<Span, Malformed> {
        let start = self.at;
        self.at += 1;
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let special = |byte: &u8| matches!(byte, b'"' | b'\\' | ..0x20);
            let length = rest.iter().position(special).ok_or(Malformed::Syntax)?;
            self.at += length + 1;
            match rest[length] {
                b'"' => return Ok(start..self.at),
                b'\\' => self.at += escape_length(&rest[length + 1..])?,
                _ => return Err(Malformed::Syntax),
            }
        }
    }
}

/// Bytes of an escape behind its backslash.
fn escape_length(rest: &[u8]) -> Result<usize, Malformed> {
    match rest {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => Ok(1),
        [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|h| h.is_ascii_hexdigit()) => Ok(5),
        _ => Err(Malformed::Syntax),
    }
}

/// Bytes of the number at the beginning of a text.
fn number_length(text: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = text.get(from..).unwrap_or_default();
        rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len())
    };
    let sign = usize::from(text.first() == Some(&b'-'));
    let whole = digits(sign);
    if whole == 0 || (whole > 1 && text.get(sign) == Some(&b'0')) {
        return None;
    }
    let mut end = sign + whole;
    if text.get(end) == Some(&b'.') {
        let fraction = digits(end + 1);
        end += if fraction > 0 { 1 + fraction } else { return None };
    }
    if matches!(text.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        let power = digits(end + 1 + sign);
        end += if power > 0 { 1 + sign + power } else { return None };
    }
    (end > sign + whole || whole <= MAX_DIGITS).then_some(end)
}

/// The brackets that are open, one bit each: set for objects.
#[derive(Debug, Default)]
struct Open {
    depth: usize,
    bits: [u64; MAX_NESTING / 64],
}

impl Open {
    fn push(&mut self, object: bool) -> Result<(), Malformed> {
        let word = self.bits.get_mut(self.depth / 64).ok_or(Malformed::Nesting)?;
        let bit = 1 << (self.depth % 64);
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn top(&self) -> Option<bool> {
        let at = self.depth.checked_sub(1)?;
        Some(self.bits[at / 64] & (1 << (at % 64)) != 0)
    }
}
