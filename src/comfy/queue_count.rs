//! Counting the prompts of a `/queue` reply without building its documents.
//!
//! A queue carries every prompt's whole workflow and can be megabytes long, so [`QueueCount`] is
//! fed chunks as they arrive and keeps a few numbers. It is stricter than it needs to be about
//! the outside (one object with the two arrays, whole, nothing behind it) and lenient within
//! items, where ComfyUI writes bare `NaN` and `Infinity`.

use super::queue_items::{Heads, QueueItems};

/// Running and waiting prompts of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Items of `queue_running`.
    pub running: u32,
    /// Items of `queue_pending`.
    pub pending: u32,
    /// Changes when another prompt runs: FNV-1a over the text of `queue_running`.
    pub digest: u64,
}

/// Why a reply is not a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It breaks off.
    #[error("the queue reply ends in the middle")]
    Truncated,
    /// It is no JSON, or of another shape.
    #[error("the queue reply is not an object of queue_running and queue_pending arrays")]
    Shape,
    /// Brackets nest deeper than anything ComfyUI writes.
    #[error("the queue reply nests deeper than {MAX_NESTING} levels")]
    Nesting,
}

/// Levels of brackets at most: a bound on the stack of open ones.
pub const MAX_NESTING: usize = 512;
/// Bytes of a key at the top that are remembered.
const MAX_KEY: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the object.
    Start,
    /// In the object, before a key or its end.
    Key,
    /// Inside a key.
    InKey,
    /// After a key, before its colon.
    Colon,
    /// Before a value of the object.
    Value,
    /// Inside a value of the object.
    InValue,
    /// After a value, before a comma or the end.
    AfterValue,
    /// After the object.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Running,
    Pending,
    Other,
}

/// Counts a reply that comes in pieces.
#[derive(Debug)]
pub struct QueueCount {
    place: Place,
    key: Vec<u8>,
    which: Which,
    /// Open brackets inside the value, true for arrays.
    open: Vec<bool>,
    in_string: bool,
    escaped: bool,
    /// Whether an item of the counted array has begun.
    item_begun: bool,
    items: u32,
    digest: u64,
    running: Option<u32>,
    pending: Option<u32>,
    /// Gathers the prompts' ids, when they are wanted.
    heads: Option<Heads>,
}

impl Default for QueueCount {
    fn default() -> Self {
        Self {
            place: Place::Start,
            key: Vec::new(),
            which: Which::Other,
            open: Vec::new(),
            in_string: false,
            escaped: false,
            item_begun: false,
            items: 0,
            digest: FNV_BASIS,
            running: None,
            pending: None,
            heads: None,
        }
    }
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

impl QueueCount {
    /// One that also gathers the prompts' ids.
    pub fn with_items() -> Self {
        Self { heads: Some(Heads::default()), ..Self::default() }
    }

    /// Ends the reply and gives the counts and the prompts, the latter none unless they were
    /// asked for by [`QueueCount::with_items`].
    pub fn finish_with_items(mut self) -> Result<(Counted, QueueItems), Malformed> {
        let heads = self.heads.take().unwrap_or_default();
        Ok((self.finish()?, heads.finish()))
    }

    /// Takes the next bytes of the reply.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        bytes.iter().try_for_each(|&byte| self.step(byte))
    }

    /// Ends the reply and gives the counts.
    pub fn finish(self) -> Result<Counted, Malformed> {
        match (self.place, self.running, self.pending) {
            (Place::End, Some(running), Some(pending)) => {
                Ok(Counted { running, pending, digest: self.digest })
            }
            (Place::End, _, _) => Err(Malformed::Shape),
            _ => Err(Malformed::Truncated),
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        match self.place {
            Place::InKey => self.in_key(byte),
            Place::InValue => return self.in_value(byte),
            _ if byte.is_ascii_whitespace() => {}
            Place::Start if byte == b'{' => self.place = Place::Key,
            Place::Key if byte == b'"' => {
                self.key.clear();
                self.place = Place::InKey;
            }
            Place::Key | Place::AfterValue if byte == b'}' => self.place = Place::End,
            Place::AfterValue if byte == b',' => self.place = Place::Key,
            Place::Colon if byte == b':' => self.place = Place::Value,
            Place::Value => return self.value_begins(byte),
            _ => return Err(Malformed::Shape),
        }
        Ok(())
    }

    fn in_key(&mut self, byte: u8) {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.which = match self.key.as_slice() {
                b"queue_running" => Which::Running,
                b"queue_pending" => Which::Pending,
                _ => Which::Other,
            };
            self.place = Place::Colon;
            return;
        }
        if self.key.len() < MAX_KEY {
            self.key.push(byte);
        }
    }

