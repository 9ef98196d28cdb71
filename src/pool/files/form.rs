//! The multipart form of an upload: its file goes to the store's disk as it comes, so that one of
//! any size needs no memory. Text fields are bounded, and so is the number of fields.

use std::sync::Arc;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;

use super::paced::{Meter, paced};
use super::remote::{DownloadError, Trouble};
use super::uploads::{Spool, Spooled, StoreError, Uploads};
use crate::comfy::reply::Refusal;
use crate::rejection::{Kind, Rejection};

/// Bytes of a text field.
const MAX_TEXT: usize = 64 << 10;
const MAX_FIELDS: usize = 64;

/// Why an upload is not taken.
#[derive(Debug)]
pub(super) enum No {
    /// In ComfyUI's way.
    Comfy(Refusal),
    /// In the gateway's own.
    Own(Rejection),
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        Self::Comfy(refusal)
    }
}

impl From<StoreError> for No {
    fn from(error: StoreError) -> Self {
        log::warn!("an upload is not kept: {error}");
        Self::Own(match error {
            StoreError::TooLarge => {
                Rejection::new(Kind::BodyTooLarge, "the file is larger than all uploads may be")
            }
            StoreError::Full | StoreError::Io(_) => {
                Rejection::new(Kind::StorageUnavailable, "there is no room for the upload")
                    .retry_after(10)
            }
        })
    }
}

impl From<DownloadError> for No {
    fn from(error: DownloadError) -> Self {
        let trouble = match error {
            DownloadError::Store(error) => return error.into(),
            DownloadError::Backend(trouble) => trouble,
        };
        log::warn!(
            "an upload is not kept: the backend that has the original is of no use: {trouble}"
        );
        Self::Own(match trouble {
            Trouble::Silent => Rejection::new(Kind::UpstreamTimeout, "the server does not answer"),
            _ => Rejection::new(Kind::UpstreamFailed, "the server gives no usable answer"),
        })
    }
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let rejection = match self {
            Self::Comfy(refusal) => return refusal.into_response(),
            Self::Own(rejection) => rejection,
        };
        let mut response = Response::new(axum::body::Body::from(rejection.body()));
        *response.status_mut() = rejection.kind.status();
        for (name, value) in rejection.headers() {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

/// A file that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// Its name as it was given.
    pub(super) name: String,
    /// Its content.
    pub(super) content: Arc<Spooled>,
}

/// A form as uploads send it; of fields that come twice the first counts.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// The file under `image`.
    pub(super) image: Option<Sent>,
    texts: Vec<(String, String)>,
}

impl Form {
    /// A text field.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.texts.iter().find(|(key, _)| key == name).map(|(_, text)| text.as_str())
    }

    /// Reads a request's form of at most `limit` bytes.
    pub(super) async fn read(
        request: Request,
        store: &Arc<Uploads>,
        limit: u64,
    ) -> Result<Self, No> {
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let (head, body) = request.into_parts();
        let (body, meter) = paced(body, limit);
        let form = Multipart::from_request(Request::from_parts(head, body), &()).await;
        // A body of another type has no fields, as aiohttp reads it.
        let Ok(mut form) = form else { return Ok(Self::default()) };
        let read = Self::fields(&mut form, store, &meter).await;
        // The parser does not tell why the body ended.
        if meter.is_over() { Err(too_large()) } else { read }
    }

    async fn fields(form: &mut Multipart, store: &Arc<Uploads>, meter: &Meter) -> Result<Self, No> {
        let mut read = Self::default();
        for _ in 0..MAX_FIELDS {
            let Some(field) = form.next_field().await.map_err(broken)? else { break };
            meter.used();
            let name = field.name().unwrap_or_default().to_owned();
            match file_name(&field) {
                Some(file) if name == "image" && read.image.is_none() => {
                    let content = Arc::new(spool(field, store, meter).await?);
                    read.image = Some(Sent { name: file, content });
                }
                Some(_) => skip(field, meter).await?,
                None => {
                    let text = text(field, meter).await?;
                    if read.text(&name).is_none() {
                        read.texts.push((name, text));
                    }
                }
            }
        }
        Ok(read)
    }
}

fn too_large() -> No {
    No::Own(Rejection::new(Kind::BodyTooLarge, "the body is too large"))
}

fn broken(_: MultipartError) -> No {
    Refusal::Crash.into()
}

async fn next(field: &mut Field<'_>, meter: &Meter) -> Result<Option<Bytes>, No> {
    let piece = field.chunk().await.map_err(broken)?;
    meter.used();
    Ok(piece)
}

async fn spool(mut field: Field<'_>, store: &Arc<Uploads>, meter: &Meter) -> Result<Spooled, No> {
    let mut spool: Spool = store.spool().await?;
    while let Some(piece) = next(&mut field, meter).await? {
        spool.write(&piece).await?;
    }
    Ok(spool.finish().await?)
}

async fn skip(mut field: Field<'_>, meter: &Meter) -> Result<(), No> {
    while next(&mut field, meter).await?.is_some() {}
    Ok(())
}

async fn text(mut field: Field<'_>, meter: &Meter) -> Result<String, No> {
    let mut text = Vec::new();
    while let Some(piece) = next(&mut field, meter).await? {
        text.extend_from_slice(&piece);
        if text.len() > MAX_TEXT {
            return Err(too_large());
        }
    }
    String::from_utf8(text).map_err(|_| Refusal::Crash.into())
}

/// The name of a file field: `filename*`, else `filename`, without slashes in front, as aiohttp
/// reads them.
fn file_name(field: &Field<'_>) -> Option<String> {
    let disposition = field.headers().get(header::CONTENT_DISPOSITION);
    let extended = disposition.and_then(|value| extended_name(value.to_str().ok()?));
    let name = extended.or_else(|| field.file_name().map(str::to_owned))?;
    Some(name.trim_start_matches(['\\', '/']).to_owned())
}

fn extended_name(disposition: &str) -> Option<String> {
    let parts = disposition.split(';').map(str::trim);
    let value = parts.filter_map(|part| part.split_once('=')).find_map(|(key, value)| {
        key.trim_end().eq_ignore_ascii_case("filename*").then(|| value.trim().trim_matches('"'))
    })?;
    let (charset, rest) = value.split_once('\'')?;
    let (_, encoded) = rest.split_once('\'')?;
    let is_utf8 = charset.eq_ignore_ascii_case("utf-8");
    is_utf8.then(|| percent_decode_str(encoded).decode_utf8().ok().map(Into::into))?
}

/// 400 without a word.
pub(super) const BAD: Refusal = Refusal::Bare(StatusCode::BAD_REQUEST);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extended_name_is_read() {
        let read = |text: &str| extended_name(text);
        let text = "form-data; name=\"image\"; filename=\"x\"; filename*=utf-8''%C3%BC%20b.png";
        assert_eq!(read(text).as_deref(), Some("ü b.png"));
        for other in
            ["form-data; filename=\"a'b'c\"", "form-data; filename*=latin1''a", "filename*="]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
