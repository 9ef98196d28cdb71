//! A prompt as a graph: which nodes to run in which order, and the cache of what nodes made,
//! keyed by what a node's result depends on.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::nodes::Class;
use super::picture::Picture;
use super::queue::Item;
use super::reply::python_json;

/// Signatures follow links this deep; validation has refused deeper graphs.
const MAX_DEPTH: usize = 128;

/// What a node made.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Its images.
    pub(super) images: Vec<Picture>,
    /// For output nodes: `meta`, and what the user interface shows.
    pub(super) ui: Option<(Value, Value)>,
}

/// Results of the last prompt's nodes. Like ComfyUI's default cache it holds no more than the
/// graph it saw last, which bounds it.
#[derive(Debug, Default)]
pub(super) struct NodeCache {
    made: HashMap<String, Arc<Made>>,
    /// Signatures of the current graph's nodes by id.
    keys: HashMap<String, String>,
}

impl NodeCache {
    /// Starts on a graph: drops what it does not use. `stamp` tells versions of an input file.
    pub(super) fn enter(&mut self, prompt: &Map<String, Value>, stamp: &dyn Fn(&str) -> String) {
        let mut keys = HashMap::with_capacity(prompt.len());
        for id in prompt.keys() {
            signature(prompt, id, stamp, &mut keys, 0);
        }
        self.made.retain(|key, _| keys.values().any(|used| used == key));
        self.keys = keys;
    }

    /// The ids of a graph whose results are there.
    pub(super) fn cached(&self, prompt: &Map<String, Value>) -> Vec<String> {
        prompt.keys().filter(|id| self.get(id).is_some()).cloned().collect()
    }

    /// What the node of this id made.
    pub(super) fn get(&self, id: &str) -> Option<Arc<Made>> {
        self.keys.get(id).and_then(|key| self.made.get(key)).cloned()
    }

    /// Keeps what the node of this id made.
    pub(super) fn put(&mut self, id: &str, made: Arc<Made>) {
        if let Some(key) = self.keys.get(id) {
            self.made.insert(key.clone(), made);
        }
    }
}

/// A digest of everything a node's result depends on.
fn signature(
    prompt: &Map<String, Value>,
    id: &str,
    stamp: &dyn Fn(&str) -> String,
    keys: &mut HashMap<String, String>,
    depth: usize,
) -> String {
    if let Some(known) = keys.get(id) {
        return known.clone();
    }
    let Some(node) = prompt.get(id).filter(|_| depth < MAX_DEPTH) else {
        return format!("absent {id}");
    };
    let mut digest = Sha256::new();
    digest.update(python_json(&node["class_type"]));
    let mut inputs: Vec<_> = node["inputs"].as_object().into_iter().flatten().collect();
    inputs.sort_by_key(|(name, _)| *name);
    for (name, value) in inputs {
        digest.update(format!("|{name}="));
        match link(value) {
            Some((from, slot)) => {
                digest.update(signature(prompt, from, stamp, keys, depth + 1));
                digest.update(slot.to_string());
            }
            None => digest.update(python_json(value)),
        }
    }
    if node["class_type"] == "LoadImage" {
        digest.update(stamp(node["inputs"]["image"].as_str().unwrap_or_default()));
    }
    let key = hex::encode(digest.finalize());
    keys.insert(id.to_owned(), key.clone());
    key
}

/// A value as a link: the node it comes from and the slot.
fn link(value: &Value) -> Option<(&str, u64)> {
    match value.as_array()?.as_slice() {
        [from, slot] => Some((from.as_str()?, slot.as_u64()?)),
        _ => None,
    }
}

/// The nodes still to run, in the order upstream picks them.
#[derive(Debug)]
pub(super) struct Plan {
    /// Not yet run, in the order they were found.
    waiting: Vec<String>,
    /// For a node, those that wait for it.
    blocks: HashMap<String, Vec<String>>,
    /// For a node, how many it waits for.
    blocked_by: HashMap<String, usize>,
    outputs: Vec<String>,
}

