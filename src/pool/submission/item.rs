//! A job as `/queue` and history list it: `[number, prompt_id, prompt, extra_data, outputs]`.

use std::collections::HashSet;

use bytes::Bytes;

use super::graph::each_node;
use super::layout::Layout;
use super::number::Number;
use super::render::is_secret;
use super::scan::Json;
use super::splice::{Member, add_member, quoted, rebuilt};
use crate::pool::job::Job;

/// The job as ComfyUI would list it, out of the body as it came. `reply` is the backend's 200,
/// `is_output` says whether a node type is an output's.
pub fn queue_item(job: &Job, reply: &[u8], is_output: &dyn Fn(&str) -> bool) -> Bytes {
    let layout = Layout::of(&job.body).unwrap_or_default();
    let prompt = layout.prompt.as_ref().map_or(Json(b"{}"), |field| field.of(&job.body));
    let outputs = outputs(prompt, &layout, job, reply, is_output);
    item(job, &layout, prompt.0, &outputs)
}

/// The list with this prompt and these outputs.
pub(super) fn item(job: &Job, layout: &Layout, prompt: &[u8], outputs: &[u8]) -> Bytes {
    let number = match layout.number {
        Some(_) => Number::Given(job.number),
        None => Number::Counted(job.number as i64),
    };
    let head = format!("[{number}, {}, ", quoted(&job.prompt_id));
    let extra_data = extra_data(job, layout);
    [head.as_bytes(), prompt, b", ", &extra_data, b", ", outputs, b"]"].concat().into()
}

/// `extra_data` as ComfyUI keeps it: the `client_id` of the top copied in, the time added, secrets
/// left out.
fn extra_data(job: &Job, layout: &Layout) -> Vec<u8> {
    let given = layout.extra_data.as_ref().map_or(Json(b"{}"), |field| field.of(&job.body));
    let client_id = layout.client_id.as_ref().map(|field| field.of(&job.body).0);
    let created = job.created_ms.to_string().into_bytes();
    let (mut has_client, mut has_time) = (client_id.is_none(), false);
    let built = rebuilt(given.0, |key, _| {
        if is_secret(key) {
            return Member::Drop;
        }
        if key.is("create_time") {
            has_time = true;
            return Member::Become(created.clone());
        }
        match client_id {
            Some(id) if key.is("client_id") => {
                has_client = true;
                Member::Become(id.to_vec())
            }
            _ => Member::Keep,
        }
    });
    let mut built = built.unwrap_or_else(|| b"{}".to_vec());
    if let Some(id) = client_id.filter(|_| !has_client) {
        add_member(&mut built, "client_id", id);
    }
    if !has_time {
        add_member(&mut built, "create_time", &created);
    }
    built
}

/// The output nodes that were asked for, without those that the reply says are not run.
pub(super) fn outputs(
    prompt: Json<'_>,
    layout: &Layout,
    job: &Job,
    reply: &[u8],
    is_output: &dyn Fn(&str) -> bool,
) -> Vec<u8> {
    let targets = layout.targets.as_ref().map(|field| field.of(&job.body));
    let targets = targets.filter(|targets| targets.is_array()).map(texts);
    let failed = failed_outputs(reply);
    let mut list = String::from("[");
    each_node(prompt, |id, class_type| {
        let wanted = targets.as_ref().is_none_or(|targets| targets.contains(id));
        if wanted && !failed.contains(id) && is_output(class_type) {
            list += if list.len() > 1 { ", " } else { "" };
            list += &quoted(id);
        }
    });
    list.push(']');
    list.into_bytes()
}

/// `dependent_outputs` of the `node_errors` of a 200.
fn failed_outputs(reply: &[u8]) -> HashSet<String> {
    let mut failed = HashSet::new();
    let errors = Json::of(reply).and_then(|reply| reply.get("node_errors"));
    if let Some(errors) = errors {
        errors.each_member(|_, error| {
            failed.extend(error.get("dependent_outputs").map(texts).into_iter().flatten());
        });
    }
    failed
}

fn texts(list: Json<'_>) -> HashSet<String> {
    let mut found = HashSet::new();
    list.each_item(|item| found.extend(item.text().map(std::borrow::Cow::into_owned)));
    found
}
