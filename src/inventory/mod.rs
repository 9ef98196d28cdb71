//! The inventory: what each backend is made of, as it tells itself.
//!
//! Two readings with two prices. `/system_stats` is small: [`System`] (version and devices) is
//! read when a backend comes up and every minute after. `/object_info` is megabytes that a backend
//! makes on the loop that also serves its clients: [`Capabilities`] (names of nodes and models) are
//! read when it comes up, when it may have restarted, and when the doctor asks. [`survey`] does the reading, [`difference`]
//! tells in what backends differ.
//!
//! Replies are bounded in size, and whatever has another shape than ComfyUI's is left out: a
//! custom node may write anything into them.

pub mod capabilities;
pub mod difference;
mod read;
pub mod survey;
pub mod system;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

pub use capabilities::Capabilities;
pub use difference::{Difference, Kind, Sighting, differences, lacked_by_all};
#[cfg(any(test, fuzzing))]
pub(crate) use read::PlainJson;
pub use survey::{Survey, Surveyor};
pub use system::{Device, System};

/// What is known of one backend; empty until it was read.
#[derive(Debug, Default)]
pub struct Inventory {
    system: ArcSwapOption<System>,
    capabilities: ArcSwapOption<Capabilities>,
    outdated: Notify,
}

impl Inventory {
    /// Version and devices as read last.
    pub fn system(&self) -> Option<Arc<System>> {
        self.system.load_full()
    }

    /// Nodes and models as read last.
    pub fn capabilities(&self) -> Option<Arc<Capabilities>> {
        self.capabilities.load_full()
    }

    /// Forgets everything: another server is at the backend's address.
    pub fn forget(&self) {
        self.system.store(None);
        self.capabilities.store(None);
    }

    /// The server may have restarted with other nodes and models, too fast for the probe to see: it
    /// is read again soon.
    pub fn outdate(&self) {
        self.outdated.notify_one();
    }

    fn found_system(&self, system: System) {
        self.system.store(Some(Arc::new(system)));
    }

    fn found_capabilities(&self, capabilities: Arc<Capabilities>) {
        self.capabilities.store(Some(capabilities));
    }
}

/// A text from a backend as it may be shown: without control characters, and short.
pub(crate) fn clean(text: &str, limit: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(limit).collect()
}
