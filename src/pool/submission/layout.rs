//! Where in the body of a POST /prompt its parts stand.
//!
//! One walk over the text; of keys that repeat the last one counts, as in Python. A body nests
//! [`LEVELS`] deep at most: far more than any workflow does, and few enough for everything that is
//! to read it later inside of a queue or a history.

use super::graph::Graph;
use super::scan::{Json, Key, Malformed, Scanner, Span};

/// Levels of brackets in the value of a member, or in a part of a node.
pub(super) const LEVELS: usize = 256;

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// Where its key begins.
    pub(super) key: usize,
    /// Where its value stands.
    pub(super) value: Span,
}

impl Field {
    /// The value in the text that was walked over.
    pub(super) fn of<'a>(&self, body: &'a [u8]) -> Json<'a> {
        Json(body.get(self.value.clone()).unwrap_or_default())
    }
}

/// The parts of a body that matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// Just behind the opening brace.
    pub(super) open: usize,
    pub(super) prompt: Option<Field>,
    pub(super) extra_data: Option<Field>,
    pub(super) client_id: Option<Field>,
    pub(super) prompt_id: Option<Field>,
    pub(super) number: Option<Field>,
    pub(super) front: Option<Field>,
    pub(super) targets: Option<Field>,
    /// `client_id` in `extra_data`.
    pub(super) extra_client_id: Option<Field>,
    /// `comfygate` in `extra_data`.
    pub(super) wishes: Option<Field>,
}

impl Layout {
    /// Walks over a body.
    pub(super) fn of(body: &[u8]) -> Result<Self, Malformed> {
        Self::read(body, None)
    }

    /// Walks over a body and gathers what its graph needs on the way.
    pub(super) fn with_graph(body: &[u8]) -> Result<(Self, Graph), Malformed> {
        let mut graph = Graph::default();
        let layout = Self::read(body, Some(&mut graph))?;
        Ok((layout, graph))
    }

    fn read(body: &[u8], mut graph: Option<&mut Graph>) -> Result<Self, Malformed> {
        let mut layout = Self::default();
        let mut scanner = Scanner::shallow(body, LEVELS);
        let span = scanner.members(|scanner, key| {
            let value = match graph.as_deref_mut() {
                Some(graph) if key.is("prompt") => {
                    *graph = Graph::default();
                    graph.walk(body, scanner)?
                }
                _ if key.is("extra_data") => layout.extra_data(scanner)?,
                _ => scanner.value(&mut ())?,
            };
            layout.member(key, value);
            Ok(())
        })?;
        scanner.end()?;
        layout.open = span.start + 1;
        Ok(layout)
    }

    fn member(&mut self, key: Key<'_>, value: Span) {
        let place = [
            ("prompt", &mut self.prompt),
            ("extra_data", &mut self.extra_data),
            ("client_id", &mut self.client_id),
            ("prompt_id", &mut self.prompt_id),
            ("number", &mut self.number),
            ("front", &mut self.front),
            ("partial_execution_targets", &mut self.targets),
        ];
        if let Some((_, place)) = place.into_iter().find(|(name, _)| key.is(name)) {
            *place = Some(Field { key: key.at, value });
        }
    }

    fn extra_data(&mut self, scanner: &mut Scanner<'_>) -> Result<Span, Malformed> {
        self.extra_client_id = None;
        self.wishes = None;
        if scanner.peek() != Some(b'{') {
            return scanner.value(&mut ());
        }
        scanner.members(|scanner, key| {
            let value = scanner.value(&mut ())?;
            let place = [("client_id", &mut self.extra_client_id), ("comfygate", &mut self.wishes)];
            if let Some((_, place)) = place.into_iter().find(|(name, _)| key.is(name)) {
                *place = Some(Field { key: key.at, value });
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_repeated_members_counts_with_what_is_in_it() {
        let body = br#" {"extra_data": {"client_id": 1, "comfygate": {}}, "front": 1, "prompt": {},
            "\u0065xtra_data": {"client_id": "b"}, "front": 2} "#;
        let layout = Layout::of(body).unwrap();
        assert_eq!(layout.extra_client_id.unwrap().of(body).0, b"\"b\"");
        assert_eq!(layout.front.unwrap().of(body).0, b"2");
        assert_eq!((layout.wishes, layout.number, layout.open), (None, None, 2));
        assert!(Layout::of(br#"{"extra_data": [], "prompt": {}}"#).unwrap().extra_data.is_some());
    }

    #[test]
    fn what_is_no_object_has_no_layout() {
        for body in ["", "[]", "null", "{", "{} {}"] {
            assert_eq!(Layout::of(body.as_bytes()), Err(Malformed::Syntax), "{body}");
        }
    }
}
