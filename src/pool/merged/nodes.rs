//! A server's `/object_info`, class by class, and the union of many. Pure.
//!
//! A node is kept as the text it came in, shared between servers that say the same of it, as most
//! do: a large installation's reply has several megabytes, and there may be many servers. Only
//! nodes of which servers say different things, and those that take uploads, are read.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::combos;
use crate::comfy::lenient;

/// Nodes of one server at most.
pub const MAX_NODES: usize = 50_000;

/// The nodes of one server, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nodes {
    list: Vec<(Arc<str>, Arc<str>)>,
    places: HashMap<Arc<str>, usize>,
}

impl Nodes {
    /// Reads a reply. What another server says in the same words is shared with it.
    pub fn read(reply: &[u8], known: &[Arc<Self>]) -> Result<Self, serde_json::Error> {
        let raw: Raw = lenient::from_slice(reply)?;
        let mut nodes = Self::default();
        for (name, text) in raw.0 {
            let same = known.iter().find_map(|other| other.entry(&name, text.get()));
            let entry = same.cloned().unwrap_or_else(|| (name.into(), text.get().into()));
            nodes.places.insert(Arc::clone(&entry.0), nodes.list.len());
            nodes.list.push(entry);
        }
        Ok(nodes)
    }

    fn entry(&self, name: &str, text: &str) -> Option<&(Arc<str>, Arc<str>)> {
        self.places.get(name).map(|place| &self.list[*place]).filter(|entry| *entry.1 == *text)
    }

    fn text(&self, name: &str) -> Option<&Arc<str>> {
        self.places.get(name).map(|place| &self.list[*place].1)
    }
}

/// The classes of a reply with their texts; of a class that stands twice, the last one.
struct Raw(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Classes)
    }
}

struct Classes;

impl<'de> Visitor<'de> for Classes {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of nodes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut places = HashMap::new();
        let mut list: Vec<(String, Box<RawValue>)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if let Some(place) = places.get(&name) {
                let place: &usize = place;
                list[*place].1 = map.next_value()?;
            } else if list.len() < MAX_NODES {
                places.insert(name.clone(), list.len());
                list.push((name, map.next_value()?));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Raw(list))
    }
}

/// The nodes of all servers as one reply.
#[derive(Debug, Clone, Default)]
pub struct Union {
    /// The whole reply, JSON.
    pub bytes: Bytes,
    /// Where a class's entry (`"name": {…}`) stands in it.
    places: HashMap<Arc<str>, Range<usize>>,
}

impl Union {
    /// Unites servers' nodes: all classes in the order in which they are first met; of one that
    /// several have, what the first says, with the lists of choices of all. `uploads` are offered
    /// where they can be chosen.
    pub fn of(servers: &[Arc<Nodes>], uploads: &[String]) -> Self {
        let mut bytes = vec![b'{'];
        let mut places = HashMap::new();
        for (at, server) in servers.iter().enumerate() {
            for (name, text) in &server.list {
                if places.contains_key(name) {
                    continue;
                }
                if !places.is_empty() {
                    bytes.extend_from_slice(b", ");
                }
                let start = bytes.len();
                bytes.extend_from_slice(Value::from(&**name).to_string().as_bytes());
                bytes.extend_from_slice(b": ");
                match united(name, text, &servers[at + 1..], uploads) {
                    Some(node) => bytes.extend_from_slice(node.to_string().as_bytes()),
                    None => bytes.extend_from_slice(text.as_bytes()),
                }
                places.insert(Arc::clone(name), start..bytes.len());
            }
        }
        bytes.push(b'}');
        Self { bytes: bytes.into(), places }
    }

    /// The reply for one class: `{}` when no server has it.
    pub fn class(&self, name: &str) -> Bytes {
        let mut reply = vec![b'{'];
        if let Some(place) = self.places.get(name) {
            reply.extend_from_slice(&self.bytes[place.clone()]);
        }
        reply.push(b'}');
        reply.into()
    }
}

