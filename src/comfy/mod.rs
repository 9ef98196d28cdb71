//! ComfyUI's protocol, as far as the gateway must understand it.

pub mod queue_count;
