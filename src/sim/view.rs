//! Files over HTTP: `/view` with previews and channels, static files, and what aiohttp's
//! `FileResponse` does for all of them: Range, `ETag`, 304, 412 and 416, streamed from disk.

use std::io::{Cursor, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{OriginalUri, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use image::{DynamicImage, ImageFormat, RgbaImage};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::Core;
use super::files::{inside, modified_ns, split_annotation};
use super::picture;
use super::reply::{Answer, Query, Refusal};

const CHUNK: usize = 256 << 10;
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

/// `FileResponse`: the file, a part of it, or why not.
pub(super) async fn file(path: &Path, headers: &HeaderMap, kind: &'static str) -> Answer {
    let mut file = tokio::fs::File::open(path).await.map_err(|_| ABSENT)?;
    let found = file.metadata().await?;
    let size = found.len();
    let etag = format!("\"{:x}-{size:x}\"", modified_ns(&found));
    let seconds = i64::try_from(modified_ns(&found) / 1_000_000_000).unwrap_or_default();
    let mut response = Response::new(Body::empty());
    set(&mut response, header::ETAG, &etag);
    let modified = Timestamp::from_second(seconds).unwrap_or_default();
    if let Ok(date) =
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&modified)
    {
        set(&mut response, header::LAST_MODIFIED, &date);
    }
    if let Some(status) = precondition(headers, &etag, seconds) {
        *response.status_mut() = status;
        return Ok(response);
    }
    set(&mut response, header::CONTENT_TYPE, kind);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    let (start, length) = match range(headers, size, seconds) {
        Wanted::All => (0, size),
        Wanted::Part(start, end) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let part = format!("bytes {start}-{}/{size}", end - 1);
            set(&mut response, header::CONTENT_RANGE, &part);
            (start, end - start)
        }
        Wanted::Nothing => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    file.seek(SeekFrom::Start(start)).await?;
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    *response.body_mut() = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK));
    Ok(response)
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// 412 or 304, in aiohttp's order.
fn precondition(headers: &HeaderMap, etag: &str, modified: i64) -> Option<StatusCode> {
    let names = |header| {
        let list = headers.get(header)?.to_str().ok()?;
        Some(list.split(',').map(str::trim).any(|name| name == "*" || name == etag))
    };
    let (if_match, if_none_match) = (names(header::IF_MATCH), names(header::IF_NONE_MATCH));
    if if_match == Some(false) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    let since = date(headers, &header::IF_UNMODIFIED_SINCE);
    if if_match.is_none() && since.is_some_and(|since| modified > since) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    if if_none_match == Some(true) {
        return Some(StatusCode::NOT_MODIFIED);
    }
    let since = date(headers, &header::IF_MODIFIED_SINCE);
    (if_none_match.is_none() && since.is_some_and(|since| modified <= since))
        .then_some(StatusCode::NOT_MODIFIED)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    let text = headers.get(name)?.to_str().ok()?;
    let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(parsed.as_second())
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From the first byte to before the last.
    Part(u64, u64),
    Nothing,
}

/// The one range of a request; aiohttp refuses several, and anything it cannot read.
fn range(headers: &HeaderMap, size: u64, modified: i64) -> Wanted {
    let Some(given) = headers.get(header::RANGE) else { return Wanted::All };
    if date(headers, &header::IF_RANGE).is_some_and(|since| modified > since) {
        return Wanted::All;
    }
    let bounds = given.to_str().ok().and_then(|text| text.strip_prefix("bytes="));
    let Some((start, end)) = bounds.and_then(|bounds| bounds.split_once('-')) else {
        return Wanted::Nothing;
    };
    let number = |text: &str| match text {
        "" => Some(None),
        text if text.bytes().all(|b| b.is_ascii_digit()) => Some(Some(text.parse::<u64>().ok()?)),
        _ => None,
    };
    match (number(start), number(end)) {
        (Some(Some(start)), Some(None)) if start < size => Wanted::Part(start, size),
        (Some(Some(start)), Some(Some(end))) if start < size && start <= end => {
            Wanted::Part(start, end.saturating_add(1).min(size))
        }
        (Some(None), Some(Some(last))) if last > 0 && size > 0 => {
            Wanted::Part(size.saturating_sub(last), size)
        }
        _ => Wanted::Nothing,
    }
}

/// The type of a file as Python 3.11 guesses it on the recording server, which knew neither
/// woff2 nor webp.
pub(super) fn media_type(path: &Path) -> &'static str {
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default();
    match suffix.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html",
        "css" => "text/css",
        "js" | "mjs" => "application/javascript",
        "json" => "application/json",
        "wasm" => "application/wasm",
        "txt" => "text/plain",
        "csv" => "text/csv",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "ico" => "image/vnd.microsoft.icon",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        "wav" => "audio/x-wav",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, text.parse().unwrap());
        range(&headers, 100, 0)
    }

    #[test]
    fn ranges_are_read_as_aiohttp_reads_them() {
        assert_eq!(range(&HeaderMap::new(), 100, 0), Wanted::All);
        assert_eq!(wanted("bytes=0-9"), Wanted::Part(0, 10));
        assert_eq!(wanted("bytes=90-"), Wanted::Part(90, 100));
        assert_eq!(wanted("bytes=90-1000"), Wanted::Part(90, 100));
        assert_eq!(wanted("bytes=-7"), Wanted::Part(93, 100));
        assert_eq!(wanted("bytes=-700"), Wanted::Part(0, 100));
        for refused in ["bytes=100-", "bytes=9-3", "bytes=1-2,5-6", "bytes=-", "lines=1-2"] {
            assert_eq!(wanted(refused), Wanted::Nothing, "{refused}");
        }
    }
}
