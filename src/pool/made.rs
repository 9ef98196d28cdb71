//! Which files a caller's own jobs made: who asks for one without its prefix means that one.
//!
//! The newest [`PER_CALLER`] of each of the [`CALLERS`] callers that were heard of last, in memory;
//! what an earlier process saw is forgotten, and then only a file of which there is just one is
//! found without its prefix.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use serde_json::Value;

use super::files::place::{Folder, Place};
use super::files::prefix;
use crate::identity::ClientKey;

/// Files of one caller that are remembered.
const PER_CALLER: usize = 500;
/// Callers that are remembered.
const CALLERS: usize = 2000;

/// The files of all callers.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    callers: HashMap<ClientKey, VecDeque<(Box<str>, Place)>>,
    order: VecDeque<ClientKey>,
}

impl Made {
    /// Takes what a history entry, its files marked with their backend, says was made, and returns
    /// it with the backends' names.
    pub(super) fn took(&self, caller: ClientKey, entry: &[u8]) -> Vec<(Box<str>, Place)> {
        let mut files = Vec::new();
        if let Ok(entry) = crate::comfy::lenient::from_slice::<Value>(entry) {
            collect(&entry["outputs"], &mut files);
        }
        if !files.is_empty() {
            self.note(caller, &files);
        }
        files
    }

    fn note(&self, caller: ClientKey, files: &[(Box<str>, Place)]) {
        let mut inner = self.0.lock();
        if !inner.callers.contains_key(&caller) {
            inner.order.push_back(caller);
            if inner.order.len() > CALLERS
                && let Some(oldest) = inner.order.pop_front()
            {
                inner.callers.remove(&oldest);
            }
        }
        let made = inner.callers.entry(caller).or_default();
        made.extend(files.iter().cloned());
        let surplus = made.len().saturating_sub(PER_CALLER);
        made.drain(..surplus);
    }

    /// The names of the backends on which a caller's jobs made this file, the newest first.
    pub(super) fn by(&self, caller: ClientKey, place: &Place) -> Vec<Box<str>> {
        let inner = self.0.lock();
        let made = inner.callers.get(&caller).into_iter().flatten().rev();
        made.filter(|(_, made)| made == place).map(|(backend, _)| backend.clone()).collect()
    }

    /// What a caller's jobs made in a folder, the newest first, as `/internal/files` names it.
    pub(super) fn all(&self, caller: ClientKey, folder: Folder) -> Vec<String> {
        let inner = self.0.lock();
        let made = inner.callers.get(&caller).into_iter().flatten().rev();
        let made = made.filter(|(_, place)| place.folder() == folder);
        made.map(|(backend, place)| format!("@{backend}/{}", place.to_annotated())).collect()
    }
}

/// Finds the files in a value; as deep as JSON may nest, which its parser bounds.
fn collect(value: &Value, files: &mut Vec<(Box<str>, Place)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, files)),
        Value::Object(object) => {
            let text = |name: &str| object.get(name).and_then(Value::as_str);
            let named = text("filename").zip(text("subfolder")).zip(text("type"));
            if let Some(((filename, subfolder), kind)) = named
                && let Some((backend, rest)) = prefix::split(subfolder)
                && let Some(folder) = Folder::of(kind)
                && let Some(place) = Place::new(folder, rest, filename)
            {
                files.push((backend.into(), place));
            }
            object.values().for_each(|value| collect(value, files));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_of_a_caller_comes_first_and_nobody_elses() {
        let (one, other) = (ClientKey::from_bytes([1; 16]), ClientKey::from_bytes([2; 16]));
        let made = Made::default();
        for backend in ["a", "b"] {
            let file =
                json!({"filename": "x.png", "subfolder": format!("@{backend}"), "type": "output"});
            let entry = json!({"outputs": {"9": {"images": [file]}}}).to_string();
            made.took(one, entry.as_bytes());
        }
        let place = Place::new(Folder::Output, "", "x.png").unwrap();
        assert_eq!(made.by(one, &place), ["b".into(), "a".into()]);
        assert!(made.by(other, &place).is_empty());
        assert_eq!(made.all(one, Folder::Output), ["@b/x.png [output]", "@a/x.png [output]"]);
        assert!(made.all(other, Folder::Output).is_empty());
        assert!(made.all(one, Folder::Temp).is_empty());
        assert!(made.by(one, &Place::new(Folder::Temp, "", "x.png").unwrap()).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let made = Made::default();
        for n in 0..CALLERS + 10 {
            let key = ClientKey::from_bytes((n as u128).to_be_bytes());
            let files: Vec<_> = (0..PER_CALLER / 100)
                .map(|n| json!({"filename": format!("{n}"), "subfolder": "@a", "type": "temp"}))
                .collect();
            made.took(key, json!({"outputs": {"1": {"images": files}}}).to_string().as_bytes());
        }
        assert_eq!(made.0.lock().callers.len(), CALLERS);
    }
}
