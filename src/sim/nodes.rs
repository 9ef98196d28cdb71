//! The node table: what `/object_info` shows and validation reads, as recorded, so that a node
//! is described once, in `recorded.json`. What a node does when run is in [`super::worker`].
//!
//! A server may be told to lack nodes, and to have models: then it also has the loader that lists
//! them, and `PacedImage` takes what that loads, so that a prompt can need a model.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::reply::object;

static RECORDED: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    object(serde_json::from_str(include_str!("recorded.json")).unwrap_or_default())
});

/// A recorded constant: `object_info`, `system_stats`, `extensions`, `models`, …
pub(super) fn recorded(name: &str) -> &'static Value {
    RECORDED.get(name).unwrap_or(&Value::Null)
}

/// The node that lists models.
pub(super) const LOADER: &str = "CheckpointLoaderSimple";

/// The nodes of one server.
#[derive(Debug)]
pub(super) struct Nodes(Map<String, Value>);

impl Nodes {
    /// The recorded nodes but for those `without`, and a loader when there are `models`.
    pub(super) fn new(without: &[String], models: &[String]) -> Self {
        let mut table = recorded("object_info").as_object().cloned().unwrap_or_default();
        if !models.is_empty() {
            table.insert(LOADER.to_owned(), loader(models));
            let input = table.get_mut("PacedImage").and_then(|node| node.get_mut("input"));
            if let Some(input) = input {
                input["optional"] = json!({"model": ["MODEL", {}]});
            }
        }
        table.retain(|name, _| !without.contains(name));
        Self(table)
    }

    /// The names of all nodes, in the table's order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The node of this name.
    pub(super) fn class(&self, name: &str) -> Option<Class<'_>> {
        self.0.get(name).map(Class)
    }

    /// `/object_info` of one node; `images` are the files `LoadImage` offers.
    pub(super) fn info(&self, name: &str, images: &[String]) -> Option<Value> {
        let mut info = self.0.get(name)?.clone();
        if name == "LoadImage"
            && let Some(choices) = info.pointer_mut("/input/required/image/0")
        {
            *choices = images.into();
        }
        Some(info)
    }
}

fn loader(models: &[String]) -> Value {
    json!({
        "input": {"required": {"ckpt_name": [models, {"tooltip": "The name of the checkpoint (model) to load."}]}},
        "input_order": {"required": ["ckpt_name"]},
        "output": ["MODEL", "CLIP", "VAE"], "output_is_list": [false, false, false],
        "output_name": ["MODEL", "CLIP", "VAE"], "name": LOADER,
        "display_name": "Load Checkpoint", "description": "", "python_module": "nodes",
        "category": "loaders", "output_node": false,
    })
}

/// One node of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class<'a>(&'a Value);

impl Class<'static> {
    /// The recorded node of this name, whatever a server has.
    pub(super) fn of(name: &str) -> Option<Self> {
        recorded("object_info").get(name).map(Self)
    }
}

impl<'a> Class<'a> {
    /// Whether its results end a workflow.
    pub(super) fn is_output(self) -> bool {
        self.0["output_node"].as_bool().unwrap_or_default()
    }

    /// The type of its result at `slot`.
    pub(super) fn output(self, slot: usize) -> Option<&'a str> {
        self.0["output"].get(slot).and_then(Value::as_str)
    }

    /// Its inputs: name, `[type, options]`, whether required. Hidden ones are left out.
    pub(super) fn inputs(self) -> impl Iterator<Item = (&'a str, &'a Value, bool)> {
        let of = |group: &'static str, required: bool| {
            let inputs = self.0["input"].get(group).and_then(Value::as_object);
            inputs.into_iter().flatten().map(move |(name, spec)| (name.as_str(), spec, required))
        };
        of("required", true).chain(of("optional", false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_nodes_are_there() {
        let nodes = Nodes::new(&[], &[]);
        let names: Vec<_> = nodes.names().collect();
        assert_eq!(names, ["EmptyImage", "LoadImage", "SaveImage", "PreviewImage", "PacedImage"]);
        assert_eq!(&Value::from(nodes.0), recorded("object_info"));
        let save = Class::of("SaveImage").unwrap();
        assert!(save.is_output());
        let inputs: Vec<_> = save.inputs().map(|(name, ..)| name).collect();
        assert_eq!(inputs, ["images", "filename_prefix"]);
        assert!(!recorded("node_traceback").is_null());
    }

    #[test]
    fn load_image_offers_the_input_files() {
        let info = Nodes::new(&[], &[]).info("LoadImage", &["a.png".to_owned()]).unwrap();
        assert_eq!(info["input"]["required"]["image"][0], json!(["a.png"]));
    }

    #[test]
    fn a_server_may_lack_nodes_and_have_models() {
        let nodes = Nodes::new(&["LoadImage".to_owned()], &["a.safetensors".to_owned()]);
        assert!(nodes.class("LoadImage").is_none() && nodes.info("LoadImage", &[]).is_none());
        let loader = nodes.info(LOADER, &[]).unwrap();
        assert_eq!(loader["input"]["required"]["ckpt_name"][0], json!(["a.safetensors"]));
        let last = nodes.class("PacedImage").unwrap().inputs().last();
        assert_eq!(last, Some(("model", &json!(["MODEL", {}]), false)));
    }
}
