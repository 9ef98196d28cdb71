//! Files on backends: whether one is there, fetching it, and putting one there.
//!
//! A backend's reply is not trusted: what it sends is bounded, and it must answer in time. A file
//! may take as long as it needs as long as it keeps coming.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream};
use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap, IF_NONE_MATCH};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use super::place::Place;
use super::uploads::{Digest, Held, Spooled, StoreError, Uploads};
use crate::backend::{Backend, BackendId};
use crate::config::Secret;
use crate::probe::poll::header_pairs;
use crate::upstream::clients::Clients;

/// Backends asked at the same time.
const AT_ONCE: usize = 16;
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(3);
/// Time to say whether a file is there.
const GLANCE: Duration = Duration::from_secs(3);
/// Time to begin with a file, and between two pieces of it.
const PAUSE: Duration = Duration::from_secs(30);
/// Bytes per second that an upload takes at least.
const SLOWEST: u64 = 1 << 20;
/// Bytes of the reply to an upload.
const MAX_REPLY: usize = 64 << 10;

/// Why a backend was of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It cannot be reached, or does not answer in time.
    #[error("it does not answer")]
    Silent,
    /// It answers with another status.
    #[error("it answers {0}")]
    Refused(u16),
    /// It says something else than what was asked for.
    #[error("it gives another answer than asked for")]
    Wrong,
}

/// A file that was asked for.
pub(super) enum Fetched {
    /// It is not there.
    Absent,
    /// It is the one known by the tag.
    Unchanged,
    /// It comes.
    File(Response),
}

