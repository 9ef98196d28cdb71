//! The prompts of a `/queue` reply: the number and id at the head of each item, in the order in
//! which they will run, without the workflows behind them.
//!
//! [`QueueCount`](super::queue_count::QueueCount) feeds it the bytes that stand directly in an
//! item. Bounded: [`MAX_ITEMS`] items with ids of at most [`MAX_ID`] bytes.

/// Ids that are kept of one reply.
pub const MAX_ITEMS: usize = 20_000;
/// Bytes of a prompt id at most; longer ones are not followed.
pub const MAX_ID: usize = 128;
/// A number or an id as JSON text: every byte of an id may be written as `\u00xx`.
const MAX_TEXT: usize = 6 * MAX_ID + 2;

/// The prompts of one server's queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueueItems {
    /// Ids of the running prompts.
    pub running: Vec<String>,
    /// Ids of the waiting prompts, next one first.
    pub pending: Vec<String>,
    /// Whether no prompt was left out: only then an id that is missing is gone.
    pub complete: bool,
}

/// Gathers the heads of items.
#[derive(Debug, Default)]
pub(super) struct Heads {
    running: Vec<Head>,
    pending: Vec<Head>,
    /// Which element of the item the text belongs to.
    element: usize,
    text: Vec<u8>,
    number: f64,
    id: Option<String>,
    left_out: bool,
}

#[derive(Debug)]
struct Head {
    number: f64,
    id: String,
}

impl Heads {
    /// A list begins, in place of another one of its name.
    pub(super) fn restart(&mut self, running: bool) {
        if running { self.running.clear() } else { self.pending.clear() }
    }

    /// An item begins.
    pub(super) fn begin(&mut self) {
        self.element = 0;
        self.text.clear();
        self.number = 0.0;
        self.id = None;
    }

    /// A byte that stands in the item itself, strings included, nested values left out.
    pub(super) fn byte(&mut self, byte: u8) {
        if self.element < 2 && self.text.len() <= MAX_TEXT {
            self.text.push(byte);
        }
    }

    /// A comma of the item itself.
    pub(super) fn comma(&mut self) {
        self.element_ends();
        self.element += 1;
    }

    /// The item ends.
    pub(super) fn end(&mut self, running: bool) {
        self.element_ends();
        let full = self.running.len() + self.pending.len() >= MAX_ITEMS;
        match self.id.take().filter(|id| !full && id.len() <= MAX_ID) {
            Some(id) => {
                let heads = if running { &mut self.running } else { &mut self.pending };
                heads.push(Head { number: self.number, id });
            }
            // An id too long to be followed is nobody's that we look for.
            None => self.left_out |= full,
        }
    }

    fn element_ends(&mut self) {
        match self.element {
            0 => {
                let text = std::str::from_utf8(&self.text).unwrap_or_default();
                self.number = text.trim().parse().unwrap_or(0.0);
            }
            1 => self.id = serde_json::from_slice(&self.text).ok(),
            _ => {}
        }
        self.text.clear();
    }

    /// What was gathered. ComfyUI writes its heap as it is, so waiting prompts are sorted here.
    pub(super) fn finish(mut self) -> QueueItems {
        self.pending.sort_by(|a, b| a.number.total_cmp(&b.number).then_with(|| a.id.cmp(&b.id)));
        let ids = |heads: Vec<Head>| heads.into_iter().map(|head| head.id).collect();
        QueueItems {
            running: ids(self.running),
            pending: ids(self.pending),
            complete: !self.left_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue_count::QueueCount;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn items(text: &str) -> QueueItems {
        let mut counter = QueueCount::with_items();
        counter.feed(text.as_bytes()).unwrap();
        counter.finish_with_items().unwrap().1
    }

    #[test]
    fn waiting_prompts_come_in_the_order_they_will_run() {
        let read = items(
            r#"{"queue_running": [[4, "run\u006eing", {"1": [9, "not me"]}, {}, ["1"]]],
                "queue_pending": [[-13.0, "b", {}, {}, []], [12, "a", {}], [-5.5, "c"], [12, "A"]]}"#,
        );
        assert_eq!(read.running, ["running"]);
        assert_eq!(read.pending, ["b", "c", "A", "a"]);
        assert!(read.complete);
    }

    #[test]
    fn items_of_another_shape_are_passed_over() {
        let long = "x".repeat(MAX_ID + 1);
        let text = json!({"queue_running": [3, "x", {}, [], [1]], "other": [[1, "no"]],
            "queue_pending": [[1, 2], [1, long], [{"a": 1}, "yes"], ["1", "too"], [null, ["no"]]]});
        let read = items(&text.to_string());
        assert_eq!(read.running, [""; 0]);
        assert_eq!(read.pending, ["too", "yes"]);
        assert!(read.complete);
    }

    #[test]
    fn a_list_that_stands_twice_counts_once() {
        let read = items(
            r#"{"queue_running": [[1, "a"]], "queue_pending": [[2, "b"]], "queue_running": [],
                "queue_pending": [[3, "c"]]}"#,
        );
        assert_eq!((read.running, read.pending), (vec![], vec!["c".to_owned()]));
    }

    #[test]
    fn a_queue_over_the_bound_is_known_to_be_incomplete() {
        let pending: Vec<_> = (0..=MAX_ITEMS).map(|n| json!([n, n.to_string()])).collect();
        let text = json!({"queue_running": [], "queue_pending": pending}).to_string();
        let read = items(&text);
        assert_eq!(read.pending.len(), MAX_ITEMS);
        assert!(!read.complete);
    }

    proptest! {
        #[test]
        fn agrees_with_a_real_parser(
            ids in prop::collection::vec(".{0,20}", 0..8), cut in any::<prop::sample::Index>(),
        ) {
            let item = |(n, id): (usize, &String)| json!([n, id, {"k": [id, n]}, {"c": id}, [id]]);
            let pending: Vec<_> = ids.iter().enumerate().map(item).collect();
            let text = json!({"queue_running": pending, "queue_pending": pending}).to_string();
            let cut = cut.index(text.len());
            let mut counter = QueueCount::with_items();
            counter.feed(&text.as_bytes()[..cut]).unwrap();
            counter.feed(&text.as_bytes()[cut..]).unwrap();
            let (counted, read) = counter.finish_with_items().unwrap();
            prop_assert_eq!(counted.pending as usize, ids.len());
            prop_assert_eq!(&read.running, &ids);
            prop_assert_eq!(&read.pending, &ids);
        }
    }
}
