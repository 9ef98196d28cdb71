//! The layers over the file: environment, then flags, each over the one before.
//!
//! `COMFYGATE__SECTION__KEY=value` stands for any key, one more `__` per level, a number for an
//! item of a list. A value that begins with a bracket or a quote is read as YAML, any other is
//! taken as it is.

use serde_yaml::{Mapping, Value};

use super::load::Sources;
use super::locate::Step;
use super::problem::Problem;
use super::raw::{Document, Reading};
use super::yaml;

/// Start of a variable that stands for a key: `COMFYGATE__SERVER__PORT`.
const PREFIX: &str = "COMFYGATE__";
/// Levels of such a variable at most; the deepest key has four.
const MAX_LEVELS: usize = 8;

/// Lays environment and flags over the file's tree.
pub(super) fn lay_on(file: &mut Document, sources: &Sources, reading: &Reading<'_>) {
    let variables = sources.env.range(PREFIX.to_owned()..);
    for (name, text) in variables.take_while(|(name, _)| name.starts_with(PREFIX)) {
        let key = name.trim_start_matches(PREFIX).to_lowercase();
        let path: Vec<&str> = key.split("__").collect();
        if !text.is_empty() && lay(file, &path, value(text), name).is_none() {
            reading.problems.borrow_mut().add(|| Problem {
                key: name.chars().take(100).collect(),
                value: "MASKED".to_owned(),
                source: None,
                line: None,
                cure: "leads to no key; use COMFYGATE__SECTION__KEY, and for items of a list \
                       numbers from 0 without a gap"
                    .to_owned(),
            });
        }
    }
    let flags = &sources.flags;
    if let Some(host) = &flags.host {
        lay(file, &["server", "host"], host.as_str().into(), "--host");
    }
    if let Some(port) = flags.port {
        lay(file, &["server", "port"], port.into(), "--port");
    }
}

/// A variable's value: a flow collection or quoted text as YAML, anything else as it is.
fn value(text: &str) -> Value {
    let flow = text.trim_start().starts_with(['{', '[', '"', '\'']);
    let parsed = flow.then(|| yaml::parse(text).ok()).flatten();
    parsed.unwrap_or_else(|| text.into())
}

/// Puts a value at a path, making what is missing; `None` when the path is none.
fn lay(file: &mut Document, path: &[&str], value: Value, source: &str) -> Option<()> {
    if path.len() > MAX_LEVELS || path.iter().any(|name| name.is_empty()) {
        return None;
    }
    let mut place = &mut file.tree;
    let mut at = Vec::new();
    let mut first_made = None;
    for name in path {
        let (below, step, made) = enter(place, name)?;
        at.push(step);
        if made && first_made.is_none() {
            first_made = Some(at.len());
        }
        place = below;
    }
    *place = value;
    at.truncate(first_made.unwrap_or(at.len()));
    file.laid_on.push((at, source.to_owned()));
    Some(())
}

/// The place under a name or an item's number, the step to it, and whether it had to be made.
fn enter<'t>(place: &'t mut Value, name: &str) -> Option<(&'t mut Value, Step, bool)> {
    if place.is_null() && name == "0" {
        *place = Value::Sequence(Vec::new());
    } else if !place.is_mapping() && !place.is_sequence() {
        *place = Mapping::new().into();
    }
    match place {
        Value::Sequence(items) => {
            let n = name.parse::<usize>().ok()?;
            let made = n == items.len();
            if made {
                items.push(Value::Null);
            }
            Some((items.get_mut(n)?, Step::Item(n), made))
        }
        Value::Mapping(map) => {
            let made = !map.contains_key(name);
            let below = map.entry(name.into()).or_insert(Value::Null);
            Some((below, Step::Key(name.to_owned()), made))
        }
        _ => None,
    }
}

/// The backends that a flag or the environment names instead of the file's.
pub(super) fn named_backends(sources: &Sources) -> Option<Document> {
    let flag = sources.flags.backends.as_deref();
    flag.and_then(|urls| url_list(urls, "--backends"))
        .or_else(|| from_env(sources, "COMFYGATE_BACKENDS"))
}

/// The backups that the environment adds.
pub(super) fn backups(sources: &Sources) -> Option<Document> {
    from_env(sources, "COMFYGATE_BACKUPS")
}

fn from_env(sources: &Sources, name: &str) -> Option<Document> {
    sources.env.get(name).and_then(|urls| url_list(urls, name))
}

/// A list of URLs, separated by commas; none when it is empty.
fn url_list(urls: &str, source: &str) -> Option<Document> {
    let urls = urls.split(',').map(str::trim).filter(|url| !url.is_empty());
    let urls: Vec<Value> = urls.map(Value::from).collect();
    (!urls.is_empty()).then(|| Document {
        tree: urls.into(),
        text: String::new(),
        prefix: "backends",
        source: Some(source.to_owned()),
        laid_on: Vec::new(),
    })
}
