//! What a backend is made of: replies to `/object_info` and `/system_stats`.

use std::io::{BufReader, Read};

use super::bytes::strict;
use crate::inventory::capabilities::{MAX_MODELS, MAX_NAME, MAX_NODES};
use crate::inventory::{Capabilities, PlainJson, System};

/// A reply as either of the two.
pub fn inventory(data: &[u8]) {
    let whole = Capabilities::read(PlainJson::new(data)).ok();
    let pieces = BufReader::with_capacity(3, PlainJson::new(data));
    assert_eq!(Capabilities::read(pieces).ok(), whole, "pieces make no difference");
    if let Some(found) = &whole {
        assert!(found.nodes.len() <= MAX_NODES && found.models.len() <= MAX_MODELS);
        let names = found.nodes.iter().chain(&found.models);
        assert!(names.clone().all(|name| name.len() <= MAX_NAME));
        assert!(found.outputs.is_subset(&found.nodes));
    }
    let mut plain = Vec::new();
    let read = PlainJson::new(data).read_to_end(&mut plain);
    assert_eq!(read.ok(), Some(data.len()), "as long as it was");
    if let Some(document) = strict(data) {
        assert_eq!(plain, data, "what is JSON stays as it is");
        let names = document.as_object().map(|nodes| nodes.keys().filter(|n| n.len() <= MAX_NAME));
        let nodes = whole.map(|found| found.nodes).unwrap_or_default();
        let known =
            |mut names: Box<dyn Iterator<Item = &String>>| names.all(|n| nodes.contains(&**n));
        assert!(names.is_none_or(|names| nodes.is_empty() || known(Box::new(names))));
    }
    if let Some(stats) = strict(&plain) {
        let system = System::of(&stats);
        assert!(system.devices.len() <= 64);
        let texts = system.devices.iter().flat_map(|device| [&device.name, &device.kind]);
        for text in texts.chain([&system.version]).flatten() {
            assert!(text.chars().count() <= 256 && !text.contains(char::is_control));
        }
    }
}
