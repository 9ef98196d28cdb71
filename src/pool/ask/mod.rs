//! The conversation with a backend about prompts: hand one over, take it back, ask what became of
//! it, interrupt it.
//!
//! Two habits keep a prompt from running twice or never. **A prompt is posted on a connection of
//! its own** (`post`): on one that was kept alive the backend's close could cross the prompt's
//! way, and nobody could tell whether it was queued. And **the queue is looked at before history**
//! (`look`): a prompt moves from one to the other in one step and never back, so that one which
//! is in neither is not there. Everything else may be asked twice, so it goes over connections that
//! are kept, and once more when such a one turns out to be closed.
//!
//! Each call takes its time limit, and replies are bounded ([`MAX_REPLY`], [`MAX_QUEUE`],
//! [`MAX_ENTRY`]): a backend can send anything.

mod look;
mod post;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response};

pub use post::Passed;

use crate::backend::Backend;
use crate::outlier::warden::Warden;
use crate::probe::poll::header_pairs;
use crate::upstream::CONNECT_TIMEOUT;
use crate::upstream::clients::Clients;

/// Bytes of a verdict at most: errors of a large graph name the lists of choices.
pub const MAX_REPLY: usize = 16 << 20;
/// Bytes of a queue at most. It holds whole prompts, ours and strangers', and is read as a stream:
/// nothing but ids is kept.
pub const MAX_QUEUE: usize = 2 << 30;
/// Bytes of a history entry at most: a prompt, of 100 MiB as ComfyUI takes it, and its outputs.
pub const MAX_ENTRY: usize = 256 << 20;
/// Kept connections are dropped before aiohttp's keep-alive of 75 s ends them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// No connection was made: it has heard nothing.
    #[error("the backend cannot be reached")]
    Unreached,
    /// The connection broke off; it may have heard.
    #[error("the connection to the backend was lost")]
    Lost,
    /// It did not answer in time, or not with what was asked for.
    #[error("the backend gives no usable answer")]
    Useless,
}

/// Talks to backends. Shared by all.
pub struct Ask {
    /// A connection for each request.
    alone: Clients,
    /// Connections that are kept.
    kept: Clients,
    /// Who hears how prompts fare.
    warden: Option<Arc<Warden>>,
}

impl Ask {
    /// One that has not talked to anybody yet.
    pub fn new() -> anyhow::Result<Self> {
        let clients = |kept: usize| {
            Clients::new(move || {
                Client::builder()
                    .retry(reqwest::retry::never())
                    .connect_timeout(CONNECT_TIMEOUT)
                    .pool_max_idle_per_host(kept)
                    .pool_idle_timeout(IDLE_TIMEOUT)
                    .tcp_nodelay(true)
            })
        };
        Ok(Self { alone: clients(0)?, kept: clients(4)?, warden: None })
    }

    /// The same; what becomes of prompts is told to a warden.
    #[must_use]
    pub fn told_to(self, warden: Arc<Warden>) -> Self {
        Self { warden: Some(warden), ..self }
    }

    /// Sends over a kept connection what may be sent twice, once more when that one was closed.
    async fn twice(
        &self,
        backend: &Backend,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        timeout: Duration,
    ) -> Result<Response, Silence> {
        let send = || send(&self.kept, backend, method.clone(), path, body.clone(), timeout);
        match send().await {
            Err(Silence::Lost) => send().await,
            answer => answer,
        }
    }
}

async fn send(
    clients: &Clients,
    backend: &Backend,
    method: Method,
    path: &str,
    body: Option<Bytes>,
    timeout: Duration,
) -> Result<Response, Silence> {
    let mut headers: HeaderMap = header_pairs(&backend.spec.headers).collect();
    let mut request = clients.request(backend, method, path);
    if let Some(body) = body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request = request.body(body);
    }
    request.headers(headers).timeout(timeout).send().await.map_err(|error| silence(&error))
}

/// Reads a reply in pieces, as long as they are taken and not too many.
async fn read(
    mut response: Response,
    limit: usize,
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), Silence> {
    let mut size = 0;
    while let Some(piece) = response.chunk().await.map_err(|_| Silence::Useless)? {
        size += piece.len();
        if size > limit || !take(&piece) {
            return Err(Silence::Useless);
        }
    }
    Ok(())
}

async fn whole(response: Response, limit: usize) -> Result<Bytes, Silence> {
    let mut body = Vec::new();
    read(response, limit, |piece| {
        body.extend_from_slice(piece);
        true
    })
    .await?;
    Ok(body.into())
}

fn silence(error: &reqwest::Error) -> Silence {
    if error.is_connect() || error.is_builder() {
        Silence::Unreached
    } else if error.is_timeout() {
        Silence::Useless
    } else {
        Silence::Lost
    }
}
