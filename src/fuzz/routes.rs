//! Which route a request means.

use http::{HeaderMap, HeaderValue, Method, header};

use super::bytes::Input;
use crate::comfy::origin::is_foreign;
use crate::comfy::routes::{bare, is_prompt_post, query_value, unescaped};
use crate::pool::route::Route;
use crate::pool::userdata;

const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// The first byte is the method, the first line the target, the second one an `Origin`.
pub fn routes(data: &[u8]) {
    let mut input = Input(data);
    let method = &METHODS[usize::from(input.byte()) % METHODS.len()];
    let Ok(target) = std::str::from_utf8(input.line()) else { return };
    let route = Route::of(method, target);
    let path = target.split(['?', '#']).next().unwrap_or_default();
    for other in [path.to_owned(), format!("{path}?x=/prompt"), format!("{path}#?")] {
        assert_eq!(Route::of(method, &other), route, "the query changes nothing: {other:?}");
        assert_eq!(is_prompt_post(method, &other), is_prompt_post(method, target));
    }
    // `/jobs`, and what is internal, exist with one prefix only.
    let plain = unescaped(path);
    let first = plain.split('/').nth(1).unwrap_or_default();
    if path.starts_with('/') && !["api", "jobs", "internal"].contains(&first) {
        let prefixed = format!("/api{path}");
        assert_eq!(Route::of(method, &prefixed), route, "{prefixed:?}");
        assert_eq!(userdata::Route::of(&prefixed), userdata::Route::of(path));
        assert_eq!(bare(&prefixed), path);
        assert_eq!(is_prompt_post(method, &prefixed), is_prompt_post(method, path));
    }
    escapes(method, path, route);
    if is_prompt_post(method, target) {
        assert_eq!(Route::of(method, target), Route::Own, "both modes agree on what a prompt is");
    }
    let name = "task_type";
    if let Some(value) = query_value(target, name) {
        assert!(target.contains(&format!("{name}={value}")) && !value.contains('&'));
    }
    origin(method, input.line());
}

/// A character that need not be escaped means the same when it is.
fn escapes(method: &Method, path: &str, route: Route) {
    if path.contains('%') {
        return;
    }
    let escape = |c: char| match c {
        'a'..='z' => format!("%{:02X}", c as u32),
        other => other.to_string(),
    };
    let escaped: String = path.chars().map(escape).collect();
    assert_eq!(unescaped(&escaped), path);
    assert_eq!(Route::of(method, &escaped), route, "{escaped:?}");
    assert_eq!(is_prompt_post(method, &escaped), is_prompt_post(method, path), "{escaped:?}");
}

/// Another site is told apart by its name, however that is written.
fn origin(method: &Method, said: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(said) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("farm.example:8100"));
    headers.insert(header::ORIGIN, value);
    if !is_foreign(method, &headers, &[]) {
        let text = String::from_utf8_lossy(said).to_ascii_lowercase();
        let authority = text.split_once("://").map(|(_, authority)| authority);
        let ours = matches!(authority, Some("farm.example" | "farm.example:8100"));
        assert!(ours || text == "null", "{text:?}");
    }
    headers.insert("sec-fetch-site", HeaderValue::from_static("cross-site"));
    assert!(is_foreign(&Method::POST, &headers, &[]), "a browser says that it is another site");
}
