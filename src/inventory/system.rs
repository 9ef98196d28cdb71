//! Version and devices, out of `GET /system_stats`.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::clean;

/// Devices of one backend at most.
const MAX_DEVICES: usize = 64;
/// Characters of a version and of a device's name at most.
const MAX_TEXT: usize = 256;

/// What a backend runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct System {
    /// ComfyUI's version; versions before 0.3 do not tell.
    pub version: Option<String>,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// A device of a backend; memory is in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct Device {
    /// Its name, such as `cuda:0 NVIDIA L40S : cudaMallocAsync`
    pub name: Option<String>,
    /// `cuda`, `cpu`, `mps`, …
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its number among those of its type
    pub index: Option<u64>,
    /// Memory
    pub vram_total: Option<u64>,
    /// Memory that is free
    pub vram_free: Option<u64>,
    /// Memory that `PyTorch` holds
    pub torch_vram_total: Option<u64>,
    /// Part of it that is free
    pub torch_vram_free: Option<u64>,
}

impl System {
    /// Takes what has the expected shape and leaves out the rest.
    pub fn of(stats: &Value) -> Self {
        let devices = stats["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            version: text(&stats["system"]["comfyui_version"]),
            devices: devices
                .iter()
                .filter(|device| device.is_object())
                .take(MAX_DEVICES)
                .map(Device::of)
                .collect(),
        }
    }
}

impl Device {
    fn of(device: &Value) -> Self {
        // Some backends count memory in floats.
        let number = |key: &str| {
            let value = &device[key];
            value.as_u64().or_else(|| value.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64))
        };
        Self {
            name: text(&device["name"]),
            kind: text(&device["type"]),
            index: number("index"),
            vram_total: number("vram_total"),
            vram_free: number("vram_free"),
            torch_vram_total: number("torch_vram_total"),
            torch_vram_free: number("torch_vram_free"),
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(|text| clean(text, MAX_TEXT)).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn version_and_devices_are_taken() {
        let system = System::of(&json!({"system": {"comfyui_version": "0.8.0", "os": "posix"},
            "devices": [{"name": "cuda:0", "type": "cuda", "index": 0, "vram_total": 48e9,
                "vram_free": 47_000_000_000_u64, "torch_vram_total": 1}]}));
        assert_eq!(system.version.as_deref(), Some("0.8.0"));
        let device = &system.devices[0];
        assert_eq!(
            (device.vram_total, device.vram_free),
            (Some(48_000_000_000), Some(47_000_000_000))
        );
        assert_eq!(device.kind.as_deref(), Some("cuda"));
        assert_eq!(device.torch_vram_free, None);
    }

    #[test]
    fn other_shapes_are_left_out() {
        for odd in [
            json!(null),
            json!([]),
            json!({"system": 1, "devices": {"a": 1}}),
            json!({"system": {"comfyui_version": 8}, "devices": [1, "x", null]}),
        ] {
            assert_eq!(System::of(&odd), System::default(), "{odd}");
        }
        let device =
            json!({"name": ["x"], "type": 1, "index": null, "vram_total": -1, "vram_free": "1"});
        assert_eq!(System::of(&json!({"devices": [device]})).devices, [Device::default()]);
    }

    #[test]
    fn texts_and_lists_are_bounded() {
        let devices = vec![json!({"name": "x\u{1b}[31m".repeat(1000)}); 1000];
        let system = System::of(&json!({"devices": devices}));
        assert_eq!(system.devices.len(), MAX_DEVICES);
        let name = system.devices[0].name.as_deref().unwrap();
        assert_eq!((name.len(), name.contains('\u{1b}')), (MAX_TEXT, false));
    }
}
