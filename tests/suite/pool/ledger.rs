//! What was done in a random run: every prompt that was accepted, with what must become of it.

use std::collections::BTreeMap;

use comfygate::sim::image_of_seed;
use parking_lot::Mutex;
use serde_json::Value;

use super::ear::now_ms;
use super::step::{PARTLY_STEPS, Plan};

/// The picture that a prompt saves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Picture {
    Seed(u64),
    Plain { width: u32, height: u32, color: u32 },
}

impl Picture {
    /// Whether these bytes are it.
    pub(crate) fn is(self, bytes: &[u8]) -> bool {
        match self {
            Self::Seed(seed) => bytes == image_of_seed(seed),
            Self::Plain { width, height, color } => {
                let Ok(image) = image::load_from_memory(bytes) else { return false };
                let [_, red, green, blue] = color.to_be_bytes();
                let image = image.into_rgb8();
                (image.width(), image.height()) == (width, height)
                    && image.pixels().all(|pixel| pixel.0 == [red, green, blue])
            }
        }
    }
}

/// A prompt that was accepted.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The client that posted it, and its address.
    pub(crate) client: usize,
    pub(crate) address: String,
    /// The `client_id` that it named.
    pub(crate) client_id: Option<String>,
    /// Milliseconds since 1970 before it was posted.
    pub(crate) posted: u64,
    /// What it saves in node 2, unless it fails by itself.
    pub(crate) picture: Picture,
    pub(crate) fails: bool,
    /// Previews that it sends at most.
    pub(crate) previews: u64,
    /// Whether a delete from the queue was asked for, or an interrupt by its id.
    pub(crate) deleted: bool,
    pub(crate) interrupted: bool,
    /// Its history entry, when it was deleted from there.
    pub(crate) forgotten: Option<Value>,
}

impl Entry {
    pub(crate) fn new(plan: &Plan, loaded: Option<u64>) -> Self {
        let (picture, fails, previews) = match *plan {
            Plan::Paced { seed, steps, fail_at, preview, .. } => {
                let fails = u64::try_from(fail_at).is_ok_and(|step| step < steps);
                (Picture::Seed(seed), fails, if preview { steps } else { 0 })
            }
            Plan::Empty { width, height, color } => {
                (Picture::Plain { width, height, color }, false, 0)
            }
            Plan::Partly { seed } => (Picture::Seed(seed), false, PARTLY_STEPS),
            _ => (Picture::Seed(loaded.unwrap_or_default()), false, 0),
        };
        Self {
            client: 0,
            address: String::new(),
            client_id: None,
            posted: now_ms(),
            picture,
            fails,
            previews,
            deleted: false,
            interrupted: false,
            forgotten: None,
        }
    }
}

/// Everything done, by all clients.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    prompts: Mutex<BTreeMap<String, Entry>>,
    /// Interrupts without an id: when, and whose address.
    interrupts: Mutex<Vec<(u64, String)>>,
    /// Ids of prompts that were refused.
    refused: Mutex<Vec<String>>,
    /// What was wrong on the way.
    problems: Mutex<Vec<String>>,
}

impl Ledger {
    pub(crate) fn add(&self, id: &str, entry: Entry) {
        if self.prompts.lock().insert(id.to_owned(), entry).is_some() {
            self.problem(format!("{id} was given twice"));
        }
    }

    pub(crate) fn change(&self, id: &str, change: impl FnOnce(&mut Entry)) {
        change(self.prompts.lock().get_mut(id).unwrap());
    }

    pub(crate) fn get(&self, id: &str) -> Option<Entry> {
        self.prompts.lock().get(id).cloned()
    }

    pub(crate) fn prompts(&self) -> BTreeMap<String, Entry> {
        self.prompts.lock().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.prompts.lock().len()
    }

    pub(crate) fn interrupt(&self, address: &str) {
        self.interrupts.lock().push((now_ms(), address.to_owned()));
    }

    pub(crate) fn interrupts(&self) -> Vec<(u64, String)> {
        self.interrupts.lock().clone()
    }

    pub(crate) fn refuse(&self, id: &str) {
        self.refused.lock().push(id.to_owned());
    }

    pub(crate) fn refused(&self) -> Vec<String> {
        self.refused.lock().clone()
    }

    pub(crate) fn problem(&self, what: String) {
        self.problems.lock().push(what);
    }

    pub(crate) fn problems(&self) -> Vec<String> {
        self.problems.lock().clone()
    }
}
