//! Bringing messages to their receivers: a queue and a task for each, so that a slow one delays
//! only itself.
//!
//! A message is tried again after connection failures, timeouts and the answers 408, 429 and 5xx,
//! each time after a longer pause, and given up in the end. While one is being tried the next ones
//! wait, in order; at [`BACKLOG`] the oldest goes. URLs carry tokens, so the log names a receiver
//! by its place in `alerts.webhooks`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use log::{debug, error, warn};
use parking_lot::Mutex;
use rand::Rng;
use reqwest::{Client, StatusCode};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::notice::{Notice, signature};
use crate::config::Webhook;
use crate::logging::TARGET;

/// Messages that may wait for one receiver.
pub const BACKLOG: usize = 256;

/// How long and how often a message is tried.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// An answer must come within this time.
    pub timeout: Duration,
    /// Pause after the first failure; each further one doubles it.
    pub first_pause: Duration,
    /// Attempts in all.
    pub attempts: u32,
}

impl Default for Patience {
    /// Half a minute of pauses, so that a receiver may restart meanwhile.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10), first_pause: Duration::from_secs(1), attempts: 6 }
    }
}

impl Patience {
    /// The pause after so many failures: doubled by each, less up to a half by `jitter` of 0 to 1,
    /// so that gateways that failed together do not come back together.
    fn pause(&self, failures: u32, jitter: f64) -> Duration {
        let doubled = self.first_pause * 2u32.saturating_pow(failures.saturating_sub(1)).min(64);
        doubled.mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0))
    }
}

/// Brings messages to every receiver.
pub struct Courier {
    client: Client,
    patience: Patience,
    lanes: Vec<Lane>,
}

impl Courier {
    /// A courier without receivers.
    pub fn new(patience: Patience) -> reqwest::Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(patience.timeout)
            .user_agent(concat!("comfygate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, patience, lanes: Vec::new() })
    }

    /// These are the receivers from now on. Those that stay keep what waits for them.
    pub fn serve(&mut self, webhooks: &[Webhook]) {
        let same = self.lanes.iter().map(|lane| &lane.webhook).eq(webhooks);
        if same {
            return;
        }
        let mut before = std::mem::take(&mut self.lanes);
        for (place, webhook) in webhooks.iter().enumerate() {
            let kept = before.iter().position(|lane| lane.webhook == *webhook);
            let lane = match kept {
                Some(at) => before.swap_remove(at),
                None => self.open(place, webhook.clone()),
            };
            self.lanes.push(lane);
        }
    }

    fn open(&self, place: usize, webhook: Webhook) -> Lane {
        let mailbox = Arc::new(Mailbox::default());
        let carrier = Carrier {
            name: format!("alerts.webhooks[{place}]"),
            client: self.client.clone(),
            patience: self.patience,
            webhook: webhook.clone(),
            mailbox: Arc::clone(&mailbox),
        };
        Lane { webhook, mailbox, task: tokio::spawn(carrier.run()) }
    }

    /// Sends a message to every receiver, without waiting.
    pub fn send(&self, notice: &Notice) {
        let body = Bytes::from(notice.body());
        for (place, lane) in self.lanes.iter().enumerate() {
            if let Some(dropped) = lane.mailbox.put(body.clone())
                && dropped.is_power_of_two()
            {
                warn!(
                    target: TARGET,
                    "alerts.webhooks[{place}] cannot keep up: {dropped} messages dropped"
                );
            }
        }
    }
}

/// What belongs to one receiver; its task ends with it.
struct Lane {
    webhook: Webhook,
    mailbox: Arc<Mailbox>,
    task: JoinHandle<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Messages that wait.
#[derive(Default)]
struct Mailbox {
    waiting: Mutex<VecDeque<Bytes>>,
    filled: Notify,
    dropped: AtomicU64,
}

impl Mailbox {
    /// Takes a message in. When the oldest had to go for it: how many have gone so.
    fn put(&self, body: Bytes) -> Option<u64> {
        let mut waiting = self.waiting.lock();
        let full = waiting.len() >= BACKLOG;
        if full {
            waiting.pop_front();
        }
        waiting.push_back(body);
        drop(waiting);
        self.filled.notify_one();
        full.then(|| self.dropped.fetch_add(1, Relaxed) + 1)
    }

