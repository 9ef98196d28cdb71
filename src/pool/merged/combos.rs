//! The lists of choices in a node's inputs, and uniting them. Pure.
//!
//! Both forms are known: `[["a", "b"], {…}]` and `["COMBO", {"options": ["a", "b"]}]`.

use std::collections::HashSet;

use serde_json::Value;

/// Choices of one list at most.
pub const MAX_CHOICES: usize = 200_000;

/// What an upload widget takes. An option of the input names it.
const UPLOADS: [(&str, &[&str]); 5] = [
    ("image_upload", &["image"]),
    ("animated_image_upload", &["image"]),
    ("video_upload", &["video"]),
    ("audio_upload", &["audio", "video"]),
    ("upload", &[]),
];

/// Adds to a node's lists the choices that the same lists have in another server's node.
pub fn unite(node: &mut Value, other: &Value) {
    each_input(node, |group, name, spec| {
        let theirs = other.get("input").and_then(|input| input.get(group)?.get(name));
        if let (Some(theirs), Some(ours)) = (theirs.and_then(choices), choices_mut(spec)) {
            add(ours, theirs.iter());
        }
    });
}

/// Adds files that were uploaded to the lists of the inputs that take such files.
pub fn add_uploads(node: &mut Value, files: &[String]) {
    each_input(node, |_, _, spec| {
        let Some(kinds) = upload_kinds(spec) else { return };
        if let Some(choices) = choices_mut(spec) {
            let fitting = files.iter().filter(|file| fits(file, kinds));
            let fitting: Vec<Value> = fitting.map(|file| file.as_str().into()).collect();
            add(choices, fitting.iter());
        }
    });
}

/// Whether a node's text may have an input that takes uploads: cheaper than reading it.
pub fn may_take_uploads(text: &str) -> bool {
    text.contains("upload\"")
}

fn each_input(node: &mut Value, mut with: impl FnMut(&str, &str, &mut Value)) {
    for group in ["required", "optional"] {
        let inputs = node.get_mut("input").and_then(|input| input.get_mut(group));
        for (name, spec) in inputs.and_then(Value::as_object_mut).into_iter().flatten() {
            with(group, name, spec);
        }
    }
}

fn choices(spec: &Value) -> Option<&Vec<Value>> {
    match spec.get(0)? {
        Value::Array(choices) => Some(choices),
        Value::String(_) => spec.get(1)?.get("options")?.as_array(),
        _ => None,
    }
}

fn choices_mut(spec: &mut Value) -> Option<&mut Vec<Value>> {
    if spec.get(0)?.is_array() {
        return spec.get_mut(0)?.as_array_mut();
    }
    spec.get_mut(1)?.get_mut("options")?.as_array_mut()
}

/// Appends those that are not there yet, in their order.
fn add<'a>(ours: &mut Vec<Value>, theirs: impl Iterator<Item = &'a Value>) {
    let mut known: HashSet<String> = ours.iter().map(Value::to_string).collect();
    for choice in theirs {
        if ours.len() < MAX_CHOICES && known.insert(choice.to_string()) {
            ours.push(choice.clone());
        }
    }
}

/// The media that an input takes as uploads; empty: any. `None` when it takes none, or lists
/// another folder than that of the inputs.
fn upload_kinds(spec: &Value) -> Option<&'static [&'static str]> {
    let options = spec.get(1)?;
    if options.get("image_folder").is_some_and(|folder| folder != "input") {
        return None;
    }
    let set = |name: &str| options.get(name).is_some_and(|on| on != false && !on.is_null());
    UPLOADS.iter().find(|(name, _)| set(name)).map(|(_, kinds)| *kinds)
}

