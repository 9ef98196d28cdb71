//! What each node does when it runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::graph::{Made, NodeCache};
use super::nodes::LOADER;
use super::picture::{self, Picture};
use super::reply::python_json;
use super::worker::Run;

/// `PacedImage` takes no longer than its declared maximum.
const MAX_SECONDS: f64 = 600.0;

/// Why a node did not end well.
#[derive(Debug)]
pub(super) enum Stop {
    /// The client asked for it.
    Interrupted,
    /// An exception.
    Failed {
        /// Its type.
        kind: &'static str,
        /// Its text, with the newline ComfyUI adds.
        message: String,
    },
}

impl Stop {
    fn failed(kind: &'static str, text: impl std::fmt::Display) -> Self {
        Self::Failed { kind, message: format!("{text}\n") }
    }
}

impl Run<'_> {
    /// Runs the node of this id.
    pub(super) async fn perform(&mut self, id: &str, cache: &NodeCache) -> Result<Made, Stop> {
        let node = &self.item.prompt[id];
        let inputs = &node["inputs"];
        match node["class_type"].as_str().unwrap_or_default() {
            "PacedImage" => self.paced(id, inputs).await,
            "EmptyImage" => Ok(empty_image(inputs)),
            "LoadImage" => self.load(inputs).await,
            LOADER => Ok(Made { images: Vec::new(), ui: None }),
            "SaveImage" => self.save(id, inputs, cache, false).await,
            "PreviewImage" => self.save(id, inputs, cache, true).await,
            other => Err(Stop::failed("KeyError", format!("'{other}'"))),
        }
    }

    /// Sleeps its seconds in steps, reporting each, and makes the image of its seed.
    async fn paced(&mut self, id: &str, inputs: &Value) -> Result<Made, Stop> {
        let steps = inputs["steps"].as_u64().unwrap_or(1).max(1);
        let fail_at = inputs["fail_at"].as_i64().unwrap_or(-1);
        let shows = inputs["preview"].as_bool().unwrap_or_default();
        let seconds = inputs["seconds"].as_f64().unwrap_or_default().clamp(0.0, MAX_SECONDS);
        let pause = Duration::from_secs_f64(seconds / steps as f64 / self.core.speed());
        for step in 0..steps {
            if i64::try_from(step) == Ok(fail_at) {
                return Err(Stop::failed("RuntimeError", format!("asked to fail at step {step}")));
            }
            self.core.die_if_due(step);
            if pause.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(pause).await;
            }
            if self.core.interrupted() {
                return Err(Stop::Interrupted);
            }
            self.step(id, step + 1, steps, shows);
        }
        let seed = inputs["seed"].as_u64().unwrap_or_default();
        Ok(Made { images: vec![Picture::Seed(seed)], ui: None })
    }

    /// Reports a step: to clients with the flag the preview comes before `progress` and with
    /// metadata, to others after it and bare.
    fn step(&mut self, id: &str, value: u64, max: u64, shows: bool) {
        self.progress.update(id, value, max);
        self.send_progress();
        let hub = &self.core.hub;
        let preview = shows.then(|| picture::preview(value, max));
        let with_metadata = hub.wants_metadata(self.client);
        if let Some(jpeg) = preview.filter(|_| with_metadata) {
            hub.send_binary(self.client, preview_with_metadata(id, &self.item.id, jpeg));
        }
        let data = json!({"value": value, "max": max, "prompt_id": self.item.id, "node": id});
        hub.send(self.client, "progress", data);
        if let Some(jpeg) = preview.filter(|_| !with_metadata) {
            hub.send_binary(self.client, [&[0, 0, 0, 1, 0, 0, 0, 1], jpeg].concat());
        }
    }

    async fn load(&self, inputs: &Value) -> Result<Made, Stop> {
        let name = inputs["image"].as_str().unwrap_or_default();
        let path = self.core.files.annotated(name, "input");
        let path = path.filter(|path| path.is_file());
        let path = path.ok_or_else(|| Stop::failed("FileNotFoundError", name))?;
        let picture = Picture::File(path);
        let checked = picture.clone();
        let check = tokio::task::spawn_blocking(move || checked.check()).await;
        if matches!(check, Ok(Ok(()))) {
            return Ok(Made { images: vec![picture], ui: None });
        }
        let text = format!("cannot identify image file '{name}'");
        Err(Stop::failed("PIL.UnidentifiedImageError", text))
    }

    async fn save(
        &self,
        id: &str,
        inputs: &Value,
        cache: &NodeCache,
        temporary: bool,
    ) -> Result<Made, Stop> {
        let made = self.linked(&inputs["images"], cache);
        let made = made.ok_or_else(|| Stop::failed("KeyError", "images"))?;
        let prefix = if temporary {
            format!("ComfyUI_temp_{}", self.core.temp_suffix)
        } else {
            inputs["filename_prefix"].as_str().unwrap_or_default().to_owned()
        };
        let folder = if temporary { "temp" } else { "output" };
        let files = Arc::clone(&self.core.files);
        let written = tokio::task::spawn_blocking(move || {
            made.images.iter().map(|image| write(&files, folder, &prefix, image)).collect()
        });
        let written: Result<Vec<Value>, Stop> =
            written.await.map_err(|error| Stop::failed("RuntimeError", error))?;
        let meta = json!({
            "node_id": id, "display_node": id, "parent_node": null, "real_node_id": id,
        });
        let ui = Some((meta, json!({"images": written?})));
        Ok(Made { images: Vec::new(), ui })
    }
}

fn write(
    files: &super::files::Files,
    folder: &'static str,
    prefix: &str,
    image: &Picture,
) -> Result<Value, Stop> {
    let place = files.next_output(folder, prefix);
    let (path, name, subfolder) = place.map_err(|error| Stop::failed("Exception", error))?;
    image.write_png(Path::new(&path)).map_err(|error| Stop::failed("OSError", error))?;
    files.remember_output(path);
    Ok(json!({"filename": name, "subfolder": subfolder, "type": folder}))
}

fn empty_image(inputs: &Value) -> Made {
    let side = |name: &str| u32::try_from(inputs[name].as_u64().unwrap_or(1)).unwrap_or(1);
    let picture = Picture::Plain {
        width: side("width"),
        height: side("height"),
        color: u32::try_from(inputs["color"].as_u64().unwrap_or_default()).unwrap_or_default(),
    };
    let batch = inputs["batch_size"].as_u64().unwrap_or(1).clamp(1, 4096) as usize;
    Made { images: vec![picture; batch], ui: None }
}

fn preview_with_metadata(node: &str, prompt_id: &str, jpeg: &[u8]) -> Vec<u8> {
    let metadata = python_json(&json!({
        "node_id": node, "prompt_id": prompt_id, "display_node_id": node,
        "parent_node_id": null, "real_node_id": node, "image_type": "image/jpeg",
    }));
    let length = u32::try_from(metadata.len()).unwrap_or_default().to_be_bytes();
    [&[0, 0, 0, 4], &length[..], metadata.as_bytes(), jpeg].concat()
}
