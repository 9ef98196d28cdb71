//! Requests that go to every backend: `/free`, installs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, Method, header};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::fetch::{Bounds, Fetcher, Question, Reply};
use super::refused;
use crate::backend::Backend;
use crate::rejection::{Kind, Rejection};

/// Backends asked at once.
const AT_ONCE: usize = 64;
const BOUNDS: Bounds =
    Bounds { bytes: 16 << 20, time: Duration::from_mins(1), grace: Duration::from_secs(2) };

/// Headers that belong to the client's own connection, or that ComfyUI takes for another site's
/// page: a backend gets none of them.
const OWN: [HeaderName; 16] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    header::ORIGIN,
    header::REFERER,
    header::COOKIE,
    header::AUTHORIZATION,
    header::ACCEPT_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("sec-fetch-site"),
];

/// A request for all.
#[derive(Debug, Clone)]
pub struct Message {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The client's headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Sends a request to all of these. The reply is that of the first success in their order, else
/// the worst one. Those that are slow are waited for shortly once one has succeeded, and get the
/// request all the same.
pub async fn broadcast(
    fetcher: &Arc<Fetcher>,
    backends: &[Arc<Backend>],
    message: Message,
) -> Response {
    if backends.is_empty() {
        return refused(&Rejection::new(Kind::NoBackend, "no backend is there").retry_after(2));
    }
    let mut replies = send(fetcher, backends, message);
    let mut deadline = Instant::now() + BOUNDS.time;
    let mut told = Vec::with_capacity(backends.len());
    while let Ok(Some((place, reply))) = timeout_at(deadline, replies.recv()).await {
        if reply.as_ref().is_ok_and(|reply| reply.status.is_success()) {
            deadline = deadline.min(Instant::now() + BOUNDS.grace);
        }
        told.push((place, reply));
    }
    told.sort_by_key(|(place, _)| *place);
    chosen(told.into_iter().filter_map(|(_, reply)| reply.ok()))
}

type Told = (usize, Result<Reply, String>);

/// Sends on a task of its own, which ends when all have answered even if nobody listens any more.
fn send(
    fetcher: &Arc<Fetcher>,
    backends: &[Arc<Backend>],
    mut message: Message,
) -> mpsc::Receiver<Told> {
    let (sender, receiver) = mpsc::channel(backends.len().max(1));
    let (fetcher, backends) = (Arc::clone(fetcher), backends.to_vec());
    for name in OWN {
        message.headers.remove(name);
    }
    tokio::spawn(async move {
        let (fetcher, message, sender) = (&fetcher, &message, &sender);
        let one = |(place, backend): (usize, Arc<Backend>)| async move {
            let question = Question {
                method: message.method.clone(),
                path: &message.path,
                headers: message.headers.clone(),
                body: message.body.clone(),
            };
            let reply = fetcher.ask(&backend, question, BOUNDS).await;
            // Nobody may be listening any more.
            let _ = sender.send((place, reply)).await;
        };
        let all = stream::iter(backends.into_iter().enumerate());
        all.for_each_concurrent(AT_ONCE, one).await;
    });
    receiver
}

fn chosen(replies: impl Iterator<Item = Reply>) -> Response {
    let mut worst: Option<Reply> = None;
    for reply in replies {
        if reply.status.is_success() {
            return response(reply);
        }
        if worst.as_ref().is_none_or(|worst| reply.status > worst.status) {
            worst = Some(reply);
        }
    }
    let silent = || refused(&Rejection::new(Kind::UpstreamFailed, "no backend answers"));
    worst.map_or_else(silent, response)
}

fn response(reply: Reply) -> Response {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = reply.status;
    if let Some(kind) = reply.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}
