//! Asking backends for what is to be merged: each alone, or all of them at once.
//!
//! Bounded in bytes and time. Of many asked at once, those that are slow are waited for only a
//! short while after the first has answered: one that hangs does not hold up the rest.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Client, Response};
use tokio::time::{Instant, timeout, timeout_at};

use crate::backend::Backend;
use crate::config::HealthCheck;
use crate::fleet::View;
use crate::probe::poll::header_pairs;
use crate::upstream::clients::Clients;

/// Backends asked at once for one client.
const AT_ONCE: usize = 64;
/// A reply that brings nothing for this long has broken off.
const STALLED: Duration = Duration::from_secs(10);
/// Connections take no longer than this.
const CONNECT: Duration = Duration::from_secs(3);

/// How much and how long.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of a body at most.
    pub bytes: usize,
    /// Time for a reply, from the connection to its last byte.
    pub time: Duration,
    /// Time for the others once one has answered.
    pub grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        let (time, grace) = (Duration::from_secs(30), Duration::from_secs(2));
        Self { bytes: 16 << 20, time, grace }
    }
}

/// What a backend answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Which one.
    pub backend: Arc<Backend>,
    /// The status.
    pub status: StatusCode,
    /// The content type, if it told one.
    pub content_type: Option<HeaderValue>,
    /// The body.
    pub body: Bytes,
}

/// What a backend is asked.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: &'a str,
    /// Headers besides the configured ones, which win.
    pub headers: HeaderMap,
    /// The body of a write.
    pub body: Bytes,
}

impl<'a> Question<'a> {
    /// A GET without headers of its own.
    pub fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// Asks backends.
pub struct Fetcher {
    clients: Clients,
    headers: ArcSwap<HeaderMap>,
}

impl Fetcher {
    /// One that sends the headers of the health check, and each backend's own.
    pub fn new(options: &HealthCheck) -> anyhow::Result<Self> {
        let clients = Clients::new(|| {
            Client::builder()
                .connect_timeout(CONNECT)
                .pool_max_idle_per_host(2)
                .pool_idle_timeout(Duration::from_secs(30))
        })?;
        let headers = ArcSwap::from_pointee(header_pairs(&options.headers).collect());
        Ok(Self { clients, headers })
    }

    /// Sends other headers from now on.
    pub fn set_options(&self, options: &HealthCheck) {
        self.headers.store(Arc::new(header_pairs(&options.headers).collect()));
    }

    /// Asks one backend; an error tells why there is no answer.
    pub async fn ask(
        &self,
        backend: &Arc<Backend>,
        question: Question<'_>,
        bounds: Bounds,
    ) -> Result<Reply, String> {
        let whole = async {
            let response = self.head(backend, question).await?;
            let status = response.status();
            let content_type = response.headers().get(header::CONTENT_TYPE).cloned();
            let body = read(response, bounds.bytes).await?;
            Ok(Reply { backend: Arc::clone(backend), status, content_type, body })
        };
        let slow = || format!("it took longer than {} s", bounds.time.as_secs_f64());
        timeout(bounds.time, whole).await.map_err(|_| slow())?
    }

    /// Asks and waits for the head of the reply, the rest of which [`read`] reads.
    pub(super) async fn head(
        &self,
        backend: &Backend,
        question: Question<'_>,
    ) -> Result<Response, String> {
        let mut headers = HeaderMap::clone(&self.headers.load());
        for (name, value) in &question.headers {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in header_pairs(&backend.spec.headers) {
            headers.insert(name, value);
        }
        let reading = question.method == Method::GET;
        let request = self.clients.request(backend, question.method, question.path);
        let mut request = request.headers(headers);
        if !reading {
            request = request.body(question.body);
        }
        request.send().await.map_err(|error| cause(&error))
    }

    /// Asks all of these at once; the replies come in their order, without those that gave none
    /// in time.
    pub async fn fetch_all(
        &self,
        backends: &[Arc<Backend>],
        path: &str,
        bounds: Bounds,
    ) -> Vec<Reply> {
        let ask = |(place, backend): (usize, Arc<Backend>)| async move {
            (place, self.ask(&backend, Question::get(path), bounds).await)
        };
        let each = backends.iter().cloned().enumerate();
        let mut asked = stream::iter(each).map(ask).buffer_unordered(AT_ONCE);
        let mut deadline = Instant::now() + bounds.time;
        let mut replies = Vec::with_capacity(backends.len());
        while let Ok(Some((place, reply))) = timeout_at(deadline, asked.next()).await {
            let Ok(reply) = reply else { continue };
            if !reply.status.is_server_error() {
                deadline = deadline.min(Instant::now() + bounds.grace);
            }
            replies.push((place, reply));
        }
        replies.sort_by_key(|(place, _)| *place);
        replies.into_iter().map(|(_, reply)| reply).collect()
    }
}

/// Reads a reply of at most so many bytes.
pub(super) async fn read(mut response: Response, limit: usize) -> Result<Bytes, String> {
    let mut body = Vec::new();
    while let Some(piece) = timeout(STALLED, response.chunk())
        .await
        .map_err(|_| "its reply has stopped".to_owned())?
        .map_err(|error| cause(&error))?
    {
        if body.len() + piece.len() > limit {
            return Err(too_long(limit));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.into())
}

/// Why a reply was not read to its end.
pub(crate) fn too_long(limit: usize) -> String {
    format!("its reply is longer than {limit} bytes")
}

fn cause(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

/// The backends that answer, in the order of the configuration; before the first probes have
/// told, those that may.
pub fn reachable(view: &View) -> Vec<Arc<Backend>> {
    let those = |fits: fn(&Backend) -> bool| -> Vec<_> {
        view.backends.iter().filter(|backend| fits(backend)).cloned().collect()
    };
    let healthy = those(|backend| backend.live.standing().is_healthy());
    if healthy.is_empty() { those(|backend| backend.live.keeps_old()) } else { healthy }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::merged::fixture::{Farm, router};

    #[tokio::test]
    async fn a_backend_that_hangs_is_left_out() {
        let hangs = axum::routing::get(std::future::pending::<String>);
        let hanging = axum::Router::new().route("/models", hangs);
        let farm = Farm::of([hanging, router("/models", "[1]"), router("/models", "[2]")]).await;
        let bounds = Bounds { grace: Duration::from_millis(300), ..Bounds::default() };
        let replies = farm.fetcher.fetch_all(&farm.backends(), "/models", bounds).await;
        let names: Vec<_> = replies.iter().map(|reply| reply.backend.name()).collect();
        assert_eq!(names, ["comfy-2", "comfy-3"]);
        let soon = Bounds { time: Duration::from_millis(50), ..bounds };
        let none = farm.fetcher.fetch_all(&farm.backends()[..1], "/models", soon).await;
        assert!(none.is_empty());
    }

    #[tokio::test]
    async fn a_reply_that_is_too_long_is_left_out() {
        let farm = Farm::of([router("/models", "[1, 2, 3]"), router("/models", "[1]")]).await;
        let bounds = Bounds { bytes: 5, ..Bounds::default() };
        let replies = farm.fetcher.fetch_all(&farm.backends(), "/models", bounds).await;
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].body, "[1]");
    }
}
