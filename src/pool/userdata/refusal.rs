//! What is said no with: ComfyUI's own words, or the gateway's where ComfyUI has none.

use std::io::{self, ErrorKind};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use log::warn;
use serde_json::{Value, json};

use crate::comfy::reply::python_json;
use crate::logging::TARGET;
use crate::rejection::{Kind, Rejection};

/// What a handler gives.
pub(super) type Answer = Result<Response, Refusal>;

const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// Seconds after which a full disk may have room again.
const RETRY: u32 = 60;

pub(super) const FORBIDDEN: Refusal = Refusal::Bare(StatusCode::FORBIDDEN);
pub(super) const ABSENT: Refusal = Refusal::Bare(StatusCode::NOT_FOUND);

/// Why a request got no proper reply.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A status with an empty body.
    Bare(StatusCode),
    /// A status with a line of text.
    Text(StatusCode, &'static str),
    /// 400 with `{"error": …}`.
    Error(&'static str),
    /// What ComfyUI does not catch: 500, and the connection is closed.
    Crash,
    /// The body is longer than this.
    TooLarge(u64),
    /// It cannot be kept.
    Storage(&'static str),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::unkept("is full", &error),
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                Self::unkept("cannot be written", &error)
            }
            _ => Self::Crash,
        }
    }
}

impl Refusal {
    fn unkept(what: &'static str, error: &io::Error) -> Self {
        warn!(target: TARGET, "users' data cannot be kept: {error}");
        Self::Storage(what)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Bare(status) => empty(status),
            Self::Text(status, line) => text(status, line),
            Self::Error(line) => reply(StatusCode::BAD_REQUEST, &json!({"error": line})),
            Self::Crash => crash(),
            Self::TooLarge(limit) => {
                let message = format!("the body is longer than {limit} bytes");
                rejected(&Rejection::new(Kind::BodyTooLarge, message))
            }
            Self::Storage(what) => {
                let message = format!("the gateway's storage {what}");
                rejected(&Rejection::new(Kind::StorageUnavailable, message).retry_after(RETRY))
            }
        }
    }
}

/// `json_response(value)`.
pub(super) fn ok_json(value: &Value) -> Response {
    reply(StatusCode::OK, value)
}

/// A status without a body or content type.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// What a path that aiohttp serves no file under gets: 404 for GET, 405 for the rest.
pub(super) fn no_such_route(reading: bool) -> Response {
    if reading {
        return typed(StatusCode::NOT_FOUND, "application/octet-stream", String::new());
    }
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET,HEAD"));
    response
}

fn crash() -> Response {
    let line = "500 Internal Server Error\n\nServer got itself in trouble";
    let mut response = text(StatusCode::INTERNAL_SERVER_ERROR, line);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text(status: StatusCode, line: &str) -> Response {
    typed(status, TEXT, line.to_owned())
}

fn reply(status: StatusCode, value: &Value) -> Response {
    typed(status, JSON, python_json(value))
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn rejected(rejection: &Rejection) -> Response {
    let mut response = typed(rejection.kind.status(), JSON, String::new());
    for (name, value) in rejection.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    *response.body_mut() = Body::from(rejection.body());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_as_such() {
        for (kind, status) in [
            (ErrorKind::StorageFull, 503),
            (ErrorKind::QuotaExceeded, 503),
            (ErrorKind::PermissionDenied, 503),
            (ErrorKind::NotADirectory, 500),
        ] {
            let response = Refusal::from(io::Error::from(kind)).into_response();
            assert_eq!(response.status(), status, "{kind:?}");
            assert_eq!(response.headers().contains_key("retry-after"), status == 503);
        }
    }
}
