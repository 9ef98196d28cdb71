//! comfygate: one address in front of a farm of ComfyUI servers.

pub mod affinity;
pub mod cli;
pub mod clock;
pub mod comfy;
pub mod config;
pub mod conformance;
pub mod depth;
pub mod health;
pub mod identity;
pub mod pace;
pub mod relay;
pub mod retry;
pub mod ring;
pub mod selection;
pub mod sim;
