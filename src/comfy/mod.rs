//! ComfyUI's protocol, as far as the gateway must understand it.

pub mod file_response;
pub mod history;
pub mod lenient;
pub mod origin;
pub mod python;
pub mod queue_count;
pub mod queue_items;
pub mod routes;
