//! What the page reads of the API's replies. The page shows what the API says and nothing else,
//! so that both agree and the script can update from the events what the server rendered.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A backend.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// How it stands.
    pub state: String,
    /// What the operator wants: `enabled`, `drain` or `disabled`.
    pub wanted: String,
    /// Used only when no other is healthy.
    pub backup: bool,
    /// What it has to do.
    pub queue: Queue,
    /// Clients that belong to it.
    pub sessions: u64,
    /// Their sockets.
    pub websockets: u64,
    /// Requests handed to it.
    pub calls: u64,
    /// Share of them that did not fail.
    pub success_rate: f64,
    /// Seconds per prompt.
    pub prompt_seconds: f64,
    /// ComfyUI's version.
    pub version: Option<String>,
    /// Its GPUs.
    pub devices: Vec<Device>,
    /// What it can do.
    pub task_types: Vec<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// What a backend has to do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Prompts that run.
    pub running: u64,
    /// Prompts that wait.
    pub pending: u64,
}

/// A GPU, as ComfyUI's `/system_stats` has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Bytes in all.
    pub vram_total: f64,
    /// Bytes free.
    pub vram_free: f64,
}

/// The totals.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// The strategy in force.
    pub strategy: String,
    /// Backends.
    pub backends: Counts,
    /// Clients.
    pub sessions: u64,
    /// Their sockets.
    pub websockets: u64,
    /// Prompts.
    pub tasks: Flow,
}

/// Backends in all and healthy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// In all.
    pub total: u64,
    /// Healthy.
    pub healthy: u64,
}

/// Prompts that have not ended.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Flow {
    /// They wait.
    pub queued: u64,
    /// They run.
    pub running: u64,
}

/// A task.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Task {
    /// Its id.
    pub task_id: String,
    /// How it stands.
    pub state: String,
    /// Whose it is.
    pub caller: String,
    /// Where it is.
    pub backend: Option<String>,
    /// When it came.
    pub created_at: Option<jiff::Timestamp>,
    /// When it began to run.
    pub started_at: Option<jiff::Timestamp>,
    /// When it ended.
    pub finished_at: Option<jiff::Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Reads an object of the API.
pub fn read<T: DeserializeOwned + Default>(shown: &impl Serialize) -> T {
    serde_json::to_value(shown).and_then(serde_json::from_value).unwrap_or_default()
}

/// Bytes used and in all, over all devices, in GiB; nothing when there is none.
pub fn memory(devices: &[Device]) -> Option<(f64, f64)> {
    const GIB: f64 = (1u64 << 30) as f64;
    let total: f64 = devices.iter().map(|device| device.vram_total).sum();
    let free: f64 = devices.iter().map(|device| device.vram_free).sum();
    (total > 0.0).then(|| ((total - free).max(0.0) / GIB, total / GIB))
}

/// Seconds for people; the script's `seconds` says the same.
pub fn seconds(value: f64) -> String {
    if value >= 600.0 {
        format!("{:.0} min", value / 60.0)
    } else if value >= 10.0 {
        format!("{value:.0} s")
    } else {
        format!("{value:.1} s")
    }
}

/// The backends of `GET /lb/backends`.
pub fn list(shown: &impl Serialize) -> Vec<Backend> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct List {
        backends: Vec<Backend>,
    }
    read::<List>(shown).backends
}
