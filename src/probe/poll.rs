//! The poll: a [`HealthCheck`] that reads a backend's queue depth.
//!
//! `GET /api/queue`, or `/queue` where the first is unknown. The reply is counted as it streams
//! and never held; after one of more than `HEAVY_REPLY` bytes the next `LIGHT_POLLS` polls ask
//! `GET /prompt` instead, which tells only the total.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora_core::{Error, ErrorType};
use pingora_load_balancing::health_check::HealthCheck;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Response, StatusCode};
use serde::Deserialize;

use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::comfy::queue_count::QueueCount;
use crate::config;
use crate::fleet::Fleet;
use crate::health::Outcome;
use crate::upstream::clients::Clients;

/// Bytes of a reply at most.
const MAX_REPLY: usize = 160 << 20;
/// A reply of more bytes than this makes the next polls light ones.
const HEAVY_REPLY: usize = 1 << 20;
/// Light polls after a heavy one.
const LIGHT_POLLS: u32 = 10;
/// A `GET /prompt` reply is a few dozen bytes.
const MAX_LIGHT_REPLY: usize = 64 << 10;

/// Polls backends of a fleet for their queue depth.
pub struct QueueCheck {
    fleet: Arc<Fleet>,
    clients: Clients,
    options: ArcSwap<Options>,
    habits: Mutex<HashMap<BackendId, Habit>>,
}

struct Options {
    timeout: Duration,
    headers: HeaderMap,
    thresholds: (usize, usize),
}

/// What was learnt about polling one backend.
#[derive(Debug, Clone, Copy, Default)]
struct Habit {
    bare_path: bool,
    light_polls_left: u32,
    count: (u32, u64),
}

/// Why a poll failed.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Bad(String),
}

impl QueueCheck {
    /// A check for the backends of `fleet`.
    pub fn new(fleet: Arc<Fleet>, options: &config::HealthCheck) -> anyhow::Result<Self> {
        let clients = Clients::new(|| Client::builder().pool_max_idle_per_host(1))?;
        let options = ArcSwap::from_pointee(Options::from(options));
        Ok(Self { fleet, clients, options, habits: Mutex::default() })
    }

    /// Polls differently from now on.
    pub fn set_options(&self, options: &config::HealthCheck) {
        self.options.store(Arc::new(Options::from(options)));
    }

    /// Depth and digest of the running prompts as read last.
    pub fn last_count(&self, id: BackendId) -> (u32, u64) {
        self.habit(id).count
    }

    fn habit(&self, id: BackendId) -> Habit {
        self.habits.lock().get(&id).copied().unwrap_or_default()
    }

    async fn poll(&self, backend: &Backend) -> Result<(), PollError> {
        let mut habit = self.habit(backend.id);
        let mark = backend.live.depth.mark();
        let (running, pending) = if habit.light_polls_left > 0 {
            habit.light_polls_left -= 1;
            let remaining = self.poll_total(backend).await?;
            habit.count = (remaining, habit.count.1);
            (remaining.min(1), remaining.saturating_sub(1))
        } else {
            self.poll_queue(backend, &mut habit).await?
        };
        let now = Moment::now();
        backend.live.depth.polled(mark, running, pending, now);
        backend.live.saw_depth(running + pending, now);
        self.habits.lock().insert(backend.id, habit);
        Ok(())
    }

    async fn poll_queue(
        &self,
        backend: &Backend,
        habit: &mut Habit,
    ) -> Result<(u32, u32), PollError> {
        let path = if habit.bare_path { "/queue" } else { "/api/queue" };
        let mut response = self.get(backend, path).await?;
        if response.status() == StatusCode::NOT_FOUND && !habit.bare_path {
            habit.bare_path = true;
            response = self.get(backend, "/queue").await?;
        }
        expect_ok(&response)?;
        let mut counter = QueueCount::default();
        let size = read(response, MAX_REPLY, |chunk| {
            counter.feed(chunk).map_err(|error| PollError::Bad(error.to_string()))
        })
        .await?;
        let counted = counter.finish().map_err(|error| PollError::Bad(error.to_string()))?;
        if size > HEAVY_REPLY {
            habit.light_polls_left = LIGHT_POLLS;
        }
        habit.count = (counted.running.saturating_add(counted.pending), counted.digest);
        Ok((counted.running, counted.pending))
    }

