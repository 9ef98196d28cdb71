//! What `/api/jobs` says of a job, kept small: a hundred thousand of them stay in memory.
//!
//! Texts that a client or a server chose are bounded: an error is cut to its main fields when it
//! is longer than [`MAX_ERROR`], a preview to its name when it is longer than [`MAX_PREVIEW`].

use serde::{Deserialize, Serialize};

use super::super::ending::Told;
use super::super::layout::Layout;
use super::super::number::Number;
use super::super::scan::{Json, Key};
use super::super::splice::{add_member, quoted};
use crate::pool::job::Job;

/// Bytes of an error that is kept whole.
const MAX_ERROR: usize = 4 << 10;
/// Bytes of a preview that is kept whole.
const MAX_PREVIEW: usize = 1 << 10;
/// Characters of each text of what was cut.
const MAX_TEXT: usize = 500;
/// Bytes of a workflow's id.
const MAX_WORKFLOW_ID: usize = 128;

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The id that its client knows.
    pub prompt_id: Box<str>,
    /// Its number as ComfyUI writes it.
    pub priority: Box<str>,
    /// Milliseconds since 1970 when it came.
    pub create_time: u64,
    /// The workflow's id, as JSON.
    pub workflow_id: Option<Box<str>>,
    /// What is known since it ended.
    pub ended: Option<Box<Ended>>,
}

/// What is known of a job that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Whether ComfyUI calls it failed; an interrupted one is, too.
    pub failed: bool,
    /// Milliseconds since 1970.
    pub start: Option<f64>,
    /// Milliseconds since 1970.
    pub end: Option<f64>,
    /// The data of `execution_error`, as JSON.
    pub error: Option<Box<str>>,
    /// How many files it made.
    pub outputs: u32,
    /// The one to show, as JSON.
    pub preview: Option<Box<str>>,
}

impl Summary {
    /// Of a job that has not ended.
    pub fn of(job: &Job) -> Self {
        let layout = Layout::of(&job.body).unwrap_or_default();
        let extra_data = layout.extra_data.as_ref().map(|field| field.of(&job.body));
        let number = match layout.number {
            Some(_) => Number::Given(job.number),
            None => Number::Counted(job.number as i64),
        };
        Self {
            prompt_id: (*job.prompt_id).into(),
            priority: number.to_string().into(),
            create_time: job.created_ms,
            workflow_id: extra_data.and_then(workflow_id),
            ended: None,
        }
    }

    /// Of the same job with its history entry, as [`adopt`](super::super::adopt) gave it.
    #[must_use]
    pub fn ended(mut self, entry: &[u8]) -> Self {
        let told = Told::of(Json(entry));
        let (outputs, preview) = outputs(Json(entry).get("outputs"));
        self.ended = Some(Box::new(Ended {
            failed: told.ending.is_error,
            start: told.ending.start,
            end: told.ending.end,
            error: told.error.map(error),
            outputs,
            preview,
        }));
        self
    }
}

/// `extra_pnginfo.workflow.id`; null shows as nothing.
fn workflow_id(extra_data: Json<'_>) -> Option<Box<str>> {
    let id = extra_data.get("extra_pnginfo")?.get("workflow")?.get("id")?;
    let fits = !id.is_null() && id.0.len() <= MAX_WORKFLOW_ID;
    fits.then(|| String::from_utf8_lossy(id.0).into())
}

fn error(data: Json<'_>) -> Box<str> {
    if data.0.len() <= MAX_ERROR {
        return String::from_utf8_lossy(data.0).into();
    }
    let mut cut = b"{}".to_vec();
    let names = ["prompt_id", "node_id", "node_type", "exception_message", "exception_type"];
    for name in names {
        let text = data.get(name).and_then(Json::text).unwrap_or_default();
        let text: String = text.chars().take(MAX_TEXT).collect();
        add_member(&mut cut, name, quoted(&text).as_bytes());
    }
    for (name, empty) in [
        ("executed", "[]"),
        ("traceback", "[]"),
        ("current_inputs", "{}"),
        ("current_outputs", "[]"),
    ] {
        add_member(&mut cut, name, empty.as_bytes());
    }
    if let Some(time) = data.get("timestamp").filter(|time| time.number().is_some()) {
        add_member(&mut cut, "timestamp", time.0);
    }
    String::from_utf8_lossy(&cut).into()
}

/// How many files there are, and the one to show: an output before any other.
fn outputs(outputs: Option<Json<'_>>) -> (u32, Option<Box<str>>) {
    let (mut count, mut output, mut other) = (0_u32, None, None);
    let Some(outputs) = outputs else { return (0, None) };
    outputs.each_member(|node, lists| {
        lists.each_member(|kind, list| {
            // `animated` is a list of flags.
            if kind.is("animated") {
                return;
            }
            list.each_item(|file| {
                if !file.is_object() {
                    return;
                }
                count = count.saturating_add(1);
                if output.is_none() && is_previewable(kind, file) {
                    let is_output = text(file, "type").as_deref() == Some("output");
                    let place = if is_output { &mut output } else { &mut other };
                    place.get_or_insert_with(|| preview(file, node, kind));
                }
            });
        });
    });
    (count, output.or(other))
}

/// Whether the page can show such a file.
fn is_previewable(kind: Key<'_>, file: Json<'_>) -> bool {
    let shown = ["images", "video", "audio"].iter().any(|shown| kind.is(shown));
    let format = text(file, "format").unwrap_or_default();
    let name = text(file, "filename").unwrap_or_default().to_lowercase();
    shown
        || ["video/", "audio/"].iter().any(|start| format.starts_with(start))
        || [".obj", ".fbx", ".gltf", ".glb"].iter().any(|end| name.ends_with(end))
}

fn text(file: Json<'_>, name: &str) -> Option<String> {
    file.get(name).and_then(Json::text).map(std::borrow::Cow::into_owned)
}

/// The file with the node and the kind of output that it is of.
fn preview(file: Json<'_>, node: Key<'_>, kind: Key<'_>) -> Box<str> {
    let mut shown = file.0.to_vec();
    if shown.len() > MAX_PREVIEW {
        shown = b"{}".to_vec();
        for name in ["filename", "subfolder", "type"] {
            let value = file.get(name).filter(|value| value.0.len() <= MAX_TEXT);
            add_member(&mut shown, name, value.map_or(b"\"\"".as_slice(), |value| value.0));
        }
    }
    for (name, key) in [("nodeId", node), ("mediaType", kind)] {
        let text: String = key.text().chars().take(MAX_TEXT).collect();
        add_member(&mut shown, name, quoted(&text).as_bytes());
    }
    String::from_utf8_lossy(&shown).into()
}
