//! What kind of work a client asks for: its task type.
//!
//! A request says so in `X-Comfygate-Task-Type`. A person says so by opening the page as
//! `/?task_type=video`: that marks the client until it opens the page with another task type, or
//! with an empty one, which takes the mark off. A marked request is served only by backends that do
//! such work; where the client's own does not, the client moves, since the files of a prompt must
//! be where the prompt is. A marked client that has to move is placed among such backends too.
//!
//! Marks of clients are remembered beside their placements ([`Marks`]), not stored: after a restart
//! clients stay where they are anyhow.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::ClientKey;
use crate::affinity::Seconds;
use crate::comfy::routes::query_value;
use crate::rejection::{Kind, Rejection};

/// The header that marks a request.
pub const HEADER: &str = "x-comfygate-task-type";
/// The query parameter of a page navigation that marks a client.
pub const QUERY: &str = "task_type";
/// Characters of a task type.
const MAX_NAME: usize = 128;
/// Clients remembered in one generation; twice as many at most.
const GENERATION: usize = 32_768;

/// What a request is marked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The task type; empty: none any more.
    pub task_type: String,
    /// Whether it holds for what the client does next, too.
    pub lasting: bool,
}

impl Mark {
    /// The mark of a request: of its header, else of its target when it navigates to the page.
    pub fn of(
        header: Option<&[u8]>,
        target: &str,
        navigates: impl FnOnce() -> bool,
    ) -> Result<Option<Self>, Rejection> {
        if let Some(value) = header {
            let task_type = read(value)?;
            return Ok((!task_type.is_empty()).then_some(Self { task_type, lasting: false }));
        }
        let Some(value) = query_value(target, QUERY) else { return Ok(None) };
        if !navigates() {
            return Ok(None);
        }
        Ok(Some(Self { task_type: read(value.replace('+', " ").as_bytes())?, lasting: true }))
    }
}

/// A task type as headers and queries carry it: UTF-8, percent-encoded or not.
pub fn read(value: &[u8]) -> Result<String, Rejection> {
    let refuse = |why: &str| Rejection::new(Kind::InvalidValue, format!("the task type {why}"));
    let text = percent_encoding::percent_decode(value).decode_utf8();
    let text = text.map_err(|_| refuse("is not UTF-8"))?;
    let text = text.trim();
    if text.contains(char::is_control) {
        return Err(refuse("contains control characters"));
    }
    if text.chars().nth(MAX_NAME).is_some() {
        return Err(refuse("is longer than 128 characters"));
    }
    Ok(text.to_owned())
}

/// The marks of clients. When there are too many, those made longest ago go, half of them at once.
#[derive(Debug, Default)]
pub struct Marks(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<ClientKey, (String, Seconds)>,
    old: HashMap<ClientKey, (String, Seconds)>,
}

impl Marks {
    /// Marks a client, or takes its mark off.
    pub fn set(&self, key: ClientKey, task_type: &str, now: Seconds) {
        let mut marks = self.0.lock();
        marks.old.remove(&key);
        if task_type.is_empty() {
            marks.young.remove(&key);
            return;
        }
        if marks.young.len() >= GENERATION && !marks.young.contains_key(&key) {
            marks.old = std::mem::take(&mut marks.young);
        }
        marks.young.insert(key, (task_type.to_owned(), now));
    }

    /// A client's mark, and when it was made.
    pub fn get(&self, key: ClientKey) -> Option<(String, Seconds)> {
        let marks = self.0.lock();
        marks.young.get(&key).or_else(|| marks.old.get(&key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(header: Option<&str>, target: &str, navigates: bool) -> Option<Mark> {
        Mark::of(header.map(str::as_bytes), target, || navigates).unwrap()
    }

    fn marked(task_type: &str, lasting: bool) -> Mark {
        Mark { task_type: task_type.to_owned(), lasting }
    }

    #[test]
    fn a_header_marks_a_request_and_a_navigation_the_client() {
        assert_eq!(mark(Some("video"), "/prompt", false), Some(marked("video", false)));
        assert_eq!(mark(Some("video"), "/?task_type=image", true), Some(marked("video", false)));
        assert_eq!(mark(Some("人数统计"), "/", false), Some(marked("人数统计", false)));
        assert_eq!(mark(Some(" "), "/prompt", false), None);
        assert_eq!(mark(None, "/?a=b&task_type=%E4%BA%BA+x", true), Some(marked("人 x", true)));
        assert_eq!(mark(None, "/?task_type=", true), Some(marked("", true)));
        assert_eq!(mark(None, "/prompt?task_type=video", false), None);
        assert_eq!(mark(None, "/", true), None);
    }

    #[test]
    fn what_cannot_be_a_task_type_is_refused() {
        for value in ["a%00b", "%FF", &"x".repeat(129)] {
            assert!(Mark::of(Some(value.as_bytes()), "/", || false).is_err(), "{value}");
        }
        assert!(Mark::of(Some("é".repeat(128).as_bytes()), "/", || false).is_ok());
    }

    #[test]
    fn a_mark_holds_until_another_or_none() {
        let marks = Marks::default();
        let key = ClientKey::of_user("a");
        marks.set(key, "video", Seconds(5));
        assert_eq!(marks.get(key), Some(("video".into(), Seconds(5))));
        marks.set(key, "image", Seconds(6));
        assert_eq!(marks.get(key), Some(("image".into(), Seconds(6))));
        marks.set(key, "", Seconds(7));
        assert_eq!(marks.get(key), None);
    }

    #[test]
    fn marks_are_bounded_and_the_latest_are_kept() {
        let marks = Marks::default();
        let key = |n: usize| ClientKey::of_user(&n.to_string());
        let last = 3 * GENERATION + 10;
        (0..=last).for_each(|n| marks.set(key(n), "video", Seconds(1)));
        let generations = marks.0.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
        drop(generations);
        assert_eq!(marks.get(key(0)), None);
        assert!((last - GENERATION..=last).all(|n| marks.get(key(n)).is_some()));
    }
}
