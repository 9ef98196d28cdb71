//! A backend's reply to `GET /queue`, counted as it comes.

use serde_json::Value;

use super::bytes::strict;
use crate::comfy::queue_count::{Counted, Malformed, QueueCount};
use crate::comfy::queue_items::{MAX_ID, MAX_ITEMS, QueueItems};

type Outcome = Result<(Counted, QueueItems), Malformed>;

fn read<'a>(mut pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut count = QueueCount::with_items();
    pieces.try_for_each(|piece| count.feed(piece))?;
    count.finish_with_items()
}

fn counted(data: &[u8]) -> Result<Counted, Malformed> {
    let mut count = QueueCount::default();
    count.feed(data)?;
    count.finish()
}

/// In one piece and in many; and what a JSON parser reads of it.
pub fn queue(data: &[u8]) {
    let whole = read(std::iter::once(data));
    assert_eq!(read(data.chunks(3)), whole, "pieces make no difference");
    assert_eq!(counted(data), whole.as_ref().map(|(counted, _)| *counted).map_err(|error| *error));
    if let Ok((counted, items)) = &whole {
        assert!(items.running.len() <= counted.running as usize);
        assert!(items.pending.len() <= counted.pending as usize);
        assert!(items.running.iter().chain(&items.pending).all(|id| id.len() <= MAX_ID));
    }
    if let Some(document) = strict(data) {
        compare(&document);
    }
}

/// A document that has the shape of a queue is counted as what it is.
fn compare(document: &Value) {
    let list = |name| document.get(name).and_then(Value::as_array);
    let (Some(running), Some(pending)) = (list("queue_running"), list("queue_pending")) else {
        return;
    };
    let (counted, items) = read(std::iter::once(document.to_string().as_bytes()))
        .expect("a queue that a JSON parser reads is a queue");
    assert_eq!(counted.running as usize, running.len());
    assert_eq!(counted.pending as usize, pending.len());
    if running.len() + pending.len() <= MAX_ITEMS {
        assert!(items.complete);
        assert_eq!(items.running, ids(running));
        let (mut theirs, mut ours) = (ids(pending), items.pending);
        theirs.sort();
        ours.sort();
        assert_eq!(ours, theirs);
    }
}

fn ids(list: &[Value]) -> Vec<String> {
    let ids = list.iter().filter_map(|item| item.as_array()?.get(1)?.as_str());
    ids.filter(|id| id.len() <= MAX_ID).map(str::to_owned).collect()
}
