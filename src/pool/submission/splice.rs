//! Putting texts together out of pieces of others.

use super::scan::{Key, Scanner, Span};

/// Replacements in a text. Their places must not overlap.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<(Span, String)>);

impl Edits {
    /// Puts another text in this place.
    pub(super) fn replace(&mut self, place: Span, text: impl Into<String>) {
        self.0.push((place, text.into()));
    }

    /// The text with everything replaced.
    pub(super) fn apply(mut self, text: &[u8]) -> Vec<u8> {
        self.0.sort_by_key(|(place, _)| (place.start, place.end));
        let grown: usize = self.0.iter().map(|(_, new)| new.len()).sum();
        let mut out = Vec::with_capacity(text.len() + grown);
        let mut at = 0;
        for (place, new) in self.0 {
            out.extend_from_slice(text.get(at..place.start).unwrap_or_default());
            out.extend_from_slice(new.as_bytes());
            at = at.max(place.end);
        }
        out.extend_from_slice(text.get(at..).unwrap_or_default());
        out
    }
}

/// What becomes of a member of an object.
pub(super) enum Member {
    /// It stays as it is written.
    Keep,
    /// It goes.
    Drop,
    /// It gets another value.
    Become(Vec<u8>),
}

/// An object with its members kept, dropped or changed; `None` when the text is no object.
pub(super) fn rebuilt(
    object: &[u8],
    mut decide: impl FnMut(Key<'_>, &[u8]) -> Member,
) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(object.len() + 64);
    out.push(b'{');
    let mut scanner = Scanner::new(object);
    let walked = scanner.members(|scanner, key| {
        let value = scanner.value(&mut ())?;
        let text = &object[value.clone()];
        let decided = decide(key, text);
        if matches!(decided, Member::Drop) {
            return Ok(());
        }
        if out.len() > 1 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(&object[key.at..value.start]);
        match &decided {
            Member::Become(new) => out.extend_from_slice(new),
            _ => out.extend_from_slice(text),
        }
        Ok(())
    });
    walked.ok()?;
    out.push(b'}');
    Some(out)
}

/// Adds a member to the end of an object that ends with its brace.
pub(super) fn add_member(object: &mut Vec<u8>, key: &str, value: &[u8]) {
    if object.last() == Some(&b'}') {
        object.pop();
        let first = object.trim_ascii_end() == b"{";
        object.extend_from_slice(if first { b"" } else { b", " });
        object.extend_from_slice(quoted(key).as_bytes());
        object.extend_from_slice(b": ");
        object.extend_from_slice(value);
        object.push(b'}');
    }
}

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_replaced_whatever_their_order() {
        let mut edits = Edits::default();
        edits.replace(4..5, "E");
        edits.replace(0..2, "");
        edits.replace(2..2, "-");
        assert_eq!(edits.apply(b"abcdefg"), b"-cdEfg");
    }

    #[test]
    fn an_object_is_rebuilt_without_what_goes() {
        let object = br#"{ "a" :1 , "b":[2], "c": {"x" : NaN}}"#;
        let built = rebuilt(object, |key, _| match &*key.text() {
            "a" => Member::Drop,
            "b" => Member::Become(b"3".to_vec()),
            _ => Member::Keep,
        });
        let mut built = built.unwrap();
        add_member(&mut built, "d\"", b"4");
        assert_eq!(built, br#"{"b":3, "c": {"x" : NaN}, "d\"": 4}"#);
        let mut empty = rebuilt(b"{ }", |_, _| Member::Keep).unwrap();
        add_member(&mut empty, "a", b"1");
        assert_eq!(empty, br#"{"a": 1}"#);
        assert!(rebuilt(b"[]", |_, _| Member::Keep).is_none());
    }
}
