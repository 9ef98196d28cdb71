//! The routes, and what every request passes on its way: faults, origin check, OPTIONS, cache
//! headers, the hook on JSON replies.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{DefaultBodyLimit, OriginalUri, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, patch, post};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::Value;

use super::nodes::recorded;
use super::reply::{Answer, JSON, crash, empty, ok_json, python_json, text};
use super::{Core, events, faults, info, jobs, prompt, upload, userdata, view};

const SERVER: HeaderValue = HeaderValue::from_static("Python/3.11 aiohttp/3.14.5");
/// Longest JSON reply that the hook gets to see.
const MAX_TAPPED: usize = 256 << 20;
const IMAGES: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];

/// The server as an application.
pub(super) fn app(core: Arc<Core>) -> Router {
    let mut router = Router::new();
    for (path, route) in prefixed() {
        router = router.route(path, route.clone()).route(&format!("/api{path}"), route);
    }
    let limit = usize::try_from(core.config.max_upload_size).unwrap_or(usize::MAX);
    let router = router
        .route("/api/jobs", get(jobs::list))
        .route("/api/api/jobs", get(jobs::list))
        .route("/api/jobs/{id}", get(jobs::one))
        .route("/api/api/jobs/{id}", get(jobs::one))
        .route("/internal/logs", get(info::log_text))
        .route("/internal/logs/raw", get(info::log_entries))
        .route("/internal/logs/subscribe", patch(info::subscribe))
        .route("/internal/folder_paths", get(info::folder_paths))
        .route("/internal/files/{type}", get(info::files))
        .route("/sim", get(faults::show))
        .route("/sim/faults", post(faults::set))
        .fallback(elsewhere)
        .method_not_allowed_fallback(elsewhere)
        .layer(DefaultBodyLimit::max(limit))
        .with_state(core.clone());
    // As a service inside, so that the router's own answers (`Allow` on OPTIONS) are seen too.
    Router::new().fallback_service(router).layer(from_fn_with_state(core, pass))
}

/// The routes that exist bare and under `/api`.
fn prefixed() -> Vec<(&'static str, MethodRouter<Arc<Core>>)> {
    let endless = DefaultBodyLimit::disable;
    vec![
        ("/", get(page)),
        ("/ws", get(events::connect)),
        ("/prompt", get(prompt::info).post(prompt::post)),
        ("/queue", get(prompt::queue).post(prompt::change_queue)),
        ("/history", get(prompt::history).post(prompt::change_history)),
        ("/history/{id}", get(prompt::history_item)),
        ("/interrupt", post(prompt::interrupt)),
        ("/free", post(prompt::free)),
        // They count for themselves, and report what they counted.
        ("/upload/image", post(upload::image).layer(endless())),
        ("/upload/mask", post(upload::mask).layer(endless())),
        ("/view", get(view::view)),
        ("/view_metadata/{folder}", get(info::no_metadata)),
        ("/object_info", get(info::nodes)),
        ("/object_info/{class}", get(info::node)),
        ("/system_stats", get(info::system_stats)),
        ("/features", get(info::features)),
        ("/embeddings", get(info::no_items)),
        ("/models", get(info::models)),
        ("/models/{folder}", get(info::models_in)),
        ("/experiment/models", get(info::model_list)),
        ("/experiment/models/{folder}", get(info::models_told)),
        ("/experiment/models/preview/{folder}/{index}/{*file}", get(info::no_preview)),
        ("/extensions", get(info::extensions)),
        ("/workflow_templates", get(info::nothing)),
        ("/i18n", get(info::nothing)),
        ("/global_subgraphs", get(info::nothing)),
        ("/global_subgraphs/{id}", get(info::no_value)),
        ("/users", get(userdata::users).post(userdata::add_user)),
        ("/settings", get(userdata::settings).post(userdata::merge_settings)),
        ("/settings/{id}", get(userdata::setting).post(userdata::set_setting)),
        ("/userdata", get(userdata::list)),
        ("/v2/userdata", get(userdata::list_v2)),
        ("/userdata/{file}", get(userdata::get).post(userdata::put).delete(userdata::delete)),
        ("/userdata/{file}/move/{dest}", post(userdata::rename)),
    ]
}

/// `GET /`.
async fn page(State(core): State<Arc<Core>>, headers: HeaderMap) -> Answer {
    let mut response = view::page_file(&core, "index.html", &headers).await?;
    let cache = response.headers_mut();
    cache.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    cache.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    cache.insert(header::EXPIRES, HeaderValue::from_static("0"));
    Ok(response)
}

