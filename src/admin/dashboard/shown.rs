//! What the page reads of the API's replies. The page shows what the API says and nothing else,
//! so that both agree and the script can update from the events what the server rendered.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A backend.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Backend {
    /// Its name.
    pub(super) name: String,
    /// Where it is.
    pub(super) url: String,
    /// How it stands.
    pub(super) state: String,
    /// What the operator wants: `enabled`, `drain` or `disabled`.
    pub(super) wanted: String,
    /// Used only when no other is healthy.
    pub(super) backup: bool,
    /// What it has to do.
    pub(super) queue: Queue,
    /// Clients that belong to it.
    pub(super) sessions: u64,
    /// Their sockets.
    pub(super) websockets: u64,
    /// Requests handed to it.
    pub(super) calls: u64,
    /// Share of them that did not fail.
    pub(super) success_rate: f64,
    /// Seconds per prompt.
    pub(super) prompt_seconds: f64,
    /// ComfyUI's version.
    pub(super) version: Option<String>,
    /// Its GPUs.
    pub(super) devices: Vec<Device>,
    /// What it can do.
    pub(super) task_types: Vec<String>,
    /// What went wrong last.
    pub(super) last_error: Option<String>,
}

/// What a backend has to do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Queue {
    /// Prompts that run.
    pub(super) running: u64,
    /// Prompts that wait.
    pub(super) pending: u64,
}

/// A GPU, as ComfyUI's `/system_stats` has it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Device {
    /// Bytes in all.
    pub(super) vram_total: f64,
    /// Bytes free.
    pub(super) vram_free: f64,
}

/// The totals.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    /// The strategy in force.
    pub(super) strategy: String,
    /// Backends.
    pub(super) backends: Counts,
    /// Clients.
    pub(super) sessions: u64,
    /// Their sockets.
    pub(super) websockets: u64,
    /// Prompts.
    pub(super) tasks: Flow,
}

/// Backends in all and healthy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Counts {
    /// In all.
    pub(super) total: u64,
    /// Healthy.
    pub(super) healthy: u64,
}

/// Prompts that have not ended.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Flow {
    /// They wait.
    pub(super) queued: u64,
    /// They run.
    pub(super) running: u64,
}

/// A task.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "named as in the API")]
pub(super) struct Task {
    /// Its id.
    pub(super) task_id: String,
    /// How it stands.
    pub(super) state: String,
    /// Whose it is.
    pub(super) caller: String,
    /// Where it is.
    pub(super) backend: Option<String>,
    /// When it came.
    pub(super) created_at: Option<jiff::Timestamp>,
    /// When it began to run.
    pub(super) started_at: Option<jiff::Timestamp>,
    /// When it ended.
    pub(super) finished_at: Option<jiff::Timestamp>,
    /// Why it failed.
    pub(super) error: Option<String>,
}

/// Reads an object of the API.
pub(super) fn read<T: DeserializeOwned + Default>(shown: &impl Serialize) -> T {
    serde_json::to_value(shown).and_then(serde_json::from_value).unwrap_or_default()
}

/// Bytes used and in all, over all devices, in GiB; nothing when there is none.
pub(super) fn memory(devices: &[Device]) -> Option<(f64, f64)> {
    const GIB: f64 = (1u64 << 30) as f64;
    let total: f64 = devices.iter().map(|device| device.vram_total).sum();
    let free: f64 = devices.iter().map(|device| device.vram_free).sum();
    (total > 0.0).then(|| ((total - free).max(0.0) / GIB, total / GIB))
}

/// Seconds for people; the script's `seconds` says the same.
pub(super) fn seconds(value: f64) -> String {
    if value >= 600.0 {
        format!("{:.0} min", value / 60.0)
    } else if value >= 10.0 {
        format!("{value:.0} s")
    } else {
        format!("{value:.1} s")
    }
}

/// The backends of `GET /lb/backends`.
pub(super) fn list(shown: &impl Serialize) -> Vec<Backend> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct List {
        backends: Vec<Backend>,
    }
    read::<List>(shown).backends
}
