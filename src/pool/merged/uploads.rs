//! The files that the gateway keeps for its clients, as far as `/object_info` offers them.

use std::sync::Arc;

/// Names of input files; one with a folder in front is not offered, as ComfyUI offers none.
pub type Files = Arc<Vec<String>>;

/// Tells the files there are now. It is called for every request: whoever implements it keeps the
/// list until it changes.
pub type Uploads = Arc<dyn Fn() -> Files + Send + Sync>;

/// Of a gateway that keeps no files.
pub fn none() -> Uploads {
    let empty = Files::default();
    Arc::new(move || Arc::clone(&empty))
}
