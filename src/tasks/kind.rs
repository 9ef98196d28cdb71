//! What kind of work a prompt is: the multiset of its node types and the models it names.
//!
//! Prompts of one kind take about the same time on one backend, whatever their seeds and texts
//! say, so that is what times are learnt by.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sha2::{Digest, Sha256};

use crate::comfy::lenient;

/// What the names of model files end with.
const MODELS: [&str; 6] = [".safetensors", ".ckpt", ".pt", ".pth", ".gguf", ".bin"];
/// Characters of a label.
const MAX_LABEL: usize = 80;
/// Node types or models that a label names.
const NAMED: usize = 3;

/// A kind of prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// Equal for equal kinds, in every process.
    pub hash: u64,
    /// For people.
    pub label: Arc<str>,
}

#[derive(Deserialize)]
struct Body {
    prompt: HashMap<String, Node>,
}

#[derive(Deserialize)]
struct Node {
    class_type: String,
    #[serde(default)]
    inputs: Models,
}

/// The names of models in a value, however deep.
#[derive(Default)]
struct Models(Vec<String>);

impl<'de> Deserialize<'de> for Models {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ModelNames)
    }
}

struct ModelNames;

impl<'de> Visitor<'de> for ModelNames {
    type Value = Models;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Models, E> {
        Ok(Models(if is_model(text) { vec![text.to_owned()] } else { Vec::new() }))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Models, E> {
        Ok(Models::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Models, E> {
        Ok(Models::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Models, E> {
        Ok(Models::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Models, E> {
        Ok(Models::default())
    }

    fn visit_unit<E>(self) -> Result<Models, E> {
        Ok(Models::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Models, A::Error> {
        let mut all = Models::default();
        while let Some(Models(names)) = items.next_element()? {
            all.0.extend(names);
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Models, A::Error> {
        let mut all = Models::default();
        while let Some((IgnoredAny, Models(names))) = entries.next_entry()? {
            all.0.extend(names);
        }
        Ok(all)
    }
}

/// Whether a text names the file of a model, as far as kinds go.
pub(crate) fn is_model(text: &str) -> bool {
    MODELS.iter().any(|end| text.ends_with(end))
}

impl Kind {
    /// The kind of the prompt that a POST's body carries; `None` when it cannot be told.
    pub fn of(body: &[u8]) -> Option<Self> {
        let Body { prompt } = lenient::from_slice(body).ok()?;
        let (mut types, mut models) = (Vec::with_capacity(prompt.len()), Vec::new());
        for node in prompt.into_values() {
            types.push(node.class_type);
            models.extend(node.inputs.0);
        }
        Self::from_parts(types, models)
    }

    /// The kind of a prompt with these node types, one for each node, and models.
    pub(crate) fn from_parts(mut types: Vec<String>, mut models: Vec<String>) -> Option<Self> {
        let count = types.len();
        if count == 0 {
            return None;
        }
        types.sort_unstable();
        models.sort_unstable();
        models.dedup();
        let hash = hash(&types, &models);
        types.dedup();
        Some(Self { hash, label: label(count, &types, &models).into() })
    }
}

/// The first bytes of a SHA-256 over both lists, each name with its length.
fn hash(types: &[String], models: &[String]) -> u64 {
    let mut hasher = Sha256::new();
    for (list, names) in [(b"t", types), (b"m", models)] {
        for name in names {
            hasher.update(list);
            hasher.update((name.len() as u64).to_be_bytes());
            hasher.update(name);
        }
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

fn label(count: usize, types: &[String], models: &[String]) -> String {
    let names = if models.is_empty() { types } else { models };
    let mut label = format!("{count} nodes: {}", names[..names.len().min(NAMED)].join(", "));
    if names.len() > NAMED {
        label.push_str(", …");
    }
    label.chars().filter(|c| !c.is_control()).take(MAX_LABEL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn kind(prompt: &serde_json::Value) -> Kind {
        Kind::of(json!({"prompt": prompt, "client_id": "x"}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn seeds_texts_and_node_ids_make_no_other_kind() {
        let one = kind(&json!({"1": {"class_type": "A", "inputs": {"seed": 1, "text": "cat"}},
            "2": {"class_type": "B", "inputs": {"x": ["1", 0]}}}));
        let other = kind(&json!({"9": {"class_type": "B", "inputs": {"x": ["7", 0], "y": 1.5}},
            "7": {"class_type": "A", "_meta": {"title": "t"}, "inputs": {"text": "a dog"}}}));
        assert_eq!(one, other);
        assert_eq!(&*one.label, "2 nodes: A, B");
    }

    #[test]
    fn node_counts_and_models_do() {
        let node = |model: &str| json!({"class_type": "A", "inputs": {"m": {"deep": [model]}}});
        let plain = kind(&json!({"1": node("x")}));
        let doubled = kind(&json!({"1": node("x"), "2": node("x")}));
        let small = kind(&json!({"1": node("small.safetensors")}));
        let large = kind(&json!({"1": node("large.gguf")}));
        let hashes = [&plain, &doubled, &small, &large].map(|kind| kind.hash);
        for (at, hash) in hashes.iter().enumerate() {
            assert!(!hashes[at + 1..].contains(hash));
        }
        assert_eq!(&*large.label, "1 nodes: large.gguf");
    }

    #[test]
    fn the_hash_is_the_same_in_every_process() {
        let kind = kind(&json!({"1": {"class_type": "KSampler", "inputs": {}}}));
        assert_eq!(kind.hash, 0x2038_d622_fdfe_056a, "{:#x}", kind.hash);
    }

    #[test]
    fn what_is_no_prompt_has_no_kind() {
        for body in ["", "[]", r#"{"prompt": {}}"#, r#"{"prompt": {"1": {"inputs": {}}}}"#, "{"] {
            assert_eq!(Kind::of(body.as_bytes()), None, "{body}");
        }
        assert!(
            Kind::of(br#"{"prompt": {"1": {"class_type": "A", "inputs": {"x": NaN}}}}"#).is_some()
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Kind::of(&bytes);
        }
    }
}
