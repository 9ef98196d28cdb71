//! Progress of a prompt's nodes, as `progress_state` shows it: floats at the ends of a node that
//! counted nothing, integers where it did.

use serde_json::{Map, Value, json};

#[derive(Debug)]
struct Entry {
    node: String,
    value: Value,
    max: Value,
    finished: bool,
}

/// The nodes that have started, in that order.
#[derive(Debug, Default)]
pub(super) struct Progress(Vec<Entry>);

impl Progress {
    /// A node starts.
    pub(super) fn start(&mut self, node: &str) {
        self.set(node, json!(0.0), json!(1.0), false);
    }

    /// A node is at `value` of `max`.
    pub(super) fn update(&mut self, node: &str, value: u64, max: u64) {
        self.set(node, value.into(), max.into(), false);
    }

    /// A node ends; one that never started (it was cached) shows 1 of 1.
    pub(super) fn finish(&mut self, node: &str) {
        let max = self.0.iter().find(|entry| entry.node == node).map(|entry| entry.max.clone());
        let max = max.unwrap_or_else(|| json!(1));
        self.set(node, max.clone(), max, true);
    }

    /// The `nodes` of a `progress_state` frame.
    pub(super) fn shown(&self, prompt_id: &str) -> Value {
        let nodes = self.0.iter().map(|entry| {
            let state = json!({
                "value": entry.value, "max": entry.max,
                "state": if entry.finished { "finished" } else { "running" },
                "node_id": entry.node, "prompt_id": prompt_id, "display_node_id": entry.node,
                "parent_node_id": null, "real_node_id": entry.node,
            });
            (entry.node.clone(), state)
        });
        nodes.collect::<Map<_, _>>().into()
    }

    fn set(&mut self, node: &str, value: Value, max: Value, finished: bool) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.node == node) {
            (entry.value, entry.max, entry.finished) = (value, max, finished);
        } else {
            self.0.push(Entry { node: node.to_owned(), value, max, finished });
        }
    }
}
