//! Which files a prompt names, and how it says so.
//!
//! Outputs are named by strings such as `@NAME/sub/a.png [output]` and by objects
//! `{filename, subfolder: "@NAME/sub", type}`; uploads by any string or object that says just what
//! the store has. What is only like a name stays as it is: the server's word on it is final.

use std::collections::BTreeSet;

use super::place::{Folder, MAX_PATH, Place};
use super::prefix;
use super::scan::{self, FileObject, Found, Span, Text};
use super::uploads::Uploads;
use crate::comfy::paths::split_annotation;

/// A file that a prompt names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Named {
    /// One that the store has.
    Kept(Place),
    /// One that a backend made, by the backend's name and its own place there.
    Made(String, Place),
    /// One that some backend made, without a word of which.
    Loose(Place),
}

/// A place in a prompt's text that names a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Which file.
    pub named: Named,
    spot: Spot,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Spot {
    Text(Span),
    Object { filename: Span, subfolder: Span, folder: Span },
}

impl Reference {
    /// The edits that make it name `place` instead.
    pub fn renamed(&self, place: &Place) -> Vec<(Span, String)> {
        match &self.spot {
            Spot::Text(span) => vec![(span.clone(), place.to_annotated())],
            Spot::Object { filename, subfolder, folder } => vec![
                (filename.clone(), place.name().to_owned()),
                (subfolder.clone(), place.subfolder().to_owned()),
                (folder.clone(), place.folder().name().to_owned()),
            ],
        }
    }

    /// The edits that make it name nothing: no server has a folder of this name.
    pub fn nobodys(&self) -> Vec<(Span, String)> {
        let Named::Loose(place) = &self.named else { return Vec::new() };
        match &self.spot {
            Spot::Text(span) => vec![(span.clone(), format!("@?/{}", place.to_annotated()))],
            Spot::Object { subfolder, .. } => {
                vec![(subfolder.clone(), prefix::join("?", place.subfolder()))]
            }
        }
    }
}

/// Every reference to a file in a prompt's body.
pub fn references(body: &[u8], uploads: &Uploads) -> Vec<Reference> {
    let mut all = Vec::new();
    scan::inputs(body, |found| {
        all.extend(match found {
            Found::Text(text) => of_text(text, uploads),
            Found::Object(file) => of_object(file, uploads),
        });
    });
    all
}

/// The uploads that a prompt names.
pub fn named_inputs(body: &[u8], uploads: &Uploads) -> BTreeSet<Place> {
    let all = references(body, uploads).into_iter();
    all.filter_map(|reference| match reference.named {
        Named::Kept(place) => Some(place),
        _ => None,
    })
    .collect()
}

/// The backends whose outputs a prompt names.
pub fn named_backends(body: &[u8], uploads: &Uploads) -> BTreeSet<String> {
    let all = references(body, uploads).into_iter();
    all.filter_map(|reference| match reference.named {
        Named::Made(backend, _) => Some(backend),
        _ => None,
    })
    .collect()
}

fn of_text(text: Text<'_>, uploads: &Uploads) -> Option<Reference> {
    if text.text.len() > 2 * MAX_PATH {
        return None;
    }
    let (name, folder) = split_annotation(&text.text);
    let folder = folder.and_then(Folder::of).unwrap_or(Folder::Input);
    let named = named(folder, "", name, uploads)?;
    Some(Reference { named, spot: Spot::Text(text.span) })
}

fn of_object(file: FileObject<'_>, uploads: &Uploads) -> Option<Reference> {
    let (filename, subfolder, folder) = (file.filename?, file.subfolder?, file.folder?);
    let named = named(Folder::of(&folder.text)?, &subfolder.text, &filename.text, uploads)?;
    let (filename, subfolder) = (filename.span, subfolder.span);
    Some(Reference { named, spot: Spot::Object { filename, subfolder, folder: folder.span } })
}

fn named(folder: Folder, subfolder: &str, name: &str, uploads: &Uploads) -> Option<Named> {
    let place = Place::new(folder, subfolder, name)?;
    if uploads.has(&place) {
        return Some(Named::Kept(place));
    }
    if folder == Folder::Input {
        return None;
    }
    match prefix::split(place.path()) {
        Some((backend, rest)) => {
            Some(Named::Made(backend.to_owned(), Place::new(folder, "", rest)?))
        }
        None => Some(Named::Loose(place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn made(path: &str, folder: Folder) -> Named {
        Named::Made("gpu".to_owned(), Place::new(folder, "", path).unwrap())
    }

    fn changed(body: &Value, place: &Place) -> Value {
        let directory = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(directory.path(), 1000).unwrap();
        let body = body.to_string();
        let all = references(body.as_bytes(), &uploads);
        let edits = all.iter().flat_map(|reference| reference.renamed(place)).collect();
        serde_json::from_slice(&scan::replace(body.as_bytes(), edits)).unwrap()
    }

    #[test]
    fn outputs_are_named_by_strings_and_by_objects() {
        let directory = tempfile::tempdir().unwrap();
        let uploads = Uploads::open(directory.path(), 1000).unwrap();
        let body = json!({"prompt": {"1": {"inputs": {
            "a": "@gpu/x/a.png [output]",
            "b": {"filename": "b.png", "subfolder": "@gpu", "type": "temp", "n": 1},
            "c": "c.png [temp]",
            "d": "@gpu/d.png", "e": "e [output", "f": "/f [output]", "g": ["1", 0],
        }}}});
        let all = references(body.to_string().as_bytes(), &uploads);
        let named: Vec<Named> = all.into_iter().map(|reference| reference.named).collect();
        let loose = Named::Loose(Place::new(Folder::Temp, "", "c.png").unwrap());
        assert_eq!(named, [made("x/a.png", Folder::Output), made("b.png", Folder::Temp), loose]);
        let text = body.to_string();
        assert_eq!(named_backends(text.as_bytes(), &uploads), ["gpu".to_owned()].into());
    }

    #[test]
    fn a_reference_is_renamed_in_its_own_form() {
        let place = Place::new(Folder::Input, "s", "n.png").unwrap();
        let file = |name, sub, folder| json!({"filename": name, "subfolder": sub, "type": folder});
        let body = |a: &str, b| json!({"prompt": {"1": {"inputs": {"a": a, "b": b}}}, "x": a});
        let given = body("@gpu/a [output]", file("b", "@gpu", "temp"));
        let mut expected = body("s/n.png [input]", file("n.png", "s", "input"));
        expected["x"] = json!("@gpu/a [output]");
        assert_eq!(changed(&given, &place), expected);
    }
}