    fn value_begins(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.which != Which::Other && byte != b'[' {
            return Err(Malformed::Shape);
        }
        if matches!(byte, b',' | b':' | b']' | b'}') {
            return Err(Malformed::Shape);
        }
        self.place = Place::InValue;
        self.item_begun = false;
        self.items = 0;
        if self.which == Which::Running {
            self.digest = FNV_BASIS;
        }
        // Of a list that stands twice the last one counts.
        if let Some(heads) = self.heads.as_mut().filter(|_| self.which != Which::Other) {
            heads.restart(self.which == Which::Running);
        }
        self.in_value(byte)
    }

    fn in_value(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.which == Which::Running {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        if self.heads.is_some() {
            self.look_at_head(byte);
        }
        if self.in_string {
            self.in_string_of_value(byte);
            return Ok(());
        }
        match byte {
            b'"' => {
                self.item_opens()?;
                self.in_string = true;
            }
            b'[' | b'{' => {
                self.item_opens()?;
                if self.open.len() == MAX_NESTING {
                    return Err(Malformed::Nesting);
                }
                self.open.push(byte == b'[');
            }
            b']' | b'}' => return self.bracket_closes(byte),
            b',' => return self.comma(),
            _ if byte.is_ascii_whitespace() => {}
            // Numbers, literals, colons: their grammar is not our concern here.
            0x20..=0x7e => self.item_begins(),
            _ => return Err(Malformed::Shape),
        }
        Ok(())
    }

    /// Hands what stands directly in an item of the two arrays to the heads, before the byte is
    /// taken itself.
    fn look_at_head(&mut self, byte: u8) {
        let Some(heads) = self.heads.as_mut().filter(|_| self.which != Which::Other) else {
            return;
        };
        match (self.open.as_slice(), byte) {
            ([_], b'[') if !self.in_string => heads.begin(),
            ([_, true], b',') if !self.in_string => heads.comma(),
            ([_, true], b']') if !self.in_string => heads.end(self.which == Which::Running),
            ([_, true], _) => heads.byte(byte),
            _ => {}
        }
    }

    fn in_string_of_value(&mut self, byte: u8) {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            self.end_of_scalar_value();
        }
    }

    /// A string at the top ends its value; other scalars end at the comma or brace behind them.
    fn end_of_scalar_value(&mut self) {
        if self.open.is_empty() {
            self.place = Place::AfterValue;
        }
    }

    /// A string, array or object begins, before which a comma must have ended another item.
    fn item_opens(&mut self) -> Result<(), Malformed> {
        if self.item_begun && self.open.len() == 1 {
            return Err(Malformed::Shape);
        }
        self.item_begins();
        Ok(())
    }

    fn item_begins(&mut self) {
        if self.open.len() == 1 && self.which != Which::Other {
            self.item_begun = true;
        }
    }

    fn comma(&mut self) -> Result<(), Malformed> {
        if self.open.is_empty() {
            self.place = Place::Key;
        } else if self.open.len() == 1 && self.which != Which::Other {
            if !std::mem::take(&mut self.item_begun) {
                return Err(Malformed::Shape);
            }
            self.items = self.items.saturating_add(1);
        }
        Ok(())
    }

    fn bracket_closes(&mut self, byte: u8) -> Result<(), Malformed> {
        match self.open.pop() {
            Some(is_array) if is_array == (byte == b']') => {
                if self.open.is_empty() {
                    self.value_ends();
                }
                Ok(())
            }
            // A bare scalar at the top, ended by the object's brace.
            None if byte == b'}' => {
                self.place = Place::End;
                Ok(())
            }
            _ => Err(Malformed::Shape),
        }
    }