/// What went wrong with a download.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error(transparent)]
    Backend(#[from] Trouble),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Deserialize)]
struct Uploaded {
    name: String,
    subfolder: String,
    r#type: String,
}

/// Talks to backends about files.
pub struct Remote {
    clients: Clients,
    headers: ArcSwap<HeaderMap>,
}

impl Remote {
    /// One for all backends.
    pub fn new() -> anyhow::Result<Self> {
        let clients = Clients::new(|| {
            Client::builder()
                .connect_timeout(CONNECT)
                .pool_max_idle_per_host(4)
                .pool_idle_timeout(Duration::from_secs(30))
        })?;
        Ok(Self { clients, headers: ArcSwap::default() })
    }

    /// Headers of the gateway's own requests, as `health_check.headers` gives them.
    pub fn set_headers(&self, headers: &[(String, Secret)]) {
        self.headers.store(Arc::new(header_pairs(headers).collect()));
    }

    /// The backends that have a file, in the order they were given; those that do not answer in
    /// time count as without it.
    pub async fn holders(&self, backends: &[Arc<Backend>], place: &Place) -> Vec<BackendId> {
        let asked: Vec<_> = backends.iter().map(|backend| self.has(backend, place)).collect();
        let answers = stream::iter(asked).buffered(AT_ONCE);
        answers.filter_map(std::future::ready).collect().await
    }

    async fn has(&self, backend: &Backend, place: &Place) -> Option<BackendId> {
        matches!(self.size(backend, place).await, Ok(Some(_))).then_some(backend.id)
    }

    /// The bytes of a file, when it is there.
    pub(super) async fn size(
        &self,
        backend: &Backend,
        place: &Place,
    ) -> Result<Option<u64>, Trouble> {
        let request = self.request(Method::HEAD, backend, &view(place));
        let response = send(request, GLANCE).await?;
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
        match response.status() {
            status if status.is_success() => Ok(Some(length.unwrap_or_default())),
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(None),
            status => Err(Trouble::Refused(status.as_u16())),
        }
    }

    /// Asks for a file.
    pub(super) async fn fetch(
        &self,
        backend: &Backend,
        place: &Place,
        tag: Option<&str>,
    ) -> Result<Fetched, Trouble> {
        let mut request = self.request(Method::GET, backend, &view(place));
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let response = send(request, PAUSE).await?;
        match response.status() {
            StatusCode::OK => Ok(Fetched::File(response)),
            StatusCode::NOT_MODIFIED if tag.is_some() => Ok(Fetched::Unchanged),
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Ok(Fetched::Absent),
            status => Err(Trouble::Refused(status.as_u16())),
        }
    }

    /// Whether a backend's file has a content; `None` when it has no such file.
    pub(super) async fn is_same(
        &self,
        backend: &Backend,
        place: &Place,
        content: &Spooled,
    ) -> Result<Option<bool>, Trouble> {
        match self.size(backend, place).await? {
            None => return Ok(None),
            Some(size) if size != content.size => return Ok(Some(false)),
            Some(_) => {}
        }
        let Fetched::File(mut response) = self.fetch(backend, place, None).await? else {
            return Ok(None);
        };
        let (mut hasher, mut left) = (Sha256::new(), content.size);
        while let Some(piece) = next(&mut response).await? {
            let Some(rest) = left.checked_sub(piece.len() as u64) else { return Ok(Some(false)) };
            left = rest;
            hasher.update(&piece);
        }
        Ok(Some(Digest(hasher.finalize().into()) == content.digest))
    }

    /// Puts a content into a backend's input folder, in place of what is there.
    pub(super) async fn put(
        &self,
        backend: &Backend,
        place: &Place,
        held: &Held,
    ) -> Result<(), DownloadError> {
        let file = tokio::fs::File::open(&held.path).await.map_err(StoreError::Io)?;
        let part = Part::stream_with_length(file, held.size).file_name(place.name().to_owned());
        let part = part.mime_str("application/octet-stream").map_err(|_| Trouble::Wrong)?;
        // The names first: some servers read a form in order.
        let form = Form::new()
            .percent_encode_noop()
            .text("type", place.folder().name())
            .text("subfolder", place.subfolder().to_owned())
            .text("overwrite", "true")
            .part("image", part);
        let request = self.request(Method::POST, backend, "/upload/image").multipart(form);
        let time = PAUSE + Duration::from_secs(held.size / SLOWEST);
        let response = send(request, time).await?;
        if response.status() != StatusCode::OK {
            return Err(Trouble::Refused(response.status().as_u16()).into());
        }
        let said: Uploaded = read_reply(response).await?;
        let as_asked = said.name == place.name()
            && said.subfolder == place.subfolder()
            && said.r#type == place.folder().name();
        if as_asked { Ok(()) } else { Err(Trouble::Wrong.into()) }
    }

    fn request(&self, method: Method, backend: &Backend, target: &str) -> RequestBuilder {
        let mut headers = (**self.headers.load()).clone();
        for (name, value) in header_pairs(&backend.spec.headers) {
            headers.insert(name, value);
        }
        self.clients.request(backend, method, target).headers(headers)
    }
}

/// Takes a file in. Its tag comes along.
pub(super) async fn download(
    response: Response,
    store: &Arc<Uploads>,
) -> Result<(Spooled, Option<String>), DownloadError> {
    download_at_most(response, store, u64::MAX).await
}

/// Takes in a file of so many bytes at most.
pub(super) async fn download_at_most(
    mut response: Response,
    store: &Arc<Uploads>,
    most: u64,
) -> Result<(Spooled, Option<String>), DownloadError> {
    if response.content_length().is_some_and(|length| length > most) {
        return Err(StoreError::TooLarge.into());
    }
    let mut left = most;
    let tag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
    let mut spool = store.spool().await?;
    while let Some(piece) = next(&mut response).await? {
        left = left.checked_sub(piece.len() as u64).ok_or(StoreError::TooLarge)?;
        spool.write(&piece).await?;
    }
    Ok((spool.finish().await?, tag))
}

fn view(place: &Place) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("filename", place.name());
    query.append_pair("type", place.folder().name());
    query.append_pair("subfolder", place.subfolder());
    format!("/view?{}", query.finish())
}

async fn send(request: RequestBuilder, time: Duration) -> Result<Response, Trouble> {
    let sent = timeout(time, request.send()).await;
    sent.map_err(|_| Trouble::Silent)?.map_err(|_| Trouble::Silent)
}

async fn next(response: &mut Response) -> Result<Option<bytes::Bytes>, Trouble> {
    let piece = timeout(PAUSE, response.chunk()).await;
    piece.map_err(|_| Trouble::Silent)?.map_err(|_| Trouble::Silent)
}

async fn read_reply(mut response: Response) -> Result<Uploaded, Trouble> {
    let mut body = Vec::new();
    while let Some(piece) = next(&mut response).await? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_REPLY {
            return Err(Trouble::Wrong);
        }
    }
    serde_json::from_slice(&body).map_err(|_| Trouble::Wrong)
}
