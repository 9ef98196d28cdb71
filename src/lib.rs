//! comfygate: one address in front of a farm of ComfyUI servers.

pub mod affinity;
pub mod cli;
pub mod config;
pub mod conformance;
pub mod identity;
pub mod relay;
pub mod retry;
pub mod sim;
pub mod state;