    fn value_ends(&mut self) {
        if std::mem::take(&mut self.item_begun) {
            self.items = self.items.saturating_add(1);
        }
        match self.which {
            Which::Running => self.running = Some(self.items),
            Which::Pending => self.pending = Some(self.items),
            Which::Other => {}
        }
        self.place = Place::AfterValue;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(text: &str) -> Result<(u32, u32), Malformed> {
        let mut counter = QueueCount::default();
        counter.feed(text.as_bytes())?;
        counter.finish().map(|counted| (counted.running, counted.pending))
    }

    #[test]
    fn counts_items_not_brackets_inside_them() {
        assert_eq!(count(r#"{"queue_running": [], "queue_pending": []}"#), Ok((0, 0)));
        let text = r#"{"queue_pending": [[0, "a", {"1": {"t": "],[{\"\\"}}, {}, ["2"]], [1]],
            "more": {"x": [1, NaN, -Infinity]}, "n": 3, "s": "x", "queue_running": [[2, null]]}"#;
        assert_eq!(count(text), Ok((1, 2)));
    }

    #[test]
    fn what_is_no_queue_is_refused() {
        for text in ["", "{", r#"{"queue_running": ["#, r#"{"queue_running": [[1]"#] {
            assert_eq!(count(text), Err(Malformed::Truncated), "{text}");
        }
        for text in [
            "[]",
            "null",
            "<html>",
            "{}",
            r#"{"queue_running": []}"#,
            r#"{"queue_running": {}, "queue_pending": []}"#,
            r#"{"queue_running": 4, "queue_pending": []}"#,
            r#"{"queue_running": [}, "queue_pending": []}"#,
            r#"{"queue_running": [,], "queue_pending": []}"#,
            r#"{"queue_running": [], "queue_pending": []} x"#,
            r#"{"queue_running" [], "queue_pending": []}"#,
            r#"{"queue_running": [[1][2]], "queue_pending": []}"#,
        ] {
            assert_eq!(count(text), Err(Malformed::Shape), "{text}");
        }
        assert_eq!(count(&format!(r#"{{"x": {}"#, "[".repeat(9999))), Err(Malformed::Nesting));
    }

    #[test]
    fn the_digest_tells_one_running_prompt_from_another() {
        let digest = |id: u32| {
            let mut counter = QueueCount::default();
            let text = format!(r#"{{"queue_running": [[{id}]], "queue_pending": []}}"#);
            counter.feed(text.as_bytes()).unwrap();
            counter.finish().unwrap().digest
        };
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }

    proptest! {
        #[test]
        fn any_split_counts_alike(cut in 0usize..90) {
            let text = r#"{"queue_running": [[1, {"a": "]\"["}]], "queue_pending": [[2], [3], "x", 5]}"#;
            let cut = cut.min(text.len());
            let mut counter = QueueCount::default();
            counter.feed(&text.as_bytes()[..cut]).unwrap();
            counter.feed(&text.as_bytes()[cut..]).unwrap();
            let counted = counter.finish().unwrap();
            prop_assert_eq!((counted.running, counted.pending), (1, 4));
        }

        #[test]
        fn agrees_with_a_real_parser_on_valid_queues(
            running in prop::collection::vec(item(), 0..4),
            pending in prop::collection::vec(item(), 0..4),
        ) {
            let text = serde_json::json!({"queue_running": running, "queue_pending": pending});
            let expected = (running.len() as u32, pending.len() as u32);
            prop_assert_eq!(count(&text.to_string()), Ok(expected));
            prop_assert_eq!(count(&serde_json::to_string_pretty(&text).unwrap()), Ok(expected));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut counter = QueueCount::default();
            let _ = counter.feed(&bytes);
            let _ = counter.finish();
        }
    }

    fn item() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(serde_json::Value::from),
            ".{0,8}".prop_map(serde_json::Value::from),
            Just(serde_json::Value::Null),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::hash_map(".{0,4}", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
