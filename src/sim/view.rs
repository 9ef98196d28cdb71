//! Files over HTTP: `/view` with previews and channels, and static files.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use image::{DynamicImage, ImageFormat, RgbaImage};

use super::Core;
use super::files::{inside, split_annotation};
use super::picture;
use super::reply::{Answer, Query, Refusal};
use crate::comfy::file_response::{file_response, media_type};

const BAD: Refusal = Refusal::Bare(StatusCode::BAD_REQUEST);
const ABSENT: Refusal = Refusal::Bare(StatusCode::NOT_FOUND);

/// `GET /view`.
pub(super) async fn view(
    State(core): State<Arc<Core>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Answer {
    let query = Query::of(&uri);
    let (path, name) = find(&core, &query)?;
    if !path.is_file() {
        return Err(ABSENT);
    }
    let channel = query.get("channel").unwrap_or_default().to_owned();
    if let Some(wanted) = query.get("preview") {
        return preview(path, &name, wanted.to_owned(), channel).await;
    }
    if channel == "rgb" || channel == "a" {
        return one_channel(path, &name, channel).await;
    }
    let kind = match media_type(&path) {
        // Types that a browser would run are sent as a download.
        "text/html" | "text/css" | "application/javascript" => "application/octet-stream",
        kind => kind,
    };
    let mut response = file(&path, &headers, kind).await?;
    response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition(&name));
    Ok(response)
}

/// The file that a query names, and its name without folders.
fn find(core: &Core, query: &Query) -> Result<(PathBuf, String), Refusal> {
    let given = query.get("filename").ok_or(ABSENT)?;
    let (name, chosen) = split_annotation(given);
    if name.is_empty() || name.starts_with('/') || name.contains("..") {
        return Err(BAD);
    }
    let folder = chosen.or(query.get("type")).unwrap_or("output");
    let base = core.files.by_type(folder).ok_or(BAD)?;
    let directory = inside(&base, query.get("subfolder").unwrap_or_default());
    let directory = directory.ok_or(Refusal::Bare(StatusCode::FORBIDDEN))?;
    let name = name.rsplit('/').next().unwrap_or_default();
    Ok((inside(&directory, name).ok_or(BAD)?, name.to_owned()))
}

fn disposition(name: &str) -> HeaderValue {
    let safe: String = name.chars().filter(|c| !c.is_control() && *c != '"').collect();
    HeaderValue::from_bytes(format!("filename=\"{safe}\"").as_bytes())
        .unwrap_or(HeaderValue::from_static("filename=\"file\""))
}

async fn preview(path: PathBuf, name: &str, wanted: String, channel: String) -> Answer {
    let format = wanted.split(';').next().unwrap_or_default();
    let jpeg = format == "jpeg" && !channel.contains('a');
    let quality = wanted.rsplit(';').next().and_then(|text| text.parse::<u8>().ok()).unwrap_or(90);
    let flat = jpeg || channel == "rgb";
    let bytes = encode(path, move |image, out| {
        let image = if flat { image.into_rgb8().into() } else { image };
        if jpeg {
            let quality = quality.clamp(1, 100);
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(out, quality);
            image.into_rgb8().write_with_encoder(encoder)
        } else {
            // The encoder knows 8-bit RGB and RGBA only.
            let alpha = image.color().has_alpha();
            let image = if alpha { image.into_rgba8().into() } else { image.into_rgb8().into() };
            DynamicImage::write_to(&image, out, ImageFormat::WebP)
        }
    });
    let (kind, format) = if jpeg { ("image/jpeg", "jpeg") } else { ("image/webp", "webp") };
    Ok(rendered(bytes.await?, kind, &name.replace("png", format)))
}

async fn one_channel(path: PathBuf, name: &str, channel: String) -> Answer {
    let bytes = encode(path, move |image, out| {
        let image = if channel == "rgb" {
            DynamicImage::from(image.into_rgb8())
        } else {
            let mut alpha = image.into_rgba8();
            for pixel in alpha.pixels_mut() {
                pixel.0 = [0, 0, 0, pixel.0[3]];
            }
            DynamicImage::from(RgbaImage::from(alpha))
        };
        image.write_to(out, ImageFormat::Png)
    });
    Ok(rendered(bytes.await?, "image/png", name))
}

/// Reads an image and writes it anew, away from the threads that serve.
async fn encode(
    path: PathBuf,
    with: impl FnOnce(DynamicImage, &mut Cursor<Vec<u8>>) -> image::ImageResult<()> + Send + 'static,
) -> Result<Vec<u8>, Refusal> {
    let encoded = tokio::task::spawn_blocking(move || {
        let mut out = Cursor::new(Vec::new());
        with(picture::open(&path)?, &mut out)?;
        Ok::<_, image::ImageError>(out.into_inner())
    });
    encoded.await.map_err(|_| Refusal::Crash)?.map_err(|_| Refusal::Crash)
}

fn rendered(bytes: Vec<u8>, kind: &'static str, name: &str) -> Response {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition(name));
    response
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

/// A file, a part of it, or why not.
pub(super) async fn file(path: &Path, headers: &HeaderMap, kind: &'static str) -> Answer {
    file_response(path, headers, kind).await.map_err(|_| ABSENT)
}
