//! `/history`: what has ended, as the gateway keeps it.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use super::super::Pool;
use super::super::job::JobId;
use super::super::journal::Finished;
use super::super::submission;
use super::super::submission::jobs::{Page, Summary, Writer, history as written};
use super::super::visit::Visit;
use super::prompt::{Answer, Before};
use super::{json, server_error};
use crate::comfy::lenient::{self, truthy};

/// Entries that are read at a time.
const AT_ONCE: usize = 16;

/// `GET /history`.
pub(super) async fn list(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    RawQuery(query): RawQuery,
) -> Response {
    let Ok(page) = Page::read(query.as_deref().unwrap_or_default()) else { return server_error() };
    let ended = pool.ended_of(&visit);
    let wanted = ended[page.of(ended.len())].to_vec();
    json(Body::from_stream(written_by(pool, wanted)))
}

/// The reply in pieces, of which a few are read at a time: all of history may be gigabytes.
fn written_by(
    pool: Arc<Pool>,
    wanted: Vec<Arc<Finished>>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let start = (pool, wanted.into_iter(), Some(Writer::default()));
    stream::unfold(start, async |(pool, mut rest, writer)| {
        let mut writer = writer?;
        let part: Vec<_> = rest.by_ref().take(AT_ONCE).collect();
        if part.is_empty() {
            return Some((vec![writer.end()], (pool, rest, None)));
        }
        let entries = pool.journal.entries(part.iter().map(|job| job.id).collect()).await;
        let found = part.iter().zip(entries);
        let found = found.filter_map(|(job, entry)| Some((&*job.prompt_id, entry?)));
        let pieces = writer.write(found);
        Some((pieces, (pool, rest, Some(writer))))
    })
    .flat_map(|pieces| stream::iter(pieces.into_iter().map(Ok)))
}

/// `GET /history/{id}`. Whoever was given an id may see its result.
pub(super) async fn one(State(pool): State<Arc<Pool>>, Path(id): Path<String>) -> Response {
    let found = pool.journal.find(&id);
    let entry = match &found {
        Some(job) => pool.journal.entry(job.id).await,
        None => None,
    };
    let pieces = written(entry.into_iter().map(|entry| (id.as_str(), entry)));
    json(Body::from(pieces.concat()))
}

/// `POST /history`.
pub(super) async fn change(
    State(pool): State<Arc<Pool>>,
    Extension(visit): Extension<Visit>,
    body: Bytes,
) -> Response {
    let Ok(Value::Object(asked)) = lenient::from_slice::<Value>(&body) else {
        return server_error();
    };
    let ended = pool.ended_of(&visit);
    let mut gone: Vec<JobId> = Vec::new();
    if asked.get("clear").is_some_and(truthy) {
        gone.extend(ended.iter().map(|job| job.id));
    }
    if let Some(ids) = asked.get("delete") {
        let Some(ids) = ids.as_array() else { return server_error() };
        let ids: HashSet<&str> = ids.iter().filter_map(Value::as_str).collect();
        let named = ended.iter().filter(|job| ids.contains(&*job.prompt_id));
        gone.extend(named.map(|job| job.id));
    }
    let (_, kept) = pool.journal.delete(&gone);
    // A disk that takes no more will take it later; readers see it gone already.
    drop(kept);
    StatusCode::OK.into_response()
}

impl Pool {
    /// The ended jobs that history shows to a caller, the oldest first.
    pub(super) fn ended_of(&self, visit: &Visit) -> Vec<Arc<Finished>> {
        let own_only = self.is_isolated().then_some(visit.key);
        let shown = |job: &Arc<Finished>| {
            job.entry_len > 0 && own_only.is_none_or(|key| job.owner.key == key)
        };
        self.journal.finished().into_iter().filter(shown).collect()
    }

    /// The answer to a prompt whose job has ended, posted again.
    pub(super) fn ended_before(&self, id: &str) -> Option<([u8; 32], Before)> {
        let job = self.journal.find(id)?;
        let reply = job.reply.clone().unwrap_or_default();
        let summary = serde_json::from_slice::<Summary>(&job.summary).ok()?;
        let reply = submission::reply(&reply, id, &summary.priority);
        Some((job.fingerprint, Before::Judged(Answer::Accepted { reply, by: None })))
    }

    /// Whether a job of this id has ended that a caller may see.
    pub(super) fn has_ended(&self, visit: &Visit, id: &str) -> bool {
        let seen = |job: Arc<Finished>| !self.is_isolated() || job.owner.key == visit.key;
        self.journal.find(id).is_some_and(seen)
    }
}
