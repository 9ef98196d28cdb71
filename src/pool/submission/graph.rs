//! What a prompt's graph asks of a server: its node types and the models that it names.
//!
//! Gathered while the body is walked over. Bounded: [`MAX_NEEDS`] names of at most
//! [`MAX_NAME`] bytes each; what is beyond is left out, which makes the job go to a server that may
//! say no. A graph of more than [`MAX_NODES`] nodes has no [`Kind`].

use std::collections::BTreeSet;

use super::scan::{Json, Malformed, Scanner, Span, Watch};
use crate::inventory::capabilities::{MAX_NAME, is_model};
use crate::pool::job::Needs;
use crate::tasks::kind::{self, Kind};

/// Nodes of a graph whose time is learnt.
const MAX_NODES: usize = 50_000;
/// Node types, and models, that are looked for.
const MAX_NEEDS: usize = 4_096;
/// Bytes of all names that make a kind.
const MAX_KIND: usize = 4 << 20;

/// What was gathered.
#[derive(Debug, Default)]
pub(super) struct Graph {
    needs: Needs,
    types: Vec<String>,
    models: BTreeSet<String>,
    /// Bytes in `types` and `models`.
    size: usize,
    /// Whether there is more than a kind is made of, or a node without a type.
    unkind: bool,
}

impl Graph {
    /// What a server must have.
    pub(super) fn needs(&mut self) -> Needs {
        std::mem::take(&mut self.needs)
    }

    /// What the time is learnt by.
    pub(super) fn kind(self) -> Option<Kind> {
        let Self { types, models, unkind, .. } = self;
        (!unkind).then(|| Kind::from_parts(types, models.into_iter().collect())).flatten()
    }

    /// Walks over the graph.
    pub(super) fn walk(
        &mut self,
        body: &[u8],
        scanner: &mut Scanner<'_>,
    ) -> Result<Span, Malformed> {
        if scanner.peek() != Some(b'{') {
            return scanner.value(&mut ());
        }
        scanner.members(|scanner, _| self.node(body, scanner))
    }

    fn node(&mut self, body: &[u8], scanner: &mut Scanner<'_>) -> Result<(), Malformed> {
        if scanner.peek() != Some(b'{') {
            self.unkind = true;
            return scanner.value(&mut ()).map(drop);
        }
        let mut class_type = None;
        scanner.members(|scanner, key| {
            if key.is("inputs") {
                scanner.value(&mut Models { body, graph: self })?;
            } else {
                let value = scanner.value(&mut ())?;
                if key.is("class_type") {
                    class_type = Json(&body[value]).text();
                }
            }
            Ok(())
        })?;
        match class_type {
            Some(class_type) => self.class_type(&class_type),
            None => self.unkind = true,
        }
        Ok(())
    }

    fn class_type(&mut self, name: &str) {
        if name.len() <= MAX_NAME && self.needs.nodes.len() < MAX_NEEDS {
            insert(&mut self.needs.nodes, name);
        }
        if self.has_room(name) && self.types.len() < MAX_NODES {
            self.types.push(name.to_owned());
        } else {
            self.unkind = true;
        }
    }

    fn input(&mut self, text: &str) {
        if text.len() <= MAX_NAME && is_model(text) && self.needs.models.len() < MAX_NEEDS {
            insert(&mut self.needs.models, &text.replace('\\', "/"));
        }
        if kind::is_model(text) && !self.models.contains(text) {
            if self.has_room(text) {
                self.models.insert(text.to_owned());
            } else {
                self.unkind = true;
            }
        }
    }

    fn has_room(&mut self, name: &str) -> bool {
        self.size = self.size.saturating_add(name.len() + 32);
        self.size <= MAX_KIND
    }
}

fn insert(names: &mut BTreeSet<Box<str>>, name: &str) {
    if !names.contains(name) {
        names.insert(name.into());
    }
}

