//! What the server tells about itself: nodes, models, system, extensions, logs.

use std::path::Path as FsPath;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::Core;
use super::nodes::recorded;
use super::prompt::json_body;
use super::reply::{Answer, Refusal, bad, empty, ok_json};

/// Model folders that have other names on disk too.
const OLD_NAMES: [(&str, [&str; 2]); 3] = [
    ("text_encoders", ["text_encoders", "clip"]),
    ("diffusion_models", ["unet", "diffusion_models"]),
    ("controlnet", ["controlnet", "t2i_adapter"]),
];
const MAX_EXTENSIONS: usize = 10_000;

/// `GET /object_info`.
pub(super) async fn nodes(State(core): State<Arc<Core>>) -> Response {
    let images = core.files.names("input");
    let info = |name: &str| Some((name.to_owned(), core.nodes.info(name, &images)?));
    let all = core.nodes.names().filter_map(info);
    ok_json(&Value::Object(all.collect()))
}

/// `GET /object_info/{class}`.
pub(super) async fn node(State(core): State<Arc<Core>>, Path(name): Path<String>) -> Response {
    let found = core.nodes.info(&name, &core.files.names("input"));
    ok_json(&found.map_or_else(|| json!({}), |info| json!({name: info})))
}

/// `GET /system_stats`.
pub(super) async fn system_stats(State(core): State<Arc<Core>>) -> Response {
    let mut stats = recorded("system_stats").clone();
    if let Some(arguments) = stats["system"]["argv"].as_array_mut() {
        after(arguments, "--port", core.addr.port().to_string());
        after(arguments, "--listen", core.addr.ip().to_string());
    }
    ok_json(&stats)
}

/// Sets the argument that follows a flag.
fn after(arguments: &mut [Value], flag: &str, value: String) {
    let at = arguments.iter().position(|argument| argument == flag);
    if let Some(place) = at.and_then(|at| arguments.get_mut(at + 1)) {
        *place = value.into();
    }
}

/// `GET /features`.
pub(super) async fn features(State(core): State<Arc<Core>>) -> Response {
    ok_json(&core.features())
}

/// An empty object: `/i18n`, `/workflow_templates`, `/global_subgraphs`.
pub(super) async fn nothing() -> Response {
    ok_json(&json!({}))
}

/// An empty list: `/embeddings`.
pub(super) async fn no_items() -> Response {
    ok_json(&json!([]))
}

/// `GET /global_subgraphs/{id}`: none has any id.
pub(super) async fn no_value() -> Response {
    ok_json(&Value::Null)
}

fn model_folders() -> impl Iterator<Item = &'static str> {
    recorded("models").as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn paths(folder: &str) -> Vec<String> {
    let named = OLD_NAMES.iter().find(|(name, _)| *name == folder);
    let names = named.map_or_else(|| vec![folder], |(_, names)| names.to_vec());
    let path = |name: &str| match name {
        "custom_nodes" => "/opt/comfyui/custom_nodes".to_owned(),
        name => format!("/opt/comfyui/models/{name}"),
    };
    names.into_iter().map(path).collect()
}

/// `GET /models`.
pub(super) async fn models() -> Response {
    ok_json(recorded("models"))
}

/// `GET /models/{folder}`.
pub(super) async fn models_in(State(core): State<Arc<Core>>, Path(folder): Path<String>) -> Answer {
    Ok(ok_json(&core.models_in(&folder)?.into()))
}

/// `GET /experiment/models/{folder}`.
pub(super) async fn models_told(
    State(core): State<Arc<Core>>,
    Path(folder): Path<String>,
) -> Answer {
    let told = |name: &String| json!({"name": name, "pathIndex": 0, "modified": 0.0, "created": 0.0, "size": 0});
    Ok(ok_json(&core.models_in(&folder)?.iter().map(told).collect()))
}

impl Core {
    /// The models of a folder: all there are, if any, are checkpoints.
    fn models_in(&self, folder: &str) -> Result<&[String], Refusal> {
        match folder {
            "checkpoints" => Ok(&self.config.models),
            _ if model_folders().any(|known| known == folder) => Ok(&[]),
            _ => Err(Refusal::Bare(StatusCode::NOT_FOUND)),
        }
    }
}

/// `GET /experiment/models`.
pub(super) async fn model_list() -> Response {
    let shown = model_folders().filter(|name| !matches!(*name, "configs" | "custom_nodes"));
    let list: Vec<Value> =
        shown.map(|name| json!({"name": name, "folders": paths(name)})).collect();
    ok_json(&list.into())
}

/// `GET /experiment/models/preview/{folder}/{index}/{file}`.
pub(super) async fn no_preview(Path((_, index, _)): Path<(String, String, String)>) -> Answer {
    index.parse::<u32>().map_err(|_| Refusal::Crash)?;
    Err(Refusal::Bare(StatusCode::NOT_FOUND))
}

/// `GET /view_metadata/{folder}`: there is no model to have metadata.
pub(super) async fn no_metadata() -> Response {
    empty(StatusCode::NOT_FOUND)
}

/// `GET /extensions`: of the stock page those it brings, else those that were recorded.
pub(super) async fn extensions(State(core): State<Arc<Core>>) -> Response {
    let Some(root) = &core.config.web_root else { return ok_json(recorded("extensions")) };
    let mut found = Vec::new();
    scripts(root, &root.join("extensions"), &mut found);
    found.sort();
    ok_json(&found.into())
}

fn scripts(root: &FsPath, folder: &FsPath, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if found.len() >= MAX_EXTENSIONS {
            return;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            scripts(root, &path, found);
        } else if path.extension().is_some_and(|suffix| suffix == "js") {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            found.push(format!("/{}", relative.display()));
        }
    }
}

/// `GET /internal/logs`.
pub(super) async fn log_text(State(core): State<Arc<Core>>) -> Response {
    let log = core.log.lock();
    let lines = log.iter().map(|entry| {
        let part = |name: &str| entry[name].as_str().unwrap_or_default();
        format!("{} - {}", part("t"), part("m"))
    });
    ok_json(&lines.collect::<String>().into())
}

/// `GET /internal/logs/raw`.
pub(super) async fn log_entries(State(core): State<Arc<Core>>) -> Response {
    let entries: Vec<Value> = core.log.lock().iter().cloned().collect();
    ok_json(&json!({"entries": entries, "size": {"cols": 80, "rows": 24}}))
}

/// `PATCH /internal/logs/subscribe`.
pub(super) async fn subscribe(State(core): State<Arc<Core>>, body: Bytes) -> Answer {
    let body = json_body(&body)?;
    let client = body.get("clientId").and_then(Value::as_str).ok_or(Refusal::Crash)?;
    let enabled = body.get("enabled").ok_or(Refusal::Crash)?;
    core.hub.subscribe_log(client, crate::comfy::lenient::truthy(enabled));
    Ok(empty(StatusCode::OK))
}

/// `GET /internal/folder_paths`.
pub(super) async fn folder_paths() -> Response {
    let all: Map<String, Value> =
        model_folders().map(|name| (name.to_owned(), paths(name).into())).collect();
    ok_json(&all.into())
}

/// `GET /internal/files/{type}`.
pub(super) async fn files(State(core): State<Arc<Core>>, Path(kind): Path<String>) -> Answer {
    if core.files.by_type(&kind).is_none() {
        return Err(bad("Invalid directory type"));
    }
    Ok(ok_json(&core.files.newest(&kind).into()))
}
