//! Reads that are merged over the farm, and writes that go to all of it.
//!
//! [`Merged::router`] answers, with and without `/api` (but for `/internal`, which ComfyUI has
//! bare only):
//!
//! | Route | What it gives |
//! |---|---|
//! | `GET /object_info`, `/object_info/{class}` | all nodes, with the lists of choices of all and the files uploaded here, see [`nodes`] and [`catalog`] |
//! | `GET /system_stats` | the first's system, the devices of all, see [`system`] |
//! | `GET /features` | what all can do |
//! | `GET /embeddings`, `/models`, `/models/{folder}` | each name once, see [`lists`] |
//! | `GET /experiment/models`, `/experiment/models/{folder}` | each name once |
//! | `GET /internal/files/{type}` | inputs: each name once; outputs and temporary files under `@BACKEND/` |
//!
//! A status other than 200 is given only when no backend has a 200: then the lowest one, so that
//! a folder is absent only when nobody has it. [`fetch`] bounds what a backend may answer and how
//! long it may take; merging is pure and takes whatever shape comes. [`broadcast()`] sends a
//! request to all.

mod broadcast;
pub mod catalog;
pub mod combos;
pub mod fetch;
#[cfg(test)]
pub(crate) mod fixture;
pub mod lists;
pub mod nodes;
pub mod system;
#[cfg(test)]
mod tests;
pub mod uploads;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::comfy::lenient;
use crate::comfy::reply::python_json;
use crate::comfy::routes::bare;
use crate::fleet::Fleet;
use crate::rejection::{Kind, Rejection};
use catalog::Catalog;
use fetch::{Bounds, Fetcher, Reply, reachable};
use uploads::{Files, Uploads};

pub use broadcast::{Message, broadcast};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// What the merged reads work on.
pub struct Merged {
    fleet: Arc<Fleet>,
    fetcher: Arc<Fetcher>,
    catalog: Arc<Catalog>,
    uploads: Uploads,
    max_upload_size: AtomicU64,
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merged").finish_non_exhaustive()
    }
}

impl Merged {
    /// Of a fleet. `uploads` tells the input files that the gateway keeps, `max_upload_size` is
    /// the longest body it takes.
    pub fn new(
        fleet: Arc<Fleet>,
        fetcher: Arc<Fetcher>,
        uploads: Uploads,
        max_upload_size: u64,
    ) -> Arc<Self> {
        let parts = (Arc::clone(&fleet), Arc::clone(&fetcher), Arc::clone(&uploads));
        let catalog = Catalog::new(parts.0, parts.1, parts.2);
        let max_upload_size = AtomicU64::new(max_upload_size);
        Arc::new(Self { fleet, fetcher, catalog, uploads, max_upload_size })
    }

    /// The nodes of the farm, which a task should [keep warm](Catalog::keep_warm).
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Takes bodies of another length from now on.
    pub fn set_max_upload_size(&self, bytes: u64) {
        self.max_upload_size.store(bytes, Relaxed);
    }

    /// Whether the router answers for this path, which may carry `/api` and a query.
    pub fn owns(path: &str) -> bool {
        Read::of(path).is_some()
    }

    /// The routes.
    pub fn router(self: &Arc<Self>) -> Router {
        let paths = [
            "/object_info",
            "/object_info/{class}",
            "/system_stats",
            "/features",
            "/embeddings",
            "/models",
            "/models/{folder}",
            "/experiment/models",
            "/experiment/models/{folder}",
        ];
        let route = || -> MethodRouter<Arc<Self>> { get(serve).fallback(other_method) };
        let mut router = Router::new().route("/internal/files/{type}", route());
        for path in paths {
            router = router.route(path, route()).route(&format!("/api{path}"), route());
        }
        router.with_state(Arc::clone(self))
    }

    /// What all servers can do, as `/features` and the `feature_flags` frame tell it; `None` when
    /// no server answers.
    pub async fn features(&self) -> Option<Value> {
        let replies = self.ask_all("/features").await;
        let told = plain(&values(&replies).0);
        let limit = self.max_upload_size.load(Relaxed);
        (!told.is_empty()).then(|| system::features(&told, limit))
    }

    async fn ask_all(&self, path: &str) -> Vec<Reply> {
        let backends = reachable(&self.fleet.view());
        self.fetcher.fetch_all(&backends, path, Bounds::default()).await
    }

    async fn answer(&self, read: Read) -> Response {
        match read {
            Read::Nodes => match self.catalog.union().await {
                Some(union) => json_bytes(union.bytes.clone()),
                None => nobody(),
            },
            Read::Node(class) => match self.catalog.union().await {
                Some(union) => json_bytes(union.class(&class)),
                None => nobody(),
            },
            Read::Features => match self.features().await {
                Some(features) => json_reply(StatusCode::OK, &features),
                None => nobody(),
            },
            Read::Files(kind) => self.files(&kind).await,
            Read::Stats => {
                let farm = self.fleet.view().backends.len() > 1;
                self.united("/system_stats", |told| system::stats(told, farm)).await
            }
            Read::Names(path) => self.united(&path, |told| lists::names(&plain(told))).await,
            Read::Folders => {
                self.united("/experiment/models", |told| lists::folders(&plain(told))).await
            }
            Read::Models(path) => self.united(&path, |told| lists::models(&plain(told))).await,
        }
    }