    async fn poll_total(&self, backend: &Backend) -> Result<u32, PollError> {
        let response = self.get(backend, "/prompt").await?;
        expect_ok(&response)?;
        let mut body = Vec::new();
        read(response, MAX_LIGHT_REPLY, |chunk| {
            body.extend_from_slice(chunk);
            Ok(())
        })
        .await?;
        serde_json::from_slice::<Total>(&body)
            .map(|total| total.exec_info.queue_remaining)
            .map_err(|_| PollError::Bad("the reply to GET /prompt has no queue_remaining".into()))
    }

    async fn get(&self, backend: &Backend, path: &str) -> Result<Response, PollError> {
        let options = self.options.load();
        let mut headers = options.headers.clone();
        for (name, value) in header_pairs(&backend.spec.headers) {
            headers.insert(name, value);
        }
        self.clients
            .request(backend, Method::GET, path)
            .headers(headers)
            .timeout(options.timeout)
            .send()
            .await
            .map_err(|error| classify(&error))
    }
}

impl Options {
    fn from(options: &config::HealthCheck) -> Self {
        Self {
            timeout: options.timeout,
            headers: header_pairs(&options.headers).collect(),
            thresholds: (options.healthy_threshold as usize, options.unhealthy_threshold as usize),
        }
    }
}

#[derive(Deserialize)]
struct Total {
    exec_info: ExecInfo,
}

#[derive(Deserialize)]
struct ExecInfo {
    queue_remaining: u32,
}

/// Configured headers as an HTTP client takes them; the configuration has checked them.
pub(crate) fn header_pairs(
    headers: &[(String, config::Secret)],
) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    headers.iter().filter_map(|(name, value)| {
        Some((name.parse().ok()?, HeaderValue::from_str(value.reveal()).ok()?))
    })
}

fn expect_ok(response: &Response) -> Result<(), PollError> {
    match response.status() {
        StatusCode::OK => Ok(()),
        status => Err(PollError::Bad(format!("its queue endpoint answers {status}"))),
    }
}

async fn read(
    mut response: Response,
    limit: usize,
    mut take: impl FnMut(&[u8]) -> Result<(), PollError>,
) -> Result<usize, PollError> {
    let mut size = 0;
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
        size += chunk.len();
        if size > limit {
            return Err(PollError::Bad(format!("its queue reply is longer than {limit} bytes")));
        }
        take(&chunk)?;
    }
    Ok(size)
}

/// A connection that cannot be made or is cut is hard evidence; slowness is not.
fn classify(error: &reqwest::Error) -> PollError {
    let cause =
        std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
            .last()
            .map_or_else(String::new, ToString::to_string);
    if error.is_timeout() {
        PollError::Bad("no answer in time".into())
    } else if error.is_connect() || error.is_request() {
        PollError::Refused(cause)
    } else {
        PollError::Bad(format!("its queue reply broke off: {cause}"))
    }
}

#[async_trait]
impl HealthCheck for QueueCheck {
    async fn check(&self, target: &pingora_load_balancing::Backend) -> pingora_core::Result<()> {
        let backend =
            target.ext.get::<BackendId>().and_then(|id| self.fleet.view().get(*id).cloned());
        let Some(backend) = backend else {
            return Error::e_explain(ErrorType::InternalError, "not a member of the fleet");
        };
        // The client's own timeout covers one request; this covers the fallback's as well.
        let limit = self.options.load().timeout;
        match tokio::time::timeout(limit, self.poll(&backend)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(PollError::Refused(why))) => Error::e_explain(ErrorType::ConnectRefused, why),
            Ok(Err(PollError::Bad(why))) => Error::e_explain(ErrorType::ReadError, why),
            Err(_) => Error::e_explain(ErrorType::ReadTimedout, "no answer in time"),
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        let (healthy, unhealthy) = self.options.load().thresholds;
        if success { healthy } else { unhealthy }
    }
}

/// A backend of the fleet as pingora-load-balancing names one. The address is a stand-in: the
/// number in `ext` says which backend is meant.
pub fn target(id: BackendId) -> pingora_load_balancing::Backend {
    let mut ext = http::Extensions::new();
    ext.insert(id);
    let nowhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    pingora_load_balancing::Backend {
        addr: pingora_core::protocols::l4::socket::SocketAddr::Inet(nowhere),
        weight: 1,
        ext,
    }
}

/// A check's result as its judge takes it.
pub fn outcome(result: pingora_core::Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Good,
        Err(error) => {
            let why =
                error.context.as_ref().map_or_else(|| error.to_string(), |c| c.as_str().to_owned());
            if error.etype == ErrorType::ConnectRefused {
                Outcome::Refused(why)
            } else {
                Outcome::Bad(why)
            }
        }
    }
}
