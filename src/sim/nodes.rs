//! The node table: what `/object_info` shows and validation reads, as recorded, so that a node
//! is described once, in `recorded.json`. What a node does when run is in [`super::worker`].

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::reply::object;

static RECORDED: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    object(serde_json::from_str(include_str!("recorded.json")).unwrap_or_default())
});

/// A recorded constant: `object_info`, `system_stats`, `extensions`, `models`, …
pub(super) fn recorded(name: &str) -> &'static Value {
    RECORDED.get(name).unwrap_or(&Value::Null)
}

/// The names of all nodes, in the table's order.
pub(super) fn classes() -> impl Iterator<Item = &'static str> {
    recorded("object_info").as_object().into_iter().flat_map(|map| map.keys().map(String::as_str))
}

/// One node of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class(&'static Value);

impl Class {
    /// The node of this name.
    pub(super) fn of(name: &str) -> Option<Self> {
        recorded("object_info").get(name).map(Self)
    }

    /// Whether its results end a workflow.
    pub(super) fn is_output(self) -> bool {
        self.0["output_node"].as_bool().unwrap_or_default()
    }

    /// The type of its result at `slot`.
    pub(super) fn output(self, slot: usize) -> Option<&'static str> {
        self.0["output"].get(slot).and_then(Value::as_str)
    }

    /// Its inputs: name, `[type, options]`, whether required. Hidden ones are left out.
    pub(super) fn inputs(self) -> impl Iterator<Item = (&'static str, &'static Value, bool)> {
        let of = |group: &'static str, required: bool| {
            let inputs = self.0["input"].get(group).and_then(Value::as_object);
            inputs.into_iter().flatten().map(move |(name, spec)| (name.as_str(), spec, required))
        };
        of("required", true).chain(of("optional", false))
    }
}

/// `/object_info` of one node; `images` are the files `LoadImage` offers.
pub(super) fn info(name: &str, images: &[String]) -> Option<Value> {
    let mut info = recorded("object_info").get(name)?.clone();
    if name == "LoadImage"
        && let Some(choices) = info.pointer_mut("/input/required/image/0")
    {
        *choices = images.into();
    }
    Some(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_nodes_are_there() {
        let names: Vec<_> = classes().collect();
        assert_eq!(names, ["EmptyImage", "LoadImage", "SaveImage", "PreviewImage", "PacedImage"]);
        let save = Class::of("SaveImage").unwrap();
        assert!(save.is_output());
        let inputs: Vec<_> = save.inputs().map(|(name, ..)| name).collect();
        assert_eq!(inputs, ["images", "filename_prefix"]);
        assert!(!recorded("node_traceback").is_null());
    }

    #[test]
    fn load_image_offers_the_input_files() {
        let info = info("LoadImage", &["a.png".to_owned()]).unwrap();
        assert_eq!(info["input"]["required"]["image"][0], serde_json::json!(["a.png"]));
    }
}
