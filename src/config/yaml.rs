//! Bounded YAML: from a file or a text to a tree of values.
//!
//! Three bounds keep any file harmless: its bytes, its depth (128 by the parser, and our own for
//! brackets, over which libyaml takes quadratic time), and its values after aliases are expanded.

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

/// Bytes of a file at most.
const MAX_BYTES: u64 = 1 << 20;
/// Values at most, aliases expanded.
const MAX_VALUES: usize = 100_000;
/// Opened brackets that are not closed, at most.
const MAX_BRACKETS: usize = 512;

/// Why a text is no configuration: where, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) line: Option<usize>,
    pub(super) cure: String,
}

/// Reads a file of at most [`MAX_BYTES`] of UTF-8.
pub(super) fn read(path: &Path) -> Result<String, Refusal> {
    let refuse = |cure: String| Refusal { line: None, cure };
    let unreadable =
        |e: std::io::Error| refuse(format!("cannot be read ({e}); name a readable file"));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refuse("is larger than 1 MiB; keep to settings".to_owned()));
    }
    String::from_utf8(bytes).map_err(|e| {
        let (sound, _) = e.as_bytes().split_at(e.utf8_error().valid_up_to());
        let line = sound.split(|byte| *byte == b'\n').count();
        Refusal { line: Some(line), cure: "is not UTF-8; save it as UTF-8 text".to_owned() }
    })
}

/// Reads a text into a tree; `<<` merges are applied.
pub(super) fn parse(text: &str) -> Result<Value, Refusal> {
    if text.len() as u64 > MAX_BYTES || brackets(text) > MAX_BRACKETS {
        let cure = "is too large or too deeply nested; keep to settings".to_owned();
        return Err(Refusal { line: None, cure });
    }
    if text.trim_start_matches('\u{feff}').lines().all(is_blank) {
        return Ok(Value::Null);
    }
    let left = Cell::new(MAX_VALUES);
    let refuse = |e: serde_yaml::Error| invalid(text, &e);
    let mut tree = Build { left: &left }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(refuse)?;
    tree.apply_merge().map_err(refuse)?;
    Ok(tree)
}

fn invalid(text: &str, error: &serde_yaml::Error) -> Refusal {
    let line = error.location().map(|place| place.line());
    let words = line.and_then(|line| text.lines().nth(line.saturating_sub(1))).unwrap_or_default();
    let indent = &words[..words.len() - words.trim_start().len()];
    let hint = if indent.contains('\t') { "; indent with blanks, not tabs" } else { "" };
    Refusal { line, cure: format!("is not valid YAML: {error}{hint}") }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

/// Brackets open at once at most; those within quotes count too, which only errs on the safe side.
fn brackets(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// Builds a tree and counts its values down.
#[derive(Clone, Copy)]
struct Build<'b> {
    left: &'b Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(D::Error::custom(format!("more than {MAX_VALUES} values")));
        };
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, without a tag")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok((value as f64).into())
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok((value as f64).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut built = Mapping::new();
        while let Some(key) = map.next_key_seed(NewKey { seen: &built })? {
            let value = map.next_value_seed(self)?;
            built.insert(key.into(), value);
        }
        Ok(built.into())
    }
}

/// A key of a map in which each key stands once.
struct NewKey<'b> {
    seen: &'b Mapping,
}

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        if self.seen.contains_key(key) {
            return Err(E::custom(format!("the key {key:.64} stands twice; remove one")));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_twice_is_refused_with_its_line() {
        let refusal = parse("server:\n  port: 1\n  host: a\n  port: 2\n").unwrap_err();
        assert_eq!(refusal.line, Some(4));
        assert!(refusal.cure.contains("the key port stands twice"), "{}", refusal.cure);
    }

    #[test]
    fn alias_bombs_and_deep_nesting_end_quickly() {
        let items = "1,".repeat(100_000);
        let aliases = "*a,".repeat(100_000);
        let bomb = format!("a: &a [{items}]\nb: [{aliases}]\n");
        assert!(parse(&bomb).unwrap_err().cure.contains("more than 100000 values"));
        assert!(parse(&"[".repeat(1_000_000)).is_err());
        assert!(parse(&"- ".repeat(100_000)).is_err());
        assert!(parse(&"x".repeat(1_048_577)).is_err());
    }

    #[test]
    fn merges_and_aliases_work() {
        let tree = parse("base: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}\n").unwrap();
        assert_eq!(tree["c"]["x"], Value::from(1));
        assert_eq!(tree["c"]["y"], Value::from(3));
    }

    #[test]
    fn nothing_but_comments_is_null() {
        assert_eq!(parse(""), Ok(Value::Null));
        assert_eq!(parse("# nothing\n\n---\n"), Ok(Value::Null));
    }
}
