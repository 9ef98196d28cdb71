//! A message of a backend as what it means.

use std::borrow::Cow;

use serde::Deserialize;

use super::binary;
use super::head::{self, Head, Node};
use crate::pool::frame::{Frame, Meaning};

/// An `execution_error` of this type ends a branch of the graph, not the prompt.
const BLOCKED: &str = "ExecutionBlocked";

/// A message, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard<'a> {
    /// Its `type`; empty for a binary message and for text that has none.
    pub name: Cow<'a, str>,
    /// The prompt that it names.
    pub prompt_id: Option<Cow<'a, str>>,
    /// What it is to the one who gets it.
    pub meaning: Meaning,
    /// What it is to the gateway.
    pub kind: Kind,
}

/// Kinds of messages, as far as they are treated differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `status`: the length of the queue.
    Status {
        /// `queue_remaining`, if it could be read.
        remaining: Option<u32>,
        /// Whom it greets: only the first message of a new socket says.
        sid: Option<Box<str>>,
    },
    /// `feature_flags`: the server's answer to those of the client.
    FeatureFlags,
    /// `logs`: lines of the terminal for a sid that subscribed.
    Logs,
    /// One of `ComfyUI`'s own events of a running prompt.
    Event,
    /// Binary type 1: a preview without ids.
    Preview,
    /// Binary type 4: a preview with metadata.
    PreviewWithMetadata,
    /// Binary type 3: text of a node, without the prompt's id.
    Text,
    /// Anything else: a custom node's.
    Custom,
}

impl Heard<'_> {
    /// Whether `ComfyUI` sends it to everybody when its prompt has no client; the rest it drops.
    pub fn is_for_all_without_client(&self) -> bool {
        match self.kind {
            Kind::Event => match &*self.name {
                "progress" | "progress_state" | "execution_interrupted" => true,
                "execution_error" => self.meaning != Meaning::Terminal,
                _ => false,
            },
            Kind::Status { .. } | Kind::Preview | Kind::Text | Kind::Custom => true,
            Kind::FeatureFlags | Kind::Logs | Kind::PreviewWithMetadata => false,
        }
    }
}

/// Reads a message. What cannot be read is [`Kind::Custom`] without a name.
pub fn parse(frame: &Frame) -> Heard<'_> {
    if frame.binary {
        return of_binary(&frame.bytes);
    }
    let Head { name, data } = head::read(&frame.bytes).unwrap_or_default();
    let name = name.unwrap_or_default();
    let (kind, meaning) = match &*name {
        "status" => (status(&frame.bytes), Meaning::Other),
        "feature_flags" => (Kind::FeatureFlags, Meaning::Other),
        "logs" => (Kind::Logs, Meaning::Other),
        "execution_start" => (Kind::Event, Meaning::Start),
        "execution_cached" => (Kind::Event, Meaning::Cached),
        "executing" if data.node == Node::Null => (Kind::Event, Meaning::End),
        "executing" => (Kind::Event, Meaning::Executing),
        "executed" => (Kind::Event, Meaning::Output),
        "progress" => (Kind::Event, Meaning::Progress),
        "progress_state" => (Kind::Event, Meaning::ProgressState),
        "execution_error" if data.exception.as_deref() == Some(BLOCKED) => {
            (Kind::Event, Meaning::Other)
        }
        "execution_success" | "execution_error" | "execution_interrupted" => {
            (Kind::Event, Meaning::Terminal)
        }
        _ => (Kind::Custom, Meaning::Other),
    };
    Heard { name, prompt_id: data.prompt_id, meaning, kind }
}

fn of_binary(bytes: &[u8]) -> Heard<'_> {
    let (kind, meaning, prompt_id) = match binary::split_id(bytes) {
        Some((binary::PREVIEW, _)) => (Kind::Preview, Meaning::Preview, None),
        Some((binary::TEXT, _)) => (Kind::Text, Meaning::Other, None),
        Some((binary::PREVIEW_WITH_METADATA, rest)) => {
            let metadata = binary::split_metadata(rest).and_then(|(json, _)| head::read_data(json));
            let prompt_id = metadata.and_then(|metadata| metadata.prompt_id);
            (Kind::PreviewWithMetadata, Meaning::Preview, prompt_id)
        }
        _ => (Kind::Custom, Meaning::Other, None),
    };
    Heard { name: Cow::Borrowed(""), prompt_id, meaning, kind }
}

fn status(text: &[u8]) -> Kind {
    #[derive(Deserialize)]
    struct Event {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        status: Option<Status>,
        sid: Option<Box<str>>,
    }
    #[derive(Deserialize)]
    struct Status {
        exec_info: ExecInfo,
    }
    #[derive(Deserialize)]
    struct ExecInfo {
        queue_remaining: u32,
    }
    let read = serde_json::from_slice::<Event>(text).ok().map(|event| event.data);
    let (status, sid) = read.map_or((None, None), |data| (data.status, data.sid));
    Kind::Status { remaining: status.map(|status| status.exec_info.queue_remaining), sid }
}