    /// Asks all and unites what they say.
    async fn united(&self, path: &str, unite: impl FnOnce(&[(&str, Value)]) -> Value) -> Response {
        let replies = self.ask_all(path).await;
        let (told, refusal) = values(&replies);
        match (told.is_empty(), refusal) {
            (false, _) => json_reply(StatusCode::OK, &unite(&told)),
            (true, Some(refusal)) => passed_on(refusal),
            (true, None) => nobody(),
        }
    }

    async fn files(&self, kind: &str) -> Response {
        let path = format!("/internal/files/{kind}");
        match kind {
            "input" => {
                let uploads: Files = (self.uploads)();
                let own = uploads.iter().filter(|name| !name.contains('/')).map(String::as_str);
                let own = Value::from(own.collect::<Vec<_>>());
                let unite =
                    |told: &[(&str, Value)]| lists::names(&[vec![own], plain(told)].concat());
                self.united(&path, unite).await
            }
            "output" | "temp" => self.united(&path, lists::files_of_each).await,
            _ => json_reply(StatusCode::BAD_REQUEST, &json!({"error": "Invalid directory type"})),
        }
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    Nodes,
    Node(String),
    Stats,
    Features,
    /// Lists of names, at this path.
    Names(String),
    Folders,
    /// Lists of models, at this path.
    Models(String),
    Files(String),
}

impl Read {
    fn of(path: &str) -> Option<Self> {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        if let Some(kind) = path.strip_prefix("/internal/files/") {
            return name(kind).map(Self::Files);
        }
        let path = bare(path);
        let parts: Vec<&str> = path.strip_prefix('/')?.splitn(4, '/').collect();
        match parts.as_slice() {
            ["object_info"] => Some(Self::Nodes),
            ["object_info", class] => name(class).map(Self::Node),
            ["system_stats"] => Some(Self::Stats),
            ["features"] => Some(Self::Features),
            ["embeddings" | "models"] => Some(Self::Names(path.to_owned())),
            ["models", folder] => name(folder).map(|_| Self::Names(path.to_owned())),
            ["experiment", "models"] => Some(Self::Folders),
            ["experiment", "models", folder] => name(folder).map(|_| Self::Models(path.to_owned())),
            _ => None,
        }
    }
}

/// A segment decoded. One that a client library would take for a way up names nothing.
fn name(segment: &str) -> Option<String> {
    let decoded = percent_decode_str(segment).decode_utf8_lossy().into_owned();
    let fits = !segment.contains('/') && !matches!(decoded.as_str(), "" | "." | "..");
    fits.then_some(decoded)
}

async fn serve(State(merged): State<Arc<Merged>>, OriginalUri(uri): OriginalUri) -> Response {
    match Read::of(uri.path()) {
        Some(read) => merged.answer(read).await,
        None => empty(StatusCode::NOT_FOUND),
    }
}

/// As aiohttp answers methods that a path does not know.
async fn other_method(method: Method) -> Response {
    if method == Method::OPTIONS {
        return empty(StatusCode::OK);
    }
    let mut response = Response::new(Body::from("405: Method Not Allowed"));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::ALLOW, HeaderValue::from_static("GET,HEAD"));
    response
}

/// The bodies of those that said 200 with JSON, by server; and the refusal to pass on when there
/// is none.
fn values(replies: &[Reply]) -> (Vec<(&str, Value)>, Option<&Reply>) {
    let well = replies.iter().filter(|reply| reply.status == StatusCode::OK);
    let read = |reply| -> Option<(&str, Value)> {
        let reply: &Reply = reply;
        Some((Backend::name(&reply.backend), lenient::from_slice(&reply.body).ok()?))
    };
    let refusals = replies.iter().filter(|reply| reply.status != StatusCode::OK);
    (well.filter_map(read).collect(), refusals.min_by_key(|reply| reply.status))
}

fn plain(told: &[(&str, Value)]) -> Vec<Value> {
    told.iter().map(|(_, value)| value.clone()).collect()
}

/// What all refuse, as one of them put it; what is no answer to this question is no answer.
fn passed_on(refusal: &Reply) -> Response {
    if !refusal.status.is_client_error() {
        return refused(&Rejection::new(Kind::UpstreamFailed, "no backend gives a usable answer"));
    }
    let mut response = Response::new(Body::from(refusal.body.clone()));
    *response.status_mut() = refusal.status;
    if let Some(kind) = &refusal.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}

fn nobody() -> Response {
    refused(&Rejection::new(Kind::NoBackend, "no backend answers").retry_after(2))
}

fn refused(rejection: &Rejection) -> Response {
    let mut response = Response::new(Body::from(rejection.body()));
    *response.status_mut() = rejection.kind.status();
    for (name, value) in rejection.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn json_reply(status: StatusCode, value: &Value) -> Response {
    let mut response = json_bytes(python_json(value).into());
    *response.status_mut() = status;
    response
}

fn json_bytes(bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}
