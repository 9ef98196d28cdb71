//! The prompt queue: a binary heap exactly as Python's `heapq` keeps it (its raw order is what
//! `GET /queue` shows), the running prompt, and the bounded history.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};

/// One queued prompt, the five-item list of `/queue` and `/history`.
#[derive(Debug)]
pub(super) struct Item {
    /// Its place as a number, kept as given: an integer from the counter, a float from a client.
    pub(super) number: Value,
    /// The prompt's id.
    pub(super) id: String,
    /// The graph, inputs converted by validation.
    pub(super) prompt: Map<String, Value>,
    /// `client_id`, `create_time` and what the client sent along.
    pub(super) extra_data: Map<String, Value>,
    /// The output nodes to run.
    pub(super) outputs: Vec<String>,
}

impl Item {
    /// The item as a JSON list.
    pub(super) fn to_json(&self) -> Value {
        json!([self.number, self.id, self.prompt, self.extra_data, self.outputs])
    }

    /// The client that hears of it.
    pub(super) fn client(&self) -> Option<&str> {
        self.extra_data.get("client_id").and_then(Value::as_str)
    }

    fn before(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.place(), other.place());
        mine < theirs || (mine.total_cmp(&theirs).is_eq() && self.id < other.id)
    }

    /// Equal number and id: Python goes on to compare the graphs, which raises.
    fn incomparable(&self, other: &Self) -> bool {
        self.place().total_cmp(&other.place()).is_eq() && self.id == other.id
    }

    fn place(&self) -> f64 {
        self.number.as_f64().unwrap_or_default()
    }
}

/// The pending prompts in heap order.
#[derive(Debug, Default)]
pub(super) struct Heap(Vec<Arc<Item>>);

impl Heap {
    /// `heapq.heappush`; `false` when comparing raised, the item then stays where it came.
    pub(super) fn push(&mut self, item: Arc<Item>) -> bool {
        self.0.push(item);
        self.sift_down(0, self.0.len() - 1)
    }

    /// `heapq.heappop`.
    pub(super) fn pop(&mut self) -> Option<Arc<Item>> {
        let last = self.0.pop()?;
        if self.0.is_empty() {
            return Some(last);
        }
        let first = std::mem::replace(&mut self.0[0], last);
        self.sift_up(0);
        Some(first)
    }

    /// Removes the first item (in heap order) with this id; heapifies the rest.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        let Some(at) = self.0.iter().position(|item| item.id == id) else { return false };
        self.0.remove(at);
        for at in (0..self.0.len() / 2).rev() {
            self.sift_up(at);
        }
        true
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The items as the list is kept.
    pub(super) fn items(&self) -> &[Arc<Item>] {
        &self.0
    }

    /// `heapq._siftdown`: moves the item at `at` towards `start` while its parent is larger.
    fn sift_down(&mut self, start: usize, mut at: usize) -> bool {
        while at > start {
            let parent = (at - 1) / 2;
            if self.0[at].incomparable(&self.0[parent]) {
                return false;
            }
            if !self.0[at].before(&self.0[parent]) {
                break;
            }
            self.0.swap(at, parent);
            at = parent;
        }
        true
    }

    /// `heapq._siftup`: lets the smaller child rise until a leaf, then sifts back. The
    /// textbook version stops earlier and leaves another order.
    fn sift_up(&mut self, start: usize) {
        let end = self.0.len();
        let mut at = start;
        let mut child = 2 * at + 1;
        while child < end {
            let right = child + 1;
            if right < end && !self.0[child].before(&self.0[right]) {
                child = right;
            }
            self.0.swap(at, child);
            at = child;
            child = 2 * at + 1;
        }
        self.sift_down(start, at);
    }
}

/// A finished prompt.
#[derive(Debug)]
pub(super) struct Finished {
    /// What was run.
    pub(super) item: Arc<Item>,
    /// Per output node, what its user interface shows.
    pub(super) outputs: Map<String, Value>,
    /// `status_str`, `completed`, `messages`.
    pub(super) status: Value,
    /// Per output node, where it stands in the graph.
    pub(super) meta: Map<String, Value>,
}

impl Finished {
    /// The entry of `/history`.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "prompt": self.item.to_json(),
            "outputs": self.outputs,
            "status": self.status,
            "meta": self.meta,
        })
    }
}

/// What has run, oldest first, at most `limit` and one (as upstream, which checks before it adds).
#[derive(Debug)]
pub(super) struct History {
    limit: usize,
    next: u64,
    entries: BTreeMap<u64, Arc<Finished>>,
    places: HashMap<String, u64>,
}

impl History {
    /// An empty history of at most `limit` entries.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, next: 0, entries: BTreeMap::new(), places: HashMap::new() }
    }

    /// Adds an entry; one with a known id takes that one's place, as in a Python dict.
    pub(super) fn insert(&mut self, finished: Arc<Finished>) {
        if self.entries.len() > self.limit
            && let Some((_, oldest)) = self.entries.pop_first()
        {
            self.places.remove(&oldest.item.id);
        }
        let place = *self.places.entry(finished.item.id.clone()).or_insert(self.next);
        self.next += 1;
        self.entries.insert(place, finished);
    }

    /// The entry of this id.
    pub(super) fn get(&self, id: &str) -> Option<&Arc<Finished>> {
        self.places.get(id).and_then(|place| self.entries.get(place))
    }

    /// Removes the entry of this id.
    pub(super) fn remove(&mut self, id: &str) {
        if let Some(place) = self.places.remove(id) {
            self.entries.remove(&place);
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.places.clear();
    }

    /// All entries, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Finished>> {
        self.entries.values()
    }

    /// A page of entries: a negative `offset` with `max_items` means the newest ones.
    pub(super) fn page(&self, max_items: Option<i64>, offset: i64) -> Vec<Arc<Finished>> {
        let len = i64::try_from(self.entries.len()).unwrap_or(i64::MAX);
        let start = match max_items {
            Some(max) if offset < 0 => len.saturating_sub(max),
            _ => offset,
        };
        let skip = usize::try_from(start.max(0)).unwrap_or_default();
        // Upstream adds an entry before it looks at the bound, so zero gives one.
        let take = max_items.map_or(usize::MAX, |max| usize::try_from(max.max(1)).unwrap_or(1));
        self.entries.values().skip(skip).take(take).cloned().collect()
    }
}