    async fn take(&self) -> Bytes {
        loop {
            let next = self.waiting.lock().pop_front();
            match next {
                Some(body) => return body,
                None => self.filled.notified().await,
            }
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// It may be the next time.
    Passing(String),
    /// It will not be.
    Lasting(String),
}

struct Carrier {
    name: String,
    client: Client,
    patience: Patience,
    webhook: Webhook,
    mailbox: Arc<Mailbox>,
}

impl Carrier {
    async fn run(self) {
        loop {
            let body = self.mailbox.take().await;
            self.deliver(&body).await;
        }
    }

    async fn deliver(&self, body: &Bytes) {
        for attempt in 1..=self.patience.attempts {
            let why = match self.post(body.clone()).await {
                Ok(()) => return,
                Err(Refusal::Passing(why)) if attempt < self.patience.attempts => why,
                Err(Refusal::Passing(why) | Refusal::Lasting(why)) => {
                    let name = &self.name;
                    error!(target: TARGET, "{name} did not take a message, which is lost: {why}");
                    return;
                }
            };
            debug!(target: TARGET, "{} did not take a message yet: {why}", self.name);
            let jitter = rand::rng().random();
            tokio::time::sleep(self.patience.pause(attempt, jitter)).await;
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Refusal> {
        let timestamp = Timestamp::now().as_second().to_string();
        let signature =
            self.webhook.secret.as_ref().and_then(|key| signature(key, &timestamp, &body));
        let mut request = self
            .client
            .post(self.webhook.url.reveal())
            .header("content-type", "application/json")
            .header("x-comfygate-timestamp", timestamp);
        if let Some(signature) = signature {
            request = request.header("x-comfygate-signature", signature);
        }
        match request.body(body).send().await {
            Ok(response) => judge(response.status()),
            Err(error) => Err(Refusal::Passing(cause(&error))),
        }
    }
}

fn judge(status: StatusCode) -> Result<(), Refusal> {
    let why = format!("it answered {status}");
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Refusal::Passing(why)),
        status if status.is_server_error() => Err(Refusal::Passing(why)),
        _ => Err(Refusal::Lasting(why)),
    }
}

/// What is at the bottom of an error, which does not name the URL as the top does.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    std::iter::successors(std::error::Error::source(error), |error| error.source())
        .last()
        .map_or_else(|| "the request could not be sent".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_vary_by_half() {
        let patience = Patience::default();
        let pauses: Vec<_> = (1..=5).map(|n| patience.pause(n, 0.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16]);
        assert_eq!(patience.pause(1, 1.0), Duration::from_millis(500));
        assert_eq!(patience.pause(1000, 0.0), Duration::from_secs(64));
    }

    #[tokio::test]
    async fn a_full_mailbox_loses_its_oldest_and_counts_it() {
        let mailbox = Mailbox::default();
        let message = |number: usize| Bytes::from(number.to_string());
        for number in 0..BACKLOG {
            assert_eq!(mailbox.put(message(number)), None);
        }
        assert_eq!(mailbox.put(message(BACKLOG)), Some(1));
        assert_eq!(mailbox.put(message(BACKLOG + 1)), Some(2));
        for number in 2..BACKLOG + 2 {
            assert_eq!(mailbox.take().await, message(number));
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let again = |code| matches!(judge(code), Err(Refusal::Passing(_)));
        assert_eq!(judge(StatusCode::NO_CONTENT), Ok(()));
        assert!(again(StatusCode::TOO_MANY_REQUESTS) && again(StatusCode::BAD_GATEWAY));
        assert!(!again(StatusCode::FOUND) && !again(StatusCode::NOT_FOUND));
        assert!(judge(StatusCode::FOUND).is_err());
    }
}
