//! The user's words: a tree of values that knows where each came from, and typed ways to take
//! values out of it.
//!
//! A [`Node`] is one place in a [`Document`]. Its typed methods give the value, or the default
//! when there is none; a value that does not fit is noted as a [`Problem`] and the default stands
//! in for it, so that one pass finds everything that is wrong.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_yaml::Value;

use super::locate::{Step, locate};
use super::problem::{Problem, Problems};
use super::quantity::{parse_duration, parse_size, seconds, show_duration, show_size};

/// Characters of a text value at most.
pub(super) const MAX_TEXT: usize = 4096;
/// Characters of a value that a problem shows.
const MAX_SHOWN: usize = 80;

/// A tree of values with the places they came from.
pub(super) struct Document {
    pub(super) tree: Value,
    /// Text the tree was parsed from, for lines; empty when there was none.
    pub(super) text: String,
    /// Key that stands in front of every path.
    pub(super) prefix: &'static str,
    /// What to call this source where a line alone would mislead.
    pub(super) source: Option<String>,
    /// Places that did not come from `text` but from this variable or flag.
    pub(super) laid_on: Vec<(Vec<Step>, String)>,
}

impl Document {
    /// Source and line of a path.
    fn place(&self, path: &[Step]) -> (Option<String>, Option<usize>) {
        let laid_on = self.laid_on.iter().filter(|(at, _)| path.starts_with(at));
        match laid_on.max_by_key(|(at, _)| at.len()) {
            Some((_, source)) => (Some(source.clone()), None),
            None => (self.source.clone(), locate(&self.text, path)),
        }
    }
}

/// What one reading of a configuration shares: surroundings, and what it found wrong.
pub(super) struct Reading<'a> {
    /// Environment that `{env: NAME}` refers to.
    pub(super) env: &'a BTreeMap<String, String>,
    /// Directory that relative paths of files to read start from.
    pub(super) directory: PathBuf,
    pub(super) problems: RefCell<Problems>,
}

impl Reading<'_> {
    /// A path as written, from the configuration file's directory.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.directory.join(Path::new(path))
    }
}

/// One place in a document, with or without a value.
#[derive(Clone)]
pub(super) struct Node<'a> {
    reading: &'a Reading<'a>,
    document: &'a Document,
    value: Option<&'a Value>,
    path: Vec<Step>,
}

impl<'a> Node<'a> {
    pub(super) fn root(reading: &'a Reading<'a>, document: &'a Document) -> Self {
        Self { reading, document, value: present(Some(&document.tree)), path: Vec::new() }
    }

    pub(super) fn reading(&self) -> &'a Reading<'a> {
        self.reading
    }

