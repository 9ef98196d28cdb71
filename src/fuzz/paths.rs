//! Names of files and folders: user data, uploads, outputs under `@NAME`.

use std::path::{Component, Path};

use serde_json::{Value, json};

use super::bytes::Input;
use crate::comfy::paths::{inside, split_annotation, split_suffix};
use crate::pool::files::place::{Folder, MAX_PATH, Place};
use crate::pool::files::prefix;
use crate::pool::userdata::{Route, place_below};

fn stays(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// The first line is a subfolder, the second one a name; both together a query and a path.
pub fn paths(data: &[u8]) {
    let mut input = Input(data);
    let (Ok(folder), Ok(name)) =
        (std::str::from_utf8(input.line()), std::str::from_utf8(input.line()))
    else {
        return;
    };
    for text in [folder, name] {
        if let Some(path) = place_below(text) {
            assert!(stays(&path) && !path.to_string_lossy().contains('\0'), "{text:?}");
        }
        if let Some(path) = inside(Path::new("/base"), text) {
            assert!(
                path.starts_with("/base") && !path.components().any(|c| c == Component::ParentDir)
            );
        }
        let (stem, suffix) = split_suffix(text);
        assert_eq!(format!("{stem}{suffix}"), text);
        let (bare, annotation) = split_annotation(text);
        assert!(text.starts_with(bare) && (annotation.is_some() || bare == text));
        for prefix in ["", "/api"] {
            let path = format!("{prefix}/userdata/{text}");
            if let Some(Route::File(name)) = Route::of(&path) {
                assert!(!name.is_empty());
                assert!(place_below(&name).is_none_or(|path| stays(&path)));
            }
        }
    }
    place(folder, name);
    query(folder, name);
    marked(folder, name);
}

fn place(folder: &str, name: &str) {
    let Some(place) = Place::new(Folder::Output, folder, name) else { return };
    assert!(stays(Path::new(place.path())) && place.path().len() <= MAX_PATH + 1);
    assert!(!place.path().contains(char::is_control));
    assert!(!place.path().split(['/', '\\']).any(|part| part == ".."), "on Windows neither");
    let again = Place::new(Folder::Output, place.subfolder(), place.name());
    assert_eq!(again.as_ref(), Some(&place), "its parts name it");
    assert_eq!(Place::annotated(&place.to_annotated(), Folder::Input).as_ref(), Some(&place));
    if let Some(numbered) = place.numbered(7) {
        assert_eq!((numbered.subfolder(), numbered.folder()), (place.subfolder(), place.folder()));
        assert_ne!(numbered, place);
    }
}

/// A prefix is taken off, and nothing else changes.
fn query(folder: &str, name: &str) {
    let target = format!("/view?filename={name}&subfolder={folder}&type=output");
    let Some((backend, sent)) = prefix::in_query(&target) else { return };
    assert_eq!(prefix::split(&format!("@{backend}")), Some((&*backend, "")));
    assert!(sent.len() < target.len() && sent.starts_with("/view?filename="));
    let same = target.bytes().zip(sent.bytes()).take_while(|(a, b)| a == b).count();
    let behind = target.bytes().rev().zip(sent.bytes().rev()).take_while(|(a, b)| a == b).count();
    assert!(same + behind >= sent.len(), "one piece is cut out");
}

/// What is marked names the backend, and the backend's own name for it comes back.
fn marked(folder: &str, name: &str) {
    let mut value = json!([{"filename": name, "subfolder": folder, "type": "output"}, folder]);
    let before = value.clone();
    prefix::mark(&mut value, "gpu-1");
    let marked = value[0]["subfolder"].as_str().unwrap_or_default();
    let own = folder.trim_start_matches('/');
    assert_eq!(prefix::split(marked), Some(("gpu-1", own)));
    value[0]["subfolder"] = Value::from(folder);
    assert_eq!(value, before, "nothing else changes");
}
