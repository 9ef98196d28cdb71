//! The multipart form of an upload: its file goes to the store's disk as it comes, so that one of
//! any size needs no memory. Text fields are bounded, and so is the number of fields.

use std::sync::Arc;

use axum::extract::Multipart;
use axum::extract::multipart::{Field, MultipartRejection};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::percent_decode_str;

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

    /// Reads a form of at most `limit` bytes.
    pub(super) async fn read(
        form: Result<Multipart, MultipartRejection>,
        headers: &HeaderMap,
        store: &Arc<Uploads>,
        limit: u64,
    ) -> Result<Self, No> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let announced = announced.and_then(|value| value.parse::<u64>().ok()).unwrap_or_default();
        let mut left = Left(limit.checked_sub(announced).map(|_| limit).ok_or_else(too_large)?);
        let mut read = Self::default();
        // A body of another type has no fields, as aiohttp reads it.
        let Ok(mut form) = form else { return Ok(read) };
        for _ in 0..MAX_FIELDS {
            let Some(field) = form.next_field().await.map_err(broken)? else { break };
            let name = field.name().unwrap_or_default().to_owned();
            match file_name(&field) {
                Some(file) if name == "image" && read.image.is_none() => {
                    let content = Arc::new(spool(field, store, &mut left).await?);
                    read.image = Some(Sent { name: file, content });
                }
                Some(_) => skip(field, &mut left).await?,
                None => {
                    let text = text(field, &mut left).await?;
                    if read.text(&name).is_none() {
                        read.texts.push((name, text));
                    }
                }
            }
        }
        Ok(read)
    }
}

/// How much of the body may still come.
struct Left(u64);

impl Left {
    fn take(&mut self, piece: &[u8]) -> Result<(), No> {
        self.0 = self.0.checked_sub(piece.len() as u64).ok_or_else(too_large)?;
        Ok(())
    }
}

fn too_large() -> No {
    No::Own(Rejection::new(Kind::BodyTooLarge, "the body is too large"))
}

fn broken(_: axum::extract::multipart::MultipartError) -> No {
    Refusal::Crash.into()
}

async fn spool(mut field: Field<'_>, store: &Arc<Uploads>, left: &mut Left) -> Result<Spooled, No> {
    let mut spool: Spool = store.spool().await?;
    while let Some(piece) = field.chunk().await.map_err(broken)? {
        left.take(&piece)?;
        spool.write(&piece).await?;
    }
    Ok(spool.finish().await?)
}

async fn skip(mut field: Field<'_>, left: &mut Left) -> Result<(), No> {
    while let Some(piece) = field.chunk().await.map_err(broken)? {
        left.take(&piece)?;
    }
    Ok(())
}

async fn text(mut field: Field<'_>, left: &mut Left) -> Result<String, No> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(broken)? {
        left.take(&piece)?;
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
