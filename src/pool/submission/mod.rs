//! The body of a POST /prompt: what the gateway reads of it, and what it makes of it.
//!
//! [`parse`] walks over the body once and keeps places, not documents: a prompt may have 100 MB
//! and 10,000 nodes. What ComfyUI itself refuses stays ComfyUI's to refuse: a body that no server
//! takes is [`Parsed::Hopeless`] and goes to any of them as it came. Only what the gateway adds
//! to the contract it refuses itself.
//!
//! Out of an accepted body come the texts that backends and clients get: [`render`] for a
//! backend, [`reply`] for the client's 200, [`queue_item`] for `/queue`, [`adopt`] for history,
//! [`jobs`] for `/api/jobs`. All of them splice text: what is not theirs to change stays as it was
//! written, byte for byte, `NaN` included. Everything here is pure. Reading a body of 100 MB takes
//! a good part of a second, so large ones belong on a thread of their own ([`LARGE`]).

mod ending;
mod entry;
mod graph;
mod item;
pub mod jobs;
mod layout;
mod number;
mod render;
pub mod scan;
mod splice;
mod wishes;

use std::sync::Arc;

use sha2::{Digest, Sha256};

pub use ending::Ending;
pub use entry::{Adoption, adopt, failed_entry};
pub use item::queue_item;
pub use number::{Counter, LAST, Number};
pub(crate) use render::accepted_id;
pub use render::{remote_id, render, reply, secrets_removed};
pub use wishes::Wishes;

use crate::pool::job::Needs;
use crate::rejection::{self, Rejection};
use crate::tasks::kind::Kind;
use layout::Layout;
use scan::{Json, Malformed};

/// Bytes of a body from which on it is to be read on a thread of its own.
pub const LARGE: usize = 1 << 20;
/// Bytes of a client id that are kept: a socket's cannot be as long, so that what is cut off of a
/// longer one meets none.
const MAX_CLIENT_ID: usize = 8190;

/// What becomes of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    /// It can be queued.
    Job(Box<Submission>),
    /// Every ComfyUI refuses it, each version in its own words: put it to any.
    Hopeless,
    /// The gateway refuses it.
    Refused(Rejection),
}

/// A prompt as it was handed in.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    layout: Layout,
    /// The id that the client gave it.
    pub prompt_id: Option<Arc<str>>,
    /// Whom its events are for.
    pub client_id: Option<Arc<str>>,
    /// The number that the client gave it.
    pub number: Option<f64>,
    /// Whether it goes before all others, when it brings no number.
    pub front: bool,
    /// What a server must have for it.
    pub needs: Needs,
    /// What its time is learnt by.
    pub kind: Option<Kind>,
    /// What it asks of the gateway.
    pub wishes: Wishes,
}

/// Reads the body of a POST /prompt.
pub fn parse(body: &[u8]) -> Parsed {
    if std::str::from_utf8(body).is_err() {
        return Parsed::Hopeless;
    }
    let (layout, graph) = match Layout::with_graph(body) {
        Ok(read) => read,
        Err(Malformed::Syntax) => return Parsed::Hopeless,
        Err(Malformed::Nesting) => {
            return Parsed::Refused(Rejection::new(
                rejection::Kind::BadRequest,
                "the body nests too deep",
            ));
        }
    };
    let object = |field: &layout::Field| field.of(body).is_object();
    let usable =
        layout.prompt.as_ref().is_some_and(object) && layout.extra_data.as_ref().is_none_or(object);
    if !usable {
        return Parsed::Hopeless;
    }
    match Submission::read(body, layout, graph) {
        Ok(submission) => Parsed::Job(Box::new(submission)),
        Err(refused) => Parsed::Refused(refused),
    }
}

impl Submission {
    fn read(body: &[u8], layout: Layout, mut graph: graph::Graph) -> Result<Self, Rejection> {
        let value = |field: &Option<layout::Field>| field.as_ref().map(|field| field.of(body));
        let wishes = Wishes::read(value(&layout.wishes))?;
        let mut needs = graph.needs();
        needs.task_type.clone_from(&wishes.task_type);
        Ok(Self {
            prompt_id: value(&layout.prompt_id).map_or(Ok(None), prompt_id)?,
            // The one at the top is copied over the other one, null as well.
            client_id: value(&layout.client_id)
                .or_else(|| value(&layout.extra_client_id))
                .and_then(client_id),
            number: value(&layout.number).map(number::given).transpose()?,
            front: value(&layout.front).is_some_and(truthy),
            needs,
            kind: graph.kind(),
            wishes,
            layout,
        })
    }

    /// Its number: the client's, or the next of the counter, which also counts what is refused.
    pub fn number(&self, counter: &Counter) -> Number {
        self.number.map_or_else(|| counter.next(self.front), Number::Given)
    }

    /// The body for a backend, as [`render`] without walking over it again.
    pub fn render(&self, body: &[u8], sid: &str, number: f64, prompt_id: &str) -> bytes::Bytes {
        render::rendered(body, &self.layout, sid, number, prompt_id)
    }
}

/// Tells bodies apart: a prompt id may be used again only with the same body.
pub fn fingerprint(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// A canonical UUID, or none where it is null.
fn prompt_id(json: Json<'_>) -> Result<Option<Arc<str>>, Rejection> {
    if json.is_null() {
        return Ok(None);
    }
    let id = json.text().filter(|id| is_canonical_uuid(id));
    id.map(|id| Some(id.into())).ok_or_else(|| {
        Rejection::new(rejection::Kind::InvalidPromptId, "prompt_id is no canonical UUID")
            .cure("write it in lower case with hyphens, or leave it out to be given one")
    })
}

/// Whether `str(uuid.UUID(text)) == text`.
pub fn is_canonical_uuid(text: &str) -> bool {
    let right = |(at, byte): (usize, u8)| match at {
        8 | 13 | 18 | 23 => byte == b'-',
        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    text.len() == 36 && text.bytes().enumerate().all(right)
}

/// The client's id; what is no string is taken as it is written.
fn client_id(json: Json<'_>) -> Option<Arc<str>> {
    if json.is_null() {
        return None;
    }
    let text = json.text().unwrap_or_else(|| String::from_utf8_lossy(json.0));
    Some(text[..text.floor_char_boundary(MAX_CLIENT_ID)].into())
}

/// `bool(value)`.
fn truthy(json: Json<'_>) -> bool {
    match json.0 {
        b"null" | b"false" | b"\"\"" => false,
        [b'[', inside @ .., b']'] | [b'{', inside @ .., b'}'] => !inside.trim_ascii().is_empty(),
        _ => json.number() != Some(0.0),
    }
}

#[cfg(test)]
mod tests;