/// Everything one lock guards: what waits, what runs, what ran.
#[derive(Debug)]
pub(super) struct Board {
    /// Pending prompts.
    pub(super) pending: Heap,
    /// The running prompt.
    pub(super) running: Option<Arc<Item>>,
    /// Finished prompts.
    pub(super) history: History,
    /// The next number, counted up by rejected prompts too.
    pub(super) counter: i64,
    /// Prompts reported on top of the real ones: (running, pending).
    pub(super) phantoms: (usize, usize),
    /// How many prompts have finished.
    pub(super) finished: u64,
}

impl Board {
    /// An empty board.
    pub(super) fn new(history: usize) -> Self {
        Self {
            pending: Heap::default(),
            running: None,
            history: History::new(history),
            counter: 0,
            phantoms: (0, 0),
            finished: 0,
        }
    }

    /// `queue_remaining`: running and pending together.
    pub(super) fn remaining(&self) -> usize {
        self.pending.items().len()
            + usize::from(self.running.is_some())
            + self.phantoms.0
            + self.phantoms.1
    }

    /// `{"exec_info": {"queue_remaining": n}}`.
    pub(super) fn info(&self) -> Value {
        json!({"exec_info": {"queue_remaining": self.remaining()}})
    }

    /// The two lists of `GET /queue`.
    pub(super) fn lists(&self) -> (Vec<Value>, Vec<Value>) {
        let mut running: Vec<Value> = self.running.iter().map(|item| item.to_json()).collect();
        let mut pending: Vec<Value> =
            self.pending.items().iter().map(|item| item.to_json()).collect();
        running.extend((0..self.phantoms.0).map(phantom));
        pending.extend((self.phantoms.0..self.phantoms.0 + self.phantoms.1).map(phantom));
        (running, pending)
    }
}

fn phantom(index: usize) -> Value {
    let id = format!("00000000-0000-4000-8000-{index:012}");
    json!([index, id, {}, {"client_id": "phantom", "create_time": 0}, []])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(number: Value, id: &str) -> Arc<Item> {
        Arc::new(Item {
            number,
            id: id.to_owned(),
            prompt: Map::new(),
            extra_data: Map::new(),
            outputs: Vec::new(),
        })
    }

    fn order(heap: &Heap) -> Vec<f64> {
        heap.items().iter().map(|item| item.place()).collect()
    }

    #[test]
    fn pending_prompts_stand_in_the_order_the_recording_shows() {
        let mut heap = Heap::default();
        for (number, id) in
            [(json!(12), "a"), (json!(-13), "b"), (json!(-5.5), "c"), (json!(14), "d")]
        {
            assert!(heap.push(item(number, id)));
        }
        assert_eq!(order(&heap), [-13.0, 12.0, -5.5, 14.0]);
    }

    #[test]
    fn popping_leaves_the_order_cpython_leaves() {
        // Worked out with CPython's heapq.
        let mut heap = Heap::default();
        for number in [5, 3, 8, 1, 9, 2, 7] {
            heap.push(item(json!(number), "x"));
        }
        assert_eq!(order(&heap), [1.0, 3.0, 2.0, 5.0, 9.0, 8.0, 7.0]);
        assert_eq!(heap.pop().unwrap().number, json!(1));
        assert_eq!(order(&heap), [2.0, 3.0, 7.0, 5.0, 9.0, 8.0]);
    }

    #[test]
    fn the_same_number_and_id_raises_but_stays_queued() {
        let mut heap = Heap::default();
        assert!(heap.push(item(json!(1.0), "same")));
        assert!(!heap.push(item(json!(1.0), "same")));
        assert_eq!(heap.items().len(), 2);
    }

    fn finished(id: &str) -> Arc<Finished> {
        Arc::new(Finished {
            item: item(json!(0), id),
            outputs: Map::new(),
            status: Value::Null,
            meta: Map::new(),
        })
    }

    #[test]
    fn history_is_bounded_and_pages_from_the_newest() {
        let mut history = History::new(3);
        for index in 0..100 {
            history.insert(finished(&index.to_string()));
        }
        let ids: Vec<_> = history.iter().map(|entry| entry.item.id.clone()).collect();
        assert_eq!(ids, ["96", "97", "98", "99"]);
        let newest: Vec<_> = history.page(Some(2), -1).iter().map(|e| e.item.id.clone()).collect();
        assert_eq!(newest, ["98", "99"]);
        let from: Vec<_> = history.page(Some(2), 1).iter().map(|e| e.item.id.clone()).collect();
        assert_eq!(from, ["97", "98"]);
    }

    #[test]
    fn a_repeated_id_keeps_its_place() {
        let mut history = History::new(9);
        for id in ["a", "b", "a"] {
            history.insert(finished(id));
        }
        let ids: Vec<_> = history.iter().map(|entry| entry.item.id.clone()).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