/// Watches a node's inputs for names of models, however deep they stand.
struct Models<'a> {
    body: &'a [u8],
    graph: &'a mut Graph,
}

impl Watch for Models<'_> {
    fn scalar(&mut self, span: Span) {
        let text = &self.body[span];
        if text.first() == Some(&b'"')
            && let Some(text) = Json(text).text()
        {
            self.graph.input(&text);
        }
    }
}

/// Goes through the nodes of a prompt: id and type.
pub(super) fn each_node(prompt: Json<'_>, mut each: impl FnMut(&str, &str)) {
    prompt.each_member(|id, node| {
        if let Some(class_type) = node.get("class_type").and_then(Json::text) {
            each(&id.text(), &class_type);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::layout::Layout;
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn graph(prompt: &Value) -> (Needs, Option<Kind>) {
        let body = json!({"prompt": prompt}).to_string();
        let (_, mut graph) = Layout::with_graph(body.as_bytes()).unwrap();
        (graph.needs(), graph.kind())
    }

    fn names(names: &BTreeSet<Box<str>>) -> Vec<&str> {
        names.iter().map(AsRef::as_ref).collect()
    }

    #[test]
    fn types_and_models_are_gathered_with_slashes_forward() {
        let (needs, kind) = graph(&json!({
            "1": {"class_type": "Loader", "inputs": {"ckpt": "sub\\a.safetensors", "seed": 1}},
            "2": {"class_type": "Lora", "_meta": {"title": "no.pt"}, "inputs":
                {"model": ["1", 0], "lora_1": {"on": true, "lora": "B.PT"}, "text": "a cat"}},
            "3": {"class_type": "Lora", "inputs": {}},
        }));
        assert_eq!(names(&needs.nodes), ["Loader", "Lora"]);
        assert_eq!(names(&needs.models), ["B.PT", "sub/a.safetensors"]);
        assert_eq!(&*kind.unwrap().label, "3 nodes: sub\\a.safetensors");
    }

    #[test]
    fn odd_nodes_are_passed_over_and_have_no_kind() {
        for odd in [json!(1), json!({"inputs": {}}), json!({"class_type": 3}), json!([])] {
            let (needs, kind) = graph(&json!({"1": {"class_type": "A", "inputs": {}}, "2": odd}));
            assert_eq!((names(&needs.nodes), kind), (vec!["A"], None));
        }
        assert_eq!(graph(&json!({})).1, None);
        assert_eq!(graph(&json!("text")).1, None);
    }

    #[test]
    fn names_are_bounded() {
        let nodes: serde_json::Map<_, _> = (0..MAX_NEEDS + 9)
            .map(|n| {
                (
                    n.to_string(),
                    json!({"class_type": format!("T{n}"), "inputs":
                {"m": format!("{n}.pt"), "long": format!("{}.pt", "x".repeat(MAX_NAME))}}),
                )
            })
            .collect();
        let (needs, kind) = graph(&nodes.into());
        assert_eq!((needs.nodes.len(), needs.models.len()), (MAX_NEEDS, MAX_NEEDS));
        assert!(needs.models.iter().all(|name| name.len() <= MAX_NAME));
        assert!(kind.is_some());
    }

    proptest! {
        #[test]
        fn the_kind_is_the_one_that_a_real_parser_finds(
            nodes in prop::collection::btree_map("[0-9]{1,3}", ("[A-C]", "[ab]{0,1}\\.(pt|bin|PT|txt)", any::<bool>()), 0..6),
        ) {
            let nodes: serde_json::Map<_, _> = nodes
                .into_iter()
                .map(|(id, (class, name, deep))| {
                    let value = if deep { json!([1, {"a": name}]) } else { json!(name) };
                    (id, json!({"class_type": class, "inputs": {"x": value}}))
                })
                .collect();
            let body = json!({"prompt": nodes}).to_string();
            prop_assert_eq!(graph(&nodes.into()).1, Kind::of(body.as_bytes()));
        }
    }
}
