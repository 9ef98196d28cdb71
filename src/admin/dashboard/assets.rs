//! What the page loads besides itself. Names carry a hash of the content, so that browsers keep a
//! file for good and never show a new page with an old script.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, PreEscaped};
use sha2::{Digest, Sha256};

const SCRIPT: &str = include_str!("dashboard.js");
const STYLE: &str = include_str!("dashboard.css");
const ICON: &str = include_str!("icon.svg");

struct Asset {
    path: String,
    kind: &'static str,
    content: &'static str,
}

static ASSETS: LazyLock<[Asset; 3]> = LazyLock::new(|| {
    [
        asset("dashboard", "js", "text/javascript; charset=utf-8", SCRIPT),
        asset("dashboard", "css", "text/css; charset=utf-8", STYLE),
        asset("icon", "svg", "image/svg+xml", ICON),
    ]
});

fn asset(name: &str, extension: &str, kind: &'static str, content: &'static str) -> Asset {
    let hash = hex::encode(&Sha256::digest(content)[..6]);
    Asset { path: format!("/assets/{name}-{hash}.{extension}"), kind, content }
}

/// The script's path.
pub(super) fn script() -> &'static str {
    &ASSETS[0].path
}

/// The stylesheet's path.
pub(super) fn style() -> &'static str {
    &ASSETS[1].path
}

/// The icon's path.
pub(super) fn icon() -> &'static str {
    &ASSETS[2].path
}

/// The icon within the page.
pub(super) fn mark() -> Markup {
    PreEscaped(ICON.to_owned())
}

/// `GET /assets/{file}`.
pub(super) async fn serve(Path(file): Path<String>) -> Response {
    let found = ASSETS.iter().find(|asset| asset.path.strip_prefix("/assets/") == Some(&file));
    let Some(asset) = found else { return StatusCode::NOT_FOUND.into_response() };
    let headers = [
        (header::CONTENT_TYPE, asset.kind),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, asset.content).into_response()
}
