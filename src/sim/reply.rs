//! Replies as aiohttp would write them: Python's JSON spacing and escapes, the same content
//! types, the same bodies for errors.
//!
//! A handler returns `Result<Response, Refusal>`; [`Refusal`] is what the server says no with.

use std::io;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

pub(super) use crate::comfy::python::python_json;

/// What a handler gives: a reply, or one of the server's refusals.
pub(super) type Answer = Result<Response, Refusal>;

/// Content type of every reply made by `json_response`.
pub(super) const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Why a request got no proper reply.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A status with an empty body.
    Bare(StatusCode),
    /// A status with a line of text.
    Text(StatusCode, String),
    /// A status with JSON.
    Json(StatusCode, Value),
    /// An exception nobody caught: 500, and the connection is closed.
    Crash,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Crash
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Bare(status) => empty(status),
            Self::Text(status, line) => text(status, line),
            Self::Json(status, value) => json_reply(status, &value),
            Self::Crash => crash(),
        }
    }
}

/// `json_response(value)`.
pub(super) fn ok_json(value: &Value) -> Response {
    json_reply(StatusCode::OK, value)
}

/// `json_response(value, status=…)`.
pub(super) fn json_reply(status: StatusCode, value: &Value) -> Response {
    typed(status, JSON, python_json(value))
}

/// `Response(status=…, text=…)`.
pub(super) fn text(status: StatusCode, line: impl Into<String>) -> Response {
    typed(status, TEXT, line.into())
}

/// `Response(status=…)`: no body and no content type.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// `{"error": …}` with status 400.
pub(super) fn bad(message: &str) -> Refusal {
    Refusal::Json(StatusCode::BAD_REQUEST, json!({"error": message}))
}

/// An unhandled exception, as aiohttp shows it.
pub(super) fn crash() -> Response {
    let mut response = text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "500 Internal Server Error\n\nServer got itself in trouble",
    );
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The object in a value, or an empty one.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The query of a request, first value of each name, as `request.rel_url.query.get` reads it.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a request's query.
    pub(super) fn of(uri: &http::Uri) -> Self {
        let raw = uri.query().unwrap_or_default().as_bytes();
        Self(url::form_urlencoded::parse(raw).into_owned().collect())
    }

    /// The first value under `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether `name` is `true` in any case.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_reads_the_first_value_of_a_name() {
        let uri: http::Uri = "/view?a=1%20x&a=2&b=TRUE".parse().unwrap();
        let query = Query::of(&uri);
        assert_eq!(query.get("a"), Some("1 x"));
        assert!(query.is_true("b"));
        assert_eq!(query.get("c"), None);
    }
}
