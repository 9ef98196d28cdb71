//! The body of a prompt as a backend gets it, and the backend's reply as the client gets it.

use std::fmt;

use bytes::Bytes;

use super::layout::{Field, Layout};
use super::number::python_float;
use super::scan::{Json, Scanner};
use super::splice::{Edits, Member, add_member, quoted, rebuilt};
use crate::comfy::queue_items::MAX_ID;

/// Keys of `extra_data` that are for the nodes alone.
pub(super) const SECRETS: [&str; 2] = ["auth_token_comfy_org", "api_key_comfy_org"];

/// The body for a backend: the same text under another client id, number and prompt id, without
/// `front`, which the number stands for. A body that cannot be read stays as it is.
pub fn render(body: &Bytes, sid: &str, number: f64, prompt_id: &str) -> Bytes {
    match Layout::of(body) {
        Ok(layout) => rendered(body, &layout, sid, number, prompt_id),
        Err(_) => body.clone(),
    }
}

pub(super) fn rendered(
    body: &[u8],
    layout: &Layout,
    sid: &str,
    number: f64,
    prompt_id: &str,
) -> Bytes {
    let mut edits = Edits::default();
    let mut added = String::new();
    let mut put = |name: &str, field: &Option<Field>, text: String| match field {
        Some(field) => edits.replace(field.value.clone(), text),
        None => added += &format!("\"{name}\": {text}, "),
    };
    put("client_id", &layout.client_id, quoted(sid));
    put("prompt_id", &layout.prompt_id, quoted(prompt_id));
    put("number", &layout.number, python_float(number));
    if let Some(field) = &layout.extra_client_id {
        edits.replace(field.value.clone(), quoted(sid));
    }
    if let Some(front) = &layout.front {
        edits.replace(with_comma(body, front), "");
    }
    // A body has a prompt, so that a comma behind what is added is never the last.
    edits.replace(layout.open..layout.open, added);
    edits.apply(body).into()
}

/// A member and the comma that goes with it.
fn with_comma(body: &[u8], field: &Field) -> std::ops::Range<usize> {
    let (start, end) = (field.key, field.value.end);
    let behind = body.get(end..).unwrap_or_default();
    let blank = behind.len() - behind.trim_ascii_start().len();
    if behind.get(blank) == Some(&b',') {
        return start..end + blank + 1;
    }
    let before = body.get(..start).unwrap_or_default().trim_ascii_end();
    if before.last() == Some(&b',') { before.len() - 1..end } else { start..end }
}

/// The 200 for the client: the backend's own, with the id and number that the client knows.
pub fn reply(backend_reply: &[u8], prompt_id: &str, number: impl fmt::Display) -> Bytes {
    let (id, number) = (quoted(prompt_id), number.to_string());
    let (mut has_id, mut has_number) = (false, false);
    let built = Json::of(backend_reply).and_then(|json| {
        rebuilt(json.0, |key, _| {
            if key.is("prompt_id") {
                has_id = true;
                Member::Become(id.clone().into_bytes())
            } else if key.is("number") {
                has_number = true;
                Member::Become(number.clone().into_bytes())
            } else {
                Member::Keep
            }
        })
    });
    let mut reply = built.unwrap_or_else(|| b"{\"node_errors\": {}}".to_vec());
    if !has_id {
        add_member(&mut reply, "prompt_id", id.as_bytes());
    }
    if !has_number {
        add_member(&mut reply, "number", number.as_bytes());
    }
    reply.into()
}

/// The id under which a backend runs a prompt, when it is not the one that it was `sent`: servers
/// before 0.3.45 make their own.
pub fn remote_id(backend_reply: &[u8], sent: &str) -> Option<String> {
    let id = accepted_id(backend_reply)?;
    (id != sent).then_some(id)
}

/// The id in a backend's 200; `None` when it is no 200 of ComfyUI's.
pub(crate) fn accepted_id(backend_reply: &[u8]) -> Option<String> {
    let id = Json::of(backend_reply)?.get("prompt_id")?.text()?;
    (!id.is_empty() && id.len() <= MAX_ID).then(|| id.into_owned())
}

/// A body without the secrets of its owner, for keeping. The same text when it has none.
pub fn secrets_removed(body: &Bytes) -> Bytes {
    let mut found = false;
    let walked = Scanner::new(body).members(|scanner, key| {
        let value = scanner.value(&mut ())?;
        found |= key.is("extra_data") && has_secrets(Json(&body[value]));
        Ok(())
    });
    if walked.is_err() || !found {
        return body.clone();
    }
    let built = rebuilt(body, |key, value| {
        if !key.is("extra_data") {
            return Member::Keep;
        }
        let kept =
            rebuilt(value, |key, _| if is_secret(key) { Member::Drop } else { Member::Keep });
        kept.map_or(Member::Keep, Member::Become)
    });
    built.map_or_else(|| body.clone(), Bytes::from)
}

fn has_secrets(extra_data: Json<'_>) -> bool {
    let mut found = false;
    extra_data.each_member(|key, _| found |= is_secret(key));
    found
}

/// Whether a key of `extra_data` never shows.
pub(super) fn is_secret(key: super::scan::Key<'_>) -> bool {
    SECRETS.iter().any(|secret| key.is(secret))
}