/// A node as all have it; `None` when that is what the first says.
fn united(name: &str, text: &Arc<str>, others: &[Arc<Nodes>], uploads: &[String]) -> Option<Value> {
    let mut different: Vec<&Arc<str>> = Vec::new();
    for other in others.iter().filter_map(|other| other.text(name)) {
        let known = |known: &&Arc<str>| Arc::ptr_eq(known, other) || ***known == **other;
        if !known(&text) && !different.iter().any(known) {
            different.push(other);
        }
    }
    let takes_uploads = !uploads.is_empty() && combos::may_take_uploads(text);
    if different.is_empty() && !takes_uploads {
        return None;
    }
    let mut node: Value = serde_json::from_str(text).ok()?;
    for other in different {
        if let Ok(other) = serde_json::from_str(other) {
            combos::unite(&mut node, &other);
        }
    }
    if takes_uploads {
        combos::add_uploads(&mut node, uploads);
    }
    Some(node)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn nodes(reply: &Value) -> Arc<Nodes> {
        Arc::new(Nodes::read(reply.to_string().as_bytes(), &[]).unwrap())
    }

    fn loader(models: &[&str]) -> Value {
        json!({"input": {"required": {"ckpt": [models, {}]}}, "category": models.len()})
    }

    fn union(servers: &[Value], uploads: &[&str]) -> Union {
        let servers: Vec<_> = servers.iter().map(nodes).collect();
        let uploads: Vec<_> = uploads.iter().map(ToString::to_string).collect();
        Union::of(&servers, &uploads)
    }

    fn json_of(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn nodes_of_all_with_the_lists_of_all() {
        let one = json!({"Loader": loader(&["a", "b"]), "Same": {"x": 1.0}, "First": {}});
        let two = json!({"Second": {"n": 1}, "Loader": loader(&["c", "a"]), "Same": {"x": 1.0}});
        let united = union(&[one.clone(), two, one], &[]);
        let all = json_of(&united.bytes);
        let names: Vec<_> = all.as_object().unwrap().keys().collect();
        assert_eq!(names, ["Loader", "Same", "First", "Second"]);
        assert_eq!(all["Loader"]["input"]["required"]["ckpt"][0], json!(["a", "b", "c"]));
        assert_eq!(all["Loader"]["category"], 2);
        assert_eq!(json_of(&united.class("Second")), json!({"Second": {"n": 1}}));
        assert_eq!(&united.class("None")[..], b"{}");
    }

    #[test]
    fn uploads_appear_even_of_a_single_server() {
        let load = json!({"input": {"required": {"image": [["a.png"], {"image_upload": true}]}}});
        let united = union(&[json!({"LoadImage": load})], &["new.png", "a.png"]);
        let choices = &json_of(&united.class("LoadImage"))["LoadImage"]["input"]["required"];
        assert_eq!(choices["image"][0], json!(["a.png", "new.png"]));
    }

    #[test]
    fn what_one_server_alone_says_stays_to_the_letter() {
        let reply = br#"{"A": {"max": 18446744073709551615, "big": 1e400, "x": "\u00fc"}}"#;
        let only = Arc::new(Nodes::read(reply, &[]).unwrap());
        assert_eq!(&Union::of(&[only], &[]).bytes[..], &reply[..]);
    }

    #[test]
    fn equal_texts_are_shared_and_pythons_numbers_read() {
        let first = Arc::new(Nodes::read(br#"{"A": {"x": 1}, "B": {}}"#, &[]).unwrap());
        let second = br#"{"B": {"max": Infinity}, "A": {"x": 1}}"#;
        let second = Nodes::read(second, &[Arc::clone(&first)]).unwrap();
        assert!(Arc::ptr_eq(first.text("A").unwrap(), second.text("A").unwrap()));
        assert_eq!(&**second.text("B").unwrap(), r#"{"max": null}"#);
        let twice = nodes(&json_of(br#"{"A": 1, "A": 2}"#));
        assert_eq!(&**twice.text("A").unwrap(), "2");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for odd in ["", "[]", "null", "{\"A\": ", "<html>", "{\"A\": {}} x"] {
            assert!(Nodes::read(odd.as_bytes(), &[]).is_err(), "{odd}");
        }
        assert_eq!(&Union::of(&[], &[]).bytes[..], b"{}");
    }

    proptest! {
        #[test]
        fn the_union_is_json_whatever_the_names(
            names in prop::collection::vec("\\PC{0,8}", 0..6), more in prop::collection::vec("[a-c]", 0..4),
        ) {
            let reply = |names: &[String]| -> Value {
                names.iter().map(|name| (name.clone(), loader(&[name]))).collect::<serde_json::Map<_, _>>().into()
            };
            let united = union(&[reply(&names), reply(&more)], &[]);
            let all = json_of(&united.bytes);
            for name in names.iter().chain(&more) {
                prop_assert_eq!(&json_of(&united.class(name))[name], &all[name]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Nodes::read(&bytes, &[]);
        }
    }
}
