//! On which line of a YAML text the value at a path stands.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step of the path to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Item(usize),
}

/// The line on which `path`, or the nearest value above it, stands.
///
/// The parser tells positions in errors only, so this parses again and fails where the path ends.
pub(super) fn locate(text: &str, path: &[Step]) -> Option<usize> {
    if path.is_empty() || text.is_empty() {
        return None;
    }
    let stopped = Find { path }.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    stopped.location().map(|place| place.line())
}

/// Walks along a path and fails at its end.
struct Find<'p> {
    path: &'p [Step],
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing: any value ends the search")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Some((Step::Item(n), path)) = self.path.split_first() {
            for _ in 0..*n {
                seq.next_element::<IgnoredAny>()?;
            }
            seq.next_element_seed(Find { path })?;
        }
        Err(A::Error::custom("here"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((Step::Key(key), path)) = self.path.split_first() {
            while let Some(found) = map.next_key_seed(FindKey { key, last: path.is_empty() })? {
                if found {
                    map.next_value_seed(Find { path })?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Err(A::Error::custom("here"))
    }
}

/// Says whether a key is the wanted one, and fails there when the path ends with it.
struct FindKey<'p> {
    key: &'p str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for FindKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FindKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        if key == self.key && self.last {
            return Err(E::custom("here"));
        }
        Ok(key == self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Step {
        Step::Key(name.to_owned())
    }

    #[test]
    fn lines_are_found_in_block_and_flow_style() {
        let text = "# first\nserver:\n  host: a\n  port: 1\nlist:\n  - x\n  - {a: 1,\n     b: 2}\n  - c:\n      3\n";
        assert_eq!(locate(text, &[key("server")]), Some(2));
        assert_eq!(locate(text, &[key("server"), key("port")]), Some(4));
        assert_eq!(locate(text, &[key("list"), Step::Item(0)]), Some(6));
        assert_eq!(locate(text, &[key("list"), Step::Item(1), key("b")]), Some(8));
        assert_eq!(locate(text, &[key("list"), Step::Item(2), key("c")]), Some(9));
    }

    #[test]
    fn a_path_that_is_not_there_has_the_line_of_what_is_above_it() {
        let text = "a: 1\nserver:\n  host: a\n";
        assert_eq!(locate(text, &[key("server"), key("port")]), Some(3));
        assert_eq!(locate(text, &[key("a"), key("b")]), Some(1));
        assert_eq!(locate(text, &[]), None);
    }
}