/// Whatever no route takes: a static file for GET (so a path that only knows POST is 404), 405
/// for the rest.
async fn elsewhere(
    State(core): State<Arc<Core>>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Answer {
    let path = uri.path();
    if !matches!(method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET,HEAD"));
        return Ok(response);
    }
    let stub = core.config.web_root.is_none()
        && recorded("extensions").as_array().is_some_and(|all| all.iter().any(|one| one == path));
    if stub {
        let mut response = Response::new(Body::from("// simulated\n"));
        let kind = HeaderValue::from_static("application/javascript");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        return Ok(response);
    }
    if path == "/templates/index.json" {
        // The templates are another package; the page does without them when the list is empty.
        return Ok(ok_json(&Value::Array(Vec::new())));
    }
    view::page_file(&core, path, &headers).await
}

/// What every request passes.
async fn pass(State(core): State<Arc<Core>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if path == "/sim" || path.starts_with("/sim/") {
        return next.run(request).await;
    }
    let uri = request.uri().path_and_query().map_or(path.as_str(), |whole| whole.as_str());
    core.count_request(request.method().as_str(), uri);
    core.fault.wait().await;
    let mut response = answer(&core, request, next).await;
    cache_headers(&path, &mut response);
    if let Some(tap) = &core.config.reply_tap {
        response = tapped(response, |value| tap(&path, value)).await;
    }
    if core.fault.broken_json.load(Ordering::Relaxed) {
        response = cut(response).await;
    }
    response.headers_mut().insert(header::SERVER, SERVER);
    response
}

async fn answer(core: &Core, request: Request, next: Next) -> Response {
    if core.fault.errors.load(Ordering::Relaxed) {
        return crash();
    }
    if !same_origin(request.headers()) {
        return empty(StatusCode::FORBIDDEN);
    }
    if request.method() == Method::OPTIONS {
        return empty(StatusCode::OK);
    }
    let response = next.run(request).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE
        && response.headers().get(header::CONTENT_TYPE).is_none_or(|kind| kind != JSON)
    {
        return large(core, response).await;
    }
    response
}

/// A body over the limit, in aiohttp's words; one that an upload has counted says it already.
async fn large(core: &Core, response: Response) -> Response {
    let said = to_bytes(response.into_body(), 1 << 10).await.unwrap_or_default();
    if said.starts_with(b"Maximum request") {
        let line = String::from_utf8_lossy(&said).into_owned();
        return text(StatusCode::PAYLOAD_TOO_LARGE, line);
    }
    let limit = core.config.max_upload_size;
    let line = format!("Maximum request body size {limit} exceeded.");
    text(StatusCode::PAYLOAD_TOO_LARGE, line).into_response()
}

/// ComfyUI's check against foreign pages: with a loopback Host, Origin must name the same
/// authority; a port that one of them lacks is not compared.
fn same_origin(headers: &HeaderMap) -> bool {
    let get = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let (Some(host), Some(origin)) = (get(header::HOST), get(header::ORIGIN)) else { return true };
    let Ok(host) = host.to_ascii_lowercase().parse::<http::uri::Authority>() else { return true };
    if !is_loopback(host.host()) {
        return true;
    }
    let origin = origin.to_ascii_lowercase().parse::<Uri>().ok();
    // `null`, which has no scheme, names nothing to compare.
    let origin = origin.filter(|uri| uri.scheme().is_some());
    let Some(origin) = origin.and_then(|uri| uri.authority().cloned()) else { return true };
    let ports_agree = match (host.port_u16(), origin.port_u16()) {
        (Some(host), Some(origin)) => host == origin,
        _ => true,
    };
    host.host() == origin.host() && ports_agree
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The cache headers by suffix of the path, whatever answers there.
fn cache_headers(path: &str, response: &mut Response) {
    let name = path.rsplit('/').next().unwrap_or_default();
    let suffix = name.rsplit_once('.').map(|(_, suffix)| suffix).unwrap_or_default();
    let value = match (suffix, response.status().as_u16()) {
        ("js" | "css", _) => "no-cache",
        ("json", _) if name.starts_with("index") => "no-cache",
        (suffix, status) if IMAGES.contains(&suffix.to_ascii_lowercase().as_str()) => {
            match status {
                404 => "public, max-age=3600",
                200..=206 | 301 | 308 => "public, max-age=86400",
                _ => return,
            }
        }
        _ => return,
    };
    let value = HeaderValue::from_static(value);
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(value);
}

fn is_json(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == JSON)
}

/// Lets a hook change a JSON reply.
async fn tapped(response: Response, tap: impl FnOnce(&mut Value)) -> Response {
    if !is_json(&response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_TAPPED).await else { return crash() };
    let Ok(mut value) = serde_json::from_slice(&bytes) else {
        return Response::from_parts(parts, Body::from(bytes));
    };
    tap(&mut value);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(python_json(&value)))
}

/// Cuts a JSON reply in the middle, with a length that is right for the rest.
async fn cut(response: Response) -> Response {
    if !is_json(&response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_TAPPED).await else { return crash() };
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(bytes.slice(..bytes.len() / 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(host: &str, origin: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers.insert(header::ORIGIN, origin.parse().unwrap());
        same_origin(&headers)
    }

    #[test]
    fn foreign_origins_are_refused_on_loopback_only() {
        assert!(!passes("127.0.0.1:8188", "http://evil.example"));
        assert!(!passes("127.0.0.1:8188", "http://127.0.0.1:9999"));
        assert!(!passes("localhost:8188", "http://127.0.0.1:8188"));
        assert!(passes("127.0.0.1:8188", "http://127.0.0.1:8188"));
        assert!(passes("127.0.0.1:8188", "http://127.0.0.1"));
        assert!(passes("127.0.0.1", "http://127.0.0.1:8188"));
        assert!(passes("127.0.0.1:8188", "null"));
        assert!(passes("10.0.0.7:8188", "http://evil.example"));
        assert!(!passes("[::1]:8188", "http://evil.example"));
    }
}
