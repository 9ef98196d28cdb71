//! ComfyUI's protocol, as far as the gateway must understand it.

pub mod origin;
pub mod queue_count;
pub mod routes;
