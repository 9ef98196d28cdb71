//! What aiohttp's `FileResponse` does: Range, `ETag`, 304, 412 and 416, streamed from disk.

use std::io::SeekFrom;
use std::path::Path;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::paths::modified_ns;
use super::reply::{Answer, Refusal};

const CHUNK: usize = 256 << 10;

/// What conditional requests go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The `ETag`, with its quotes.
    pub etag: String,
    /// Seconds since 1970 of the last change.
    pub modified: i64,
}

/// The file at `path`, a part of it, or why not.
pub async fn file(path: &Path, headers: &HeaderMap, kind: &'static str) -> Answer {
    let absent = Refusal::Bare(StatusCode::NOT_FOUND);
    let file = File::open(path).await.map_err(|_| absent)?;
    let found = file.metadata().await?;
    let modified = modified_ns(&found);
    let stamp = Stamp {
        etag: format!("\"{modified:x}-{:x}\"", found.len()),
        modified: i64::try_from(modified / 1_000_000_000).unwrap_or_default(),
    };
    opened(file, &stamp, headers, kind).await
}

/// An open file, a part of it, or why not.
pub async fn opened(
    mut file: File,
    stamp: &Stamp,
    headers: &HeaderMap,
    kind: &'static str,
) -> Answer {
    let size = file.metadata().await?.len();
    let mut response = Response::new(Body::empty());
    set(&mut response, header::ETAG, &stamp.etag);
    let modified = Timestamp::from_second(stamp.modified).unwrap_or_default();
    if let Ok(date) =
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&modified)
    {
        set(&mut response, header::LAST_MODIFIED, &date);
    }
    if let Some(status) = precondition(headers, stamp) {
        *response.status_mut() = status;
        return Ok(response);
    }
    set(&mut response, header::CONTENT_TYPE, kind);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    let (start, length) = match range(headers, size, stamp.modified) {
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
fn precondition(headers: &HeaderMap, stamp: &Stamp) -> Option<StatusCode> {
    let names = |header| {
        let list = headers.get(header)?.to_str().ok()?;
        Some(list.split(',').map(str::trim).any(|name| name == "*" || name == stamp.etag))
    };
    let (if_match, if_none_match) = (names(header::IF_MATCH), names(header::IF_NONE_MATCH));
    if if_match == Some(false) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    let since = date(headers, &header::IF_UNMODIFIED_SINCE);
    if if_match.is_none() && since.is_some_and(|since| stamp.modified > since) {
        return Some(StatusCode::PRECONDITION_FAILED);
    }
    if if_none_match == Some(true) {
        return Some(StatusCode::NOT_MODIFIED);
    }
    let since = date(headers, &header::IF_MODIFIED_SINCE);
    (if_none_match.is_none() && since.is_some_and(|since| stamp.modified <= since))
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
pub fn media_type(path: &Path) -> &'static str {
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
