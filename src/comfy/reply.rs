//! Replies as aiohttp would write them: Python's JSON spacing and escapes, the same content
//! types, the same bodies for errors.
//!
//! A handler returns `Result<Response, Refusal>`; [`Refusal`] is what the server says no with.

use std::io;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a handler gives: a reply, or one of the server's refusals.
pub type Answer = Result<Response, Refusal>;

/// Content type of every reply made by `json_response`.
pub const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Why a request got no proper reply.
#[derive(Debug)]
pub enum Refusal {
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
pub fn ok_json(value: &Value) -> Response {
    json_reply(StatusCode::OK, value)
}

/// `json_response(value, status=…)`.
pub fn json_reply(status: StatusCode, value: &Value) -> Response {
    typed(status, JSON, python_json(value))
}

/// `Response(status=…, text=…)`.
pub fn text(status: StatusCode, line: impl Into<String>) -> Response {
    typed(status, TEXT, line.into())
}

/// `Response(status=…)`: no body and no content type.
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// `{"error": …}` with status 400.
pub fn bad(message: &str) -> Refusal {
    Refusal::Json(StatusCode::BAD_REQUEST, json!({"error": message}))
}

/// An unhandled exception, as aiohttp shows it.
pub fn crash() -> Response {
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

/// A value as `json.dumps` writes it.
pub fn python_json(value: &impl Serialize) -> String {
    let mut out = Vec::with_capacity(256);
    let mut writer = serde_json::Serializer::with_formatter(&mut out, PythonStyle);
    match value.serialize(&mut writer) {
        Ok(()) => String::from_utf8(out).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

/// The object in a value, or an empty one.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// `json.dumps` with its defaults: a space after `,` and `:`, and ASCII only.
struct PythonStyle;

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        w: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.bytes().all(|b| b < 0x7f) {
            return w.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() && character != '\u{7f}' {
                w.write_all(&[character as u8])?;
                continue;
            }
            let mut units = [0u16; 2];
            for unit in character.encode_utf16(&mut units) {
                write!(w, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// The query of a request, first value of each name, as `request.rel_url.query.get` reads it.
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a request's query.
    pub fn of(uri: &http::Uri) -> Self {
        let raw = uri.query().unwrap_or_default().as_bytes();
        Self(url::form_urlencoded::parse(raw).into_owned().collect())
    }

    /// The first value under `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether `name` is `true` in any case.
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spaced_and_escaped_like_pythons() {
        let value = json!({"a": [1, 0.5, 1.0], "ü\u{7f}": "😀\n", "e": {}, "l": []});
        let expected =
            r#"{"a": [1, 0.5, 1.0], "\u00fc\u007f": "\ud83d\ude00\n", "e": {}, "l": []}"#;
        assert_eq!(python_json(&value), expected);
    }

    #[test]
    fn query_reads_the_first_value_of_a_name() {
        let uri: http::Uri = "/view?a=1%20x&a=2&b=TRUE".parse().unwrap();
        let query = Query::of(&uri);
        assert_eq!(query.get("a"), Some("1 x"));
        assert!(query.is_true("b"));
        assert_eq!(query.get("c"), None);
    }
}