/// Whether ComfyUI would list a file there: it lists the top of the folder.
fn fits(file: &str, kinds: &[&str]) -> bool {
    let is_kind = || {
        let guessed = mime_guess::from_path(file).first_raw().unwrap_or_default();
        kinds.iter().any(|kind| guessed.split('/').next() == Some(kind))
    };
    !file.contains('/') && (kinds.is_empty() || is_kind())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn node(required: Value, optional: Value) -> Value {
        let mut input = json!({});
        (input["required"], input["optional"]) = (required, optional);
        let mut node = json!({"name": "N"});
        node["input"] = input;
        node
    }

    #[test]
    fn lists_of_both_forms_are_united_in_a_stable_order() {
        let mut first = node(
            json!({"ckpt": [["b", "a"], {"tooltip": "first"}], "steps": ["INT", {"max": 9}]}),
            json!({"vae": ["COMBO", {"options": ["x"], "default": "x"}], "new": ["COMBO", {"remote": 1}]}),
        );
        let second = node(
            json!({"ckpt": ["COMBO", {"options": ["c", "a"]}], "steps": ["INT", {"max": 5}], "only": [["z"]]}),
            json!({"vae": [["y", "x", 3]], "new": ["COMBO", {"options": ["n"]}]}),
        );
        unite(&mut first, &second);
        let united = node(
            json!({"ckpt": [["b", "a", "c"], {"tooltip": "first"}], "steps": ["INT", {"max": 9}]}),
            json!({"vae": ["COMBO", {"options": ["x", "y", 3], "default": "x"}], "new": ["COMBO", {"remote": 1}]}),
        );
        assert_eq!(first, united);
    }

    #[test]
    fn uploads_are_offered_where_they_fit() {
        let files = ["new.png", "clip.mp4", "sound.wav", "sub/deep.png", "notes"].map(String::from);
        let mut load = node(
            json!({"image": [["old.png"], {"image_upload": true}], "plain": [["a.png"], {}]}),
            json!({"clip": ["COMBO", {"options": [], "video_upload": true}],
                "sound": [[], {"audio_upload": true}], "off": [[], {"image_upload": false}],
                "any": [[], {"upload": true}],
                "made": [[], {"image_upload": true, "image_folder": "output"}]}),
        );
        add_uploads(&mut load, &files);
        let input = &load["input"];
        assert_eq!(input["required"]["image"][0], json!(["old.png", "new.png"]));
        assert_eq!(input["required"]["plain"][0], json!(["a.png"]));
        let optional = &input["optional"];
        assert_eq!(optional["clip"][1]["options"], json!(["clip.mp4"]));
        assert_eq!(optional["sound"][0], json!(["clip.mp4", "sound.wav"]));
        assert_eq!(optional["off"][0], json!([]));
        assert_eq!(optional["any"][0], json!(["new.png", "clip.mp4", "sound.wav", "notes"]));
        assert_eq!(optional["made"][0], json!([]));
        assert!(may_take_uploads(&load.to_string()) && !may_take_uploads("{\"input\": {}}"));
    }

    proptest! {
        #[test]
        fn a_union_has_each_choice_once_and_keeps_the_order(
            a in prop::collection::vec(0u8..9, 0..9), b in prop::collection::vec(0u8..9, 0..9),
        ) {
            let list = |choices: &[u8]| node(json!({"x": [choices]}), json!({}));
            let unique = |choices: &[u8]| {
                let mut seen = HashSet::new();
                choices.iter().copied().filter(|choice| seen.insert(*choice)).collect::<Vec<_>>()
            };
            let (a, b) = (unique(&a), unique(&b));
            let mut united = list(&a);
            unite(&mut united, &list(&b));
            let expected = unique(&[a, b].concat());
            prop_assert_eq!(&united["input"]["required"]["x"][0], &json!(expected));
            let again = united.clone();
            unite(&mut united, &again);
            prop_assert_eq!(united, again);
        }

        #[test]
        fn odd_shapes_never_panic(text in r#"(\{"input":)?[\[\]{}":,a-z0-9 ]{0,60}"#) {
            let node: Value = serde_json::from_str(&text).unwrap_or(json!([text]));
            let mut other = json!({"input": {"required": {"x": node, "y": [[1], node]}}});
            let copy = other.clone();
            unite(&mut other, &node);
            unite(&mut other, &copy);
            add_uploads(&mut other, &["a.png".to_owned()]);
        }
    }
}