impl Plan {
    /// Plans what `item` wants, leaving out what the cache has, but for the outputs themselves.
    pub(super) fn new(item: &Item, cache: &NodeCache) -> Self {
        let is_output = |id: &&String| {
            let name = item.prompt[*id]["class_type"].as_str().unwrap_or_default();
            Class::of(name).is_some_and(Class::is_output)
        };
        let outputs = item.prompt.keys().filter(is_output).cloned().collect();
        let mut plan = Self {
            waiting: Vec::new(),
            blocks: HashMap::new(),
            blocked_by: HashMap::new(),
            outputs,
        };
        for output in &item.outputs {
            plan.add(&item.prompt, output, cache);
        }
        plan
    }

    fn add(&mut self, prompt: &Map<String, Value>, output: &str, cache: &NodeCache) {
        let mut stack = vec![output.to_owned()];
        while let Some(id) = stack.pop() {
            if self.waiting.contains(&id) {
                continue;
            }
            self.waiting.push(id.clone());
            self.blocked_by.insert(id.clone(), 0);
            let known = cache.get(&id).is_some();
            let inputs = prompt.get(&id).and_then(|node| node["inputs"].as_object());
            for (_, value) in inputs.into_iter().flatten() {
                let Some((from, _)) = link(value) else { continue };
                if known || cache.get(from).is_some() {
                    continue;
                }
                let blocked = self.blocks.entry(from.to_owned()).or_default();
                if !blocked.contains(&id) {
                    blocked.push(id.clone());
                    *self.blocked_by.entry(id.clone()).or_default() += 1;
                }
                stack.push(from.to_owned());
            }
        }
    }

    /// The next node: an output that can run, else one that leads to an output soon.
    pub(super) fn next(&self) -> Option<String> {
        let ready: Vec<&String> =
            self.waiting.iter().filter(|id| self.blocked_by.get(*id) == Some(&0)).collect();
        let picked = ready
            .iter()
            .find(|id| self.outputs.contains(id))
            .or_else(|| ready.iter().find(|id| self.leads_to_output(id)))
            .or_else(|| ready.first());
        picked.map(|id| (*id).clone())
    }

    fn leads_to_output(&self, id: &str) -> bool {
        self.blocks.get(id).into_iter().flatten().any(|next| self.outputs.contains(next))
    }

    /// A node has run.
    pub(super) fn done(&mut self, id: &str) {
        self.waiting.retain(|waiting| waiting != id);
        for next in self.blocks.remove(id).unwrap_or_default() {
            if let Some(count) = self.blocked_by.get_mut(&next) {
                *count = count.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn item(prompt: Value, outputs: &[&str]) -> Item {
        Item {
            number: json!(0),
            id: "p".to_owned(),
            prompt: super::super::reply::object(prompt),
            extra_data: Map::new(),
            outputs: outputs.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    fn graph(seed: u64) -> Value {
        json!({
            "1": {"class_type": "PacedImage", "inputs": {"seed": seed}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        })
    }

    fn order(item: &Item, cache: &NodeCache) -> Vec<String> {
        let mut plan = Plan::new(item, cache);
        let mut order = Vec::new();
        while let Some(id) = plan.next() {
            plan.done(&id);
            order.push(id);
        }
        order
    }

    #[test]
    fn nodes_run_after_those_they_need_and_once() {
        let item = item(graph(1), &["2", "3"]);
        assert_eq!(order(&item, &NodeCache::default()), ["1", "2", "3"]);
    }

    #[test]
    fn a_cached_graph_runs_only_its_outputs() {
        let item = item(graph(1), &["2", "3"]);
        let mut cache = NodeCache::default();
        cache.enter(&item.prompt, &|_| String::new());
        for id in ["1", "2", "3"] {
            cache.put(id, Arc::default());
        }
        cache.enter(&item.prompt, &|_| String::new());
        assert_eq!(cache.cached(&item.prompt), ["1", "2", "3"]);
        assert_eq!(order(&item, &cache), ["2", "3"]);
    }

    #[test]
    fn the_cache_keeps_only_what_the_last_graph_used() {
        let mut cache = NodeCache::default();
        for seed in 0..50 {
            let item = item(graph(seed), &["2"]);
            cache.enter(&item.prompt, &|_| String::new());
            assert!(cache.cached(&item.prompt).is_empty(), "seed {seed}");
            cache.put("1", Arc::default());
        }
        assert_eq!(cache.made.len(), 1);
    }
}
