//! ComfyUI's protocol, as far as the gateway must understand it.

pub mod class;
pub mod file_reply;
pub mod history;
pub mod lenient;
pub mod origin;
pub mod paths;
pub mod queue_count;
pub mod queue_items;
pub mod reply;
pub mod routes;
pub mod view;
