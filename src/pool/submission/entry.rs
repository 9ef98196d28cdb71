//! A history entry as its client would have got it from one server.
//!
//! The entry comes from a backend, which is not trusted: it is walked over, never built, and its
//! file objects are looked at one by one, each of [`MAX_FILE`] bytes at most.

use bytes::Bytes;
use serde_json::Value;

use super::item::{item, outputs, queue_item};
use super::layout::Layout;
use super::scan::{Json, Scanner, Span, Watch};
use super::splice::{Edits, Member, add_member, quoted, rebuilt};
use crate::comfy::lenient;
use crate::pool::job::Job;

/// Bytes of an object that describes a file; a longer one is left as it is.
const MAX_FILE: usize = 64 << 10;

/// What it takes to make a backend's entry the client's.
pub struct Adoption<'a> {
    /// The job.
    pub job: &'a Job,
    /// The backend's 200.
    pub reply: &'a [u8],
    /// The id under which the backend ran it.
    pub remote_id: &'a str,
    /// Whether a node type is an output's, where the entry does not tell which outputs ran.
    pub is_output: &'a dyn Fn(&str) -> bool,
    /// Whether the backend was given another graph than the client's (names of files, say). Else
    /// its word on the graph counts, inputs converted to their types.
    pub rewritten: bool,
    /// Marks an object that describes a file with the backend that has it.
    pub mark: &'a dyn Fn(&mut Value),
}

/// A backend's history entry as the client is to get it; `None` when it is no entry.
pub fn adopt(entry: &[u8], with: &Adoption<'_>) -> Option<Bytes> {
    let entry = Json::of(entry)?;
    let mut has_prompt = false;
    let mut built = rebuilt(entry.0, |key, value| {
        if key.is("prompt") {
            has_prompt = true;
            Member::Become(listed(Json(value), with).to_vec())
        } else if key.is("outputs") || key.is("meta") {
            Member::Become(marked(value, with.mark))
        } else if key.is("status") && with.remote_id != &*with.job.prompt_id {
            Member::Become(renamed(value, with.remote_id, &with.job.prompt_id))
        } else {
            Member::Keep
        }
    })?;
    if !has_prompt {
        let item = queue_item(with.job, with.reply, with.is_output);
        add_member(&mut built, "prompt", &item);
    }
    Some(built.into())
}

/// The entry of a job that no server has one of.
pub fn failed_entry(
    job: &Job,
    reply: &[u8],
    is_output: &dyn Fn(&str) -> bool,
    error: &str,
    now_ms: u64,
) -> Bytes {
    let message = serde_json::json!(["execution_error", {
        "prompt_id": &*job.prompt_id, "node_id": "", "node_type": "", "executed": [],
        "exception_message": error, "exception_type": "comfygate", "traceback": [],
        "current_inputs": {}, "current_outputs": [], "timestamp": now_ms,
    }]);
    let status =
        serde_json::json!({"status_str": "error", "completed": false, "messages": [message]});
    let item = queue_item(job, reply, is_output);
    let tail = format!(", \"outputs\": {{}}, \"status\": {status}, \"meta\": {{}}}}");
    [b"{\"prompt\": ", &item[..], tail.as_bytes()].concat().into()
}

/// The five-item list of an entry in the job's own words.
fn listed(theirs: Json<'_>, with: &Adoption<'_>) -> Bytes {
    let layout = Layout::of(&with.job.body).unwrap_or_default();
    let own = layout.prompt.as_ref().map_or(Json(b"{}"), |field| field.of(&with.job.body));
    let their_prompt = theirs.item(2).filter(|prompt| prompt.is_object() && !with.rewritten);
    let their_outputs = theirs.item(4).filter(|outputs| outputs.is_array());
    let outputs = match their_outputs {
        Some(outputs) => outputs.0.to_vec(),
        None => outputs(own, &layout, with.job, with.reply, with.is_output),
    };
    item(with.job, &layout, their_prompt.unwrap_or(own).0, &outputs)
}

/// The text with every object that describes a file marked.
fn marked(text: &[u8], mark: &dyn Fn(&mut Value)) -> Vec<u8> {
    let mut files = Files { text, open: Vec::new(), found: Vec::new() };
    let mut edits = Edits::default();
    if Scanner::new(text).value(&mut files).is_ok() {
        for span in files.found {
            let Ok(was) = lenient::from_slice::<Value>(&text[span.clone()]) else { continue };
            let mut now = was.clone();
            mark(&mut now);
            if now != was {
                edits.replace(span, now.to_string());
            }
        }
    }
    edits.apply(text)
}

/// Looks for the outermost objects with a `filename`.
struct Files<'a> {
    text: &'a [u8],
    /// Where what is open begins, and whether it is what is looked for.
    open: Vec<(usize, bool)>,
    found: Vec<Span>,
}

impl Watch for Files<'_> {
    fn open(&mut self, at: usize, _object: bool) {
        self.open.push((at, false));
    }

    fn close(&mut self, end: usize) {
        if let Some((start, true)) = self.open.pop()
            && end - start <= MAX_FILE
        {
            while self.found.last().is_some_and(|inside| inside.start > start) {
                self.found.pop();
            }
            self.found.push(start..end);
        }
    }

    fn key(&mut self, span: Span) {
        if &self.text[span] == b"filename"
            && let Some((_, found)) = self.open.last_mut()
        {
            *found = true;
        }
    }
}

/// The text with one prompt id in place of another.
fn renamed(text: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut ids = Ids { text, from, is_id: false, edits: Edits::default(), to: quoted(to) };
    match Scanner::new(text).value(&mut ids) {
        Ok(_) => ids.edits.apply(text),
        Err(_) => text.to_vec(),
    }
}

struct Ids<'a> {
    text: &'a [u8],
    from: &'a str,
    to: String,
    /// Whether the last key was `prompt_id`.
    is_id: bool,
    edits: Edits,
}

impl Watch for Ids<'_> {
    fn key(&mut self, span: Span) {
        self.is_id = &self.text[span] == b"prompt_id";
    }

    fn scalar(&mut self, span: Span) {
        let is_id = std::mem::take(&mut self.is_id);
        if is_id && Json(&self.text[span.clone()]).text().is_some_and(|id| id == self.from) {
            self.edits.replace(span, self.to.clone());
        }
    }
}
