//! Files over HTTP: `/view`, and the static files of the page.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::Core;
use super::reply::{Answer, Query, Refusal};
use crate::comfy::file_reply::{file, media_type};
use crate::comfy::paths::inside;
use crate::comfy::view::Asked;

/// `GET /view`.
pub(super) async fn view(
    State(core): State<Arc<Core>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Answer {
    let asked = Asked::of(&Query::of(&uri))?;
    let directory = inside(&core.files.folder(asked.folder), &asked.subfolder);
    let path = directory.and_then(|directory| inside(&directory, &asked.name));
    let path = path.ok_or(Refusal::Bare(StatusCode::BAD_REQUEST))?;
    if !path.is_file() {
        return Err(Refusal::Bare(StatusCode::NOT_FOUND));
    }
    asked.show(&path, None, &headers).await
}

/// A static file of the page, or aiohttp's way of saying that there is none.
pub(super) async fn page_file(core: &Core, path: &str, headers: &HeaderMap) -> Answer {
    let root = core.config.web_root.clone().unwrap_or_else(|| core.files.folder("web"));
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let found = inside(&root, decoded.trim_start_matches('/')).filter(|path| path.is_file());
    match found {
        Some(path) => file(&path, headers, media_type(&path)).await,
        None => Ok(no_such_file()),
    }
}

/// 404 of a static route: no body, but announced as a stream of bytes.
fn no_such_file() -> Response {
    let mut response = Response::new(Body::from_stream(stream::empty::<std::io::Result<Bytes>>()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
