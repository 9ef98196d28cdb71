//! Asking a backend about its prompts, and telling it to stop one.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;

use crate::backend::Backend;
use crate::comfy::history::{self, Entry};
use crate::comfy::queue_count::QueueCount;
use crate::comfy::queue_items::QueueItems;
use crate::config::HealthCheck;
use crate::probe::poll::header_pairs;
use crate::upstream::clients::Clients;

/// Bytes of a queue at most.
const MAX_QUEUE: usize = 64 << 20;
/// Bytes of a history entry at most: it carries the prompt, its page's workflow and its outputs.
const MAX_ENTRY: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// Nobody listens there any more.
    #[error("the backend cannot be reached")]
    Gone,
    /// It does not answer in time, or not with what was asked for.
    #[error("the backend gives no usable answer")]
    Useless,
}

/// Asks backends.
pub struct Asker {
    clients: Option<Clients>,
}

impl Default for Asker {
    fn default() -> Self {
        let kind = || {
            Client::builder().pool_max_idle_per_host(4).pool_idle_timeout(Duration::from_secs(30))
        };
        Self { clients: Clients::new(kind).ok() }
    }
}

impl Asker {
    /// The prompts a backend has, and how many bytes it took to say so.
    pub async fn queue(
        &self,
        backend: &Backend,
        options: &HealthCheck,
    ) -> Result<(QueueItems, usize), Silence> {
        let mut counter = QueueCount::with_items();
        let response = self.get(backend, options, "/queue").await?;
        let size = read(response, MAX_QUEUE, |piece| counter.feed(piece).is_ok()).await?;
        let (_, items) = counter.finish_with_items().map_err(|_| Silence::Useless)?;
        Ok((items, size))
    }

    /// What a backend's history says of a prompt.
    pub async fn history(
        &self,
        backend: &Backend,
        options: &HealthCheck,
        id: &str,
    ) -> Result<Entry, Silence> {
        let path = format!("/history/{}", utf8_percent_encode(id, NON_ALPHANUMERIC));
        let response = self.get(backend, options, &path).await?;
        let mut body = Vec::new();
        read(response, MAX_ENTRY, |piece| {
            body.extend_from_slice(piece);
            true
        })
        .await?;
        history::read(id, &body).ok_or(Silence::Useless)
    }

    /// Posts JSON to a backend.
    pub async fn post(
        &self,
        backend: &Backend,
        options: &HealthCheck,
        path: &str,
        body: &Value,
    ) -> Result<(), Silence> {
        let clients = self.clients.as_ref().ok_or(Silence::Useless)?;
        let request = clients.request(backend, Method::POST, path).json(body);
        send(request, backend, options).await.map(drop)
    }

    async fn get(
        &self,
        backend: &Backend,
        options: &HealthCheck,
        path: &str,
    ) -> Result<Response, Silence> {
        let clients = self.clients.as_ref().ok_or(Silence::Useless)?;
        send(clients.request(backend, Method::GET, path), backend, options).await
    }
}

async fn send(
    request: RequestBuilder,
    backend: &Backend,
    options: &HealthCheck,
) -> Result<Response, Silence> {
    let mut headers = reqwest::header::HeaderMap::new();
    for (name, value) in header_pairs(&options.headers).chain(header_pairs(&backend.spec.headers)) {
        headers.insert(name, value);
    }
    let sent = request.headers(headers).timeout(options.timeout).send().await;
    let response = sent.map_err(|error| silence(&error))?;
    if response.status().is_success() { Ok(response) } else { Err(Silence::Useless) }
}

async fn read(
    mut response: Response,
    limit: usize,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<usize, Silence> {
    let mut size = 0;
    while let Some(piece) = response.chunk().await.map_err(|_| Silence::Useless)? {
        size += piece.len();
        if size > limit || !take(&piece) {
            return Err(Silence::Useless);
        }
    }
    Ok(size)
}

fn silence(error: &reqwest::Error) -> Silence {
    let gone = !error.is_timeout() && (error.is_connect() || error.is_request());
    if gone { Silence::Gone } else { Silence::Useless }
}