    pub(super) fn value(&self) -> Option<&'a Value> {
        self.value
    }

    pub(super) fn is_set(&self) -> bool {
        self.value.is_some()
    }

    /// The place under a key; without a value when there is none or it is null.
    pub(super) fn get(&self, key: &str) -> Self {
        let value = self.value.and_then(Value::as_mapping).and_then(|map| map.get(key));
        self.below(Step::Key(key.to_owned()), value)
    }

    /// The items of a list; none when it is no list.
    pub(super) fn items(&self) -> Vec<Self> {
        let items = self.value.and_then(Value::as_sequence).into_iter().flatten().enumerate();
        items.map(|(n, item)| self.below(Step::Item(n), Some(item))).collect()
    }

    /// The entries of a map; none when it is no map.
    pub(super) fn entries(&self) -> Vec<(String, Self)> {
        let entries = self.value.and_then(Value::as_mapping).into_iter().flatten();
        let named = entries.filter_map(|(key, value)| Some((key.as_str()?, value)));
        named
            .map(|(key, value)| {
                (key.to_owned(), self.below(Step::Key(key.to_owned()), Some(value)))
            })
            .collect()
    }

    fn below(&self, step: Step, value: Option<&'a Value>) -> Self {
        let mut path = self.path.clone();
        path.push(step);
        Self { path, value: present(value), ..self.clone() }
    }

    /// Full key, such as `backends[0].port`.
    pub(super) fn key(&self) -> String {
        let mut key = self.document.prefix.to_owned();
        for step in &self.path {
            let dot = if key.is_empty() { "" } else { "." };
            // Writing to a string does not fail.
            let _ = match step {
                Step::Key(name) => write!(key, "{dot}{}", shorten(name)),
                Step::Item(n) => write!(key, "[{n}]"),
            };
        }
        key
    }

    /// Notes that the value here is wrong.
    pub(super) fn problem(&self, cure: String) {
        self.problem_with(self.value.map_or_else(|| "none".to_owned(), show), cure);
    }

    /// Notes that the value here is wrong, without showing it.
    pub(super) fn masked_problem(&self, cure: String) {
        self.problem_with("MASKED".to_owned(), cure);
    }

    /// Notes an unknown key, or a value of another shape; it shows only when the key's name promises
    /// no secret.
    pub(super) fn unknown(&self, cure: String) {
        let key = self.key().to_lowercase();
        let secret = ["tok", "sec", "pass", "key", "auth", "cred"];
        if secret.iter().any(|word| key.contains(word)) {
            self.masked_problem(cure);
        } else {
            self.problem(cure);
        }
    }

    fn problem_with(&self, value: String, cure: String) {
        self.reading.problems.borrow_mut().add(|| {
            let (source, line) = self.document.place(&self.path);
            // A section that is missing stands nowhere, not on the file's first line.
            let line = line.filter(|_| self.value.is_some() || self.path.len() > 1);
            Problem { key: self.key(), value, source, line, cure }
        });
    }

    /// The value as `read` takes it; when it takes none, `cure` says what would fit.
    fn take<T>(
        &self,
        default: T,
        cure: impl FnOnce() -> String,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> T {
        let Some(value) = self.value else { return default };
        read(value).unwrap_or_else(|| {
            self.problem(cure());
            default
        })
    }

    pub(super) fn bool(&self, default: bool) -> bool {
        self.take(
            default,
            || "use true or false".to_owned(),
            |value| value.as_bool().or_else(|| value.as_str()?.parse().ok()),
        )
    }

    pub(super) fn int<T: TryFrom<u64>>(&self, default: T, range: RangeInclusive<u64>) -> T {
        let cure = || format!("use a whole number from {} to {}", range.start(), range.end());
        self.take(default, cure, |value| {
            let number = value.as_u64().or_else(|| value.as_str()?.parse().ok())?;
            range.contains(&number).then(|| T::try_from(number).ok())?
        })
    }

    pub(super) fn duration(&self, default: Duration, range: RangeInclusive<Duration>) -> Duration {
        let cure = || {
            let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
            format!("use {least} to {most}, as seconds or such as 500ms, 5s, 1h")
        };
        self.take(default, cure, |value| {
            let duration = match value {
                Value::Number(number) => seconds(number.as_f64()?),
                Value::String(text) => parse_duration(text),
                _ => None,
            };
            duration.filter(|duration| range.contains(duration))
        })
    }

    /// Bytes; `off` and `false` are 0 where 0 is in the range.
    pub(super) fn size(&self, default: u64, range: RangeInclusive<u64>) -> u64 {
        let cure = || {
            let (least, most) = (show_size(*range.start()), show_size(*range.end()));
            format!("use {least} to {most}, as bytes or such as 64KiB, 100MB")
        };
        self.take(default, cure, |value| {
            let size = match value {
                Value::Number(number) => number.as_u64(),
                Value::String(text) if text == "off" => Some(0),
                Value::Bool(false) => Some(0),
                Value::String(text) => parse_size(text),
                _ => None,
            };
            size.filter(|size| range.contains(size))
        })
    }

    /// One of some words; a YAML `false` is `off`, a `true` is `on`.
    pub(super) fn choice<T: Copy>(&self, default: T, words: &[(&str, T)]) -> T {
        let cure = || {
            let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
            format!("use one of {}", names.join(", "))
        };
        self.take(default, cure, |value| {
            let word = match value {
                Value::Bool(false) => "off",
                Value::Bool(true) => "on",
                other => other.as_str()?,
            };
            words.iter().find(|(name, _)| *name == word).map(|(_, choice)| *choice)
        })
    }

    /// A text that `read` accepts; numbers and booleans count as written.
    pub(super) fn text<T>(&self, cure: &str, read: impl FnOnce(String) -> Option<T>) -> Option<T> {
        self.take(None, || cure.to_owned(), |value| read(plain(value)?).map(Some))
    }

    /// A list, each item read by `read`; a single text counts as a list of one.
    pub(super) fn list<T>(&self, cure: &str, read: impl Fn(&Self) -> Option<T>) -> Vec<T> {
        match self.value {
            None => Vec::new(),
            Some(Value::Sequence(_)) => self.items().iter().filter_map(read).collect(),
            Some(Value::String(_)) => read(self).into_iter().collect(),
            Some(_) => {
                self.problem(cure.to_owned());
                Vec::new()
            }
        }
    }

    /// A map of free keys, each value read by `read`.
    pub(super) fn map<T>(
        &self,
        cure: &str,
        read: impl Fn(&str, &Self) -> Option<T>,
    ) -> Vec<(String, T)> {
        if self.value.is_some_and(|value| !value.is_mapping()) {
            self.problem(cure.to_owned());
        }
        let entries = self.entries().into_iter();
        entries.filter_map(|(name, node)| read(&name, &node).map(|value| (name, value))).collect()
    }
}

/// Null counts as nothing: `key:` without a value leaves the default.
fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

/// A scalar as text.
pub(super) fn plain(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => return None,
    };
    is_clean(&text).then_some(text)
}

pub(super) fn is_clean(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && !text.contains(char::is_control)
}

/// A value for people: one line, not long, without the insides of maps and lists.
fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => shorten(text),
        Value::Sequence(items) if items.is_empty() => "[]".to_owned(),
        Value::Sequence(_) => "[…]".to_owned(),
        Value::Mapping(_) | Value::Tagged(_) => "{…}".to_owned(),
    }
}

pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        short.push('…');
    }
    short.replace("\\\"", "\"").replace("\\'", "'")
}
