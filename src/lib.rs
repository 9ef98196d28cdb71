//! comfygate: one address in front of a farm of ComfyUI servers.

pub mod affinity;
pub mod backend;
pub mod cli;
pub mod clock;
pub mod comfy;
pub mod config;
pub mod conformance;
pub mod depth;
pub mod fleet;
pub mod health;
pub mod identity;
pub mod logging;
pub mod pace;
pub mod probe;
pub mod relay;
pub mod retry;
pub mod ring;
pub mod selection;
pub mod sim;
pub mod state;
