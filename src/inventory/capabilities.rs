//! What a backend can do: its nodes and models, out of `GET /object_info`.
//!
//! The reply is read as a stream and only names are kept: of the node classes, and of the models
//! that the nodes' lists of choices offer. Those lists also hold samplers, schedulers and input
//! files, so that a model is what ends like the file of one.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// Nodes at most; large installations have about 5,000.
pub const MAX_NODES: usize = 20_000;
/// Models at most.
pub const MAX_MODELS: usize = 50_000;
/// Bytes of a name at most; a longer one is left out.
pub const MAX_NAME: usize = 256;

/// How files of models end: what ComfyUI itself loads, and what wide-spread nodes do.
const ENDINGS: [&str; 12] = [
    ".safetensors",
    ".ckpt",
    ".pt",
    ".pt2",
    ".pth",
    ".bin",
    ".pkl",
    ".sft",
    ".gguf",
    ".onnx",
    ".engine",
    ".trt",
];

/// Names of nodes and models.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// The node classes.
    pub nodes: BTreeSet<Box<str>>,
    /// The models, by the names that prompts use, with `/` between folders.
    pub models: BTreeSet<Box<str>>,
    /// Those of the node classes whose results end a workflow.
    pub outputs: BTreeSet<Box<str>>,
}

impl Capabilities {
    /// Reads a reply to `/object_info`. Wrong shapes inside are passed over; what is no JSON, or
    /// names no node at all, is an error.
    pub fn read(reply: impl Read) -> Result<Self, serde_json::Error> {
        let mut found = Self::default();
        let mut json = serde_json::Deserializer::from_reader(reply);
        Walk { at: At::Root, class: "", found: &mut found }.deserialize(&mut json)?;
        json.end()?;
        if found.nodes.is_empty() {
            return Err(serde_json::Error::custom("it names no nodes"));
        }
        Ok(found)
    }

    fn node(&mut self, name: &str) {
        if self.nodes.len() < MAX_NODES && name.len() <= MAX_NAME {
            self.nodes.insert(name.into());
        }
    }

    fn output(&mut self, name: &str) {
        if self.nodes.contains(name) {
            self.outputs.insert(name.into());
        }
    }

    fn choice(&mut self, name: &str) {
        if self.models.len() < MAX_MODELS && name.len() <= MAX_NAME && is_model(name) {
            // Windows writes folders with a backslash.
            self.models.insert(name.replace('\\', "/").into());
        }
    }
}

/// Whether a name ends like the file of a model.
pub(crate) fn is_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// A place in the reply: `{class: {"input": {"required": {name: spec}}}}`, a spec being
/// `[["a", "b"], {…}]` or `["COMBO", {"options": ["a", "b"]}]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Root,
    Class,
    Inputs,
    Group,
    Spec,
    SpecItem,
    Choices,
    Choice,
}

/// Walks through a value at a place, noting names. Values of shapes that have no business there
/// are passed over.
struct Walk<'a> {
    at: At,
    /// The class that the walk is in.
    class: &'a str,
    found: &'a mut Capabilities,
}

impl Walk<'_> {
    fn below(&mut self, at: At) -> Walk<'_> {
        Walk { at, class: self.class, found: self.found }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let next = match (self.at, key.as_str()) {
                (At::Root, name) => {
                    self.found.node(name);
                    At::Class
                }
                (At::Class, "input") => At::Inputs,
                (At::Class, "output_node") => {
                    if map.next_value::<serde_json::Value>()? == true {
                        self.found.output(self.class);
                    }
                    continue;
                }
                (At::Inputs, "required" | "optional") => At::Group,
                (At::Group, _) => At::Spec,
                (At::SpecItem, "options") => At::Choices,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let class = if self.at == At::Root { key.as_str() } else { self.class };
            map.next_value_seed(Walk { at: next, class, found: self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let next = match self.at {
            At::Spec => At::SpecItem,
            At::SpecItem | At::Choices => At::Choice,
            _ => {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(());
            }
        };
        while list.next_element_seed(self.below(next))?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if self.at == At::Choice {
            self.found.choice(text);
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(reply: &str) -> Result<Capabilities, serde_json::Error> {
        Capabilities::read(reply.as_bytes())
    }

    fn names(set: &BTreeSet<Box<str>>) -> Vec<&str> {
        set.iter().map(AsRef::as_ref).collect()
    }

    #[test]
    fn nodes_and_models_are_found_in_old_and_new_forms() {
        let reply = json!({
            "Loader": {"input": {"required": {"ckpt": [["a.safetensors", "sub\\b.CKPT"], {}]},
                "optional": {"vae": ["COMBO", {"options": ["v.pt", "none"]}]}},
                "output": ["x.safetensors"]},
            "KSampler": {"input": {"required": {"sampler": [["euler", "ddim"]],
                "steps": ["INT", {"default": 20, "tooltip": "t.pt"}]},
                "hidden": {"x": [["hidden.pt"]]}}},
            "LoadImage": {"input": {"required": {"image": [["photo.png"]]}}},
        });
        let found = read(&reply.to_string()).unwrap();
        assert_eq!(names(&found.nodes), ["KSampler", "LoadImage", "Loader"]);
        assert_eq!(names(&found.models), ["a.safetensors", "sub/b.CKPT", "v.pt"]);
    }

    #[test]
    fn wrong_shapes_inside_are_passed_over() {
        let reply = json!({"A": 1, "B": null, "C": {"input": []}, "D": {"input": {"required": "x"}},
            "E": {"input": {"required": {"x": {"y": 1}, "y": [[1, null, ["n.pt"], {"a": 1}, "m.pt"]],
                "z": [true, -1, 1.5]}}}});
        let found = read(&reply.to_string()).unwrap();
        assert_eq!(names(&found.nodes), ["A", "B", "C", "D", "E"]);
        assert_eq!(names(&found.models), ["m.pt"]);
    }

    #[test]
    fn what_is_no_object_info_is_an_error() {
        for odd in ["", "{", "[]", "{}", "null", "{\"A\": {}} x", "{\"A\": {\"input\": {"] {
            assert!(read(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn names_and_lists_are_bounded() {
        let mut reply = serde_json::Map::new();
        for n in 0..MAX_NODES + 10 {
            reply.insert(format!("Node{n}"), json!({}));
        }
        reply.insert("x".repeat(MAX_NAME + 1), json!({}));
        let found = read(&serde_json::Value::from(reply).to_string()).unwrap();
        assert_eq!(found.nodes.len(), MAX_NODES);
        let long = format!("{}.pt", "x".repeat(MAX_NAME));
        let found = read(&json!({"A": {"input": {"required": {"m": [[long]]}}}}).to_string());
        assert!(found.unwrap().models.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in r#"[\[\]{}":,a-z.0-9 -]{0,120}"#) {
            let _ = read(&text);
        }

        #[test]
        fn any_value_may_stand_anywhere(depth in 0..200_usize) {
            // Deep nesting is refused by the parser, never a stack that overflows.
            let deep = format!("{{\"A\": {{\"input\": {}1{}}}}}", "[".repeat(depth), "]".repeat(depth));
            prop_assert!(read(&deep).is_ok() || depth > 100);
        }
    }
}
