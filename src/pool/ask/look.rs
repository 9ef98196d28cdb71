//! Asking a backend where a prompt is, taking it back, and interrupting it.

use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Response};
use serde_json::json;

use super::{Ask, MAX_ENTRY, MAX_QUEUE, Silence, read, whole};
use crate::backend::Backend;
use crate::comfy::queue_count::QueueCount;
use crate::comfy::queue_items::QueueItems;
use crate::pool::core::{Known, TakenBack};
use crate::pool::submission::Ending;
use crate::pool::submission::scan::Json;

/// A prompt whose POST broke off may still be on its way through the server's loop: one that is
/// nowhere is looked for again after this long.
const SETTLE: Duration = Duration::from_millis(50);
/// Deletions of one prompt. Each takes one of those that wait under the same id.
const DELETIONS: usize = 3;

/// Where a prompt is in a backend's queue.
enum Place {
    Pending,
    Running,
    Elsewhere,
}

impl Ask {
    /// Takes a prompt out of a backend's queue, and makes sure that it is gone.
    pub async fn take_back(&self, backend: &Backend, id: &str, timeout: Duration) -> TakenBack {
        for _ in 0..DELETIONS {
            let body = json!({"delete": [id]});
            if self.tell(backend, "/queue", &body, timeout).await == Err(Silence::Unreached) {
                return TakenBack::Unknown;
            }
            match self.place(backend, id, timeout).await {
                Ok(Place::Pending) => {}
                Ok(Place::Running) => return TakenBack::Started,
                Ok(Place::Elsewhere) => return self.has_run(backend, id, timeout).await,
                Err(_) => return TakenBack::Unknown,
            }
        }
        TakenBack::Unknown
    }

    async fn has_run(&self, backend: &Backend, id: &str, timeout: Duration) -> TakenBack {
        match self.entry(backend, id, timeout).await {
            Ok(Some(_)) => TakenBack::Started,
            Ok(None) => TakenBack::Gone,
            Err(_) => TakenBack::Unknown,
        }
    }

    /// What a backend knows of a prompt, with its history entry when it has ended.
    pub async fn know(
        &self,
        backend: &Backend,
        id: &str,
        timeout: Duration,
    ) -> (Known, Option<Bytes>) {
        match self.seen(backend, id, timeout).await {
            Ok((Known::Absent, _)) => {}
            known => return known.unwrap_or((Known::Unknown, None)),
        }
        tokio::time::sleep(SETTLE).await;
        self.seen(backend, id, timeout).await.unwrap_or((Known::Unknown, None))
    }

    async fn seen(
        &self,
        backend: &Backend,
        id: &str,
        timeout: Duration,
    ) -> Result<(Known, Option<Bytes>), Silence> {
        match self.place(backend, id, timeout).await? {
            Place::Pending => return Ok((Known::Pending, None)),
            Place::Running => return Ok((Known::Running, None)),
            Place::Elsewhere => {}
        }
        let Some(entry) = self.entry(backend, id, timeout).await? else {
            return Ok((Known::Absent, None));
        };
        let ending = Ending::of(&entry);
        let run_seconds = ending.run_seconds();
        Ok((Known::Ended { outcome: ending.outcome, run_seconds }, Some(entry)))
    }

    /// Interrupts a prompt where it runs. A server before 0.3.57 interrupts whatever runs.
    pub async fn interrupt(
        &self,
        backend: &Backend,
        id: &str,
        timeout: Duration,
    ) -> Result<(), Silence> {
        self.tell(backend, "/interrupt", &json!({"prompt_id": id}), timeout).await
    }

    /// The history entry of a prompt, as it is written there.
    pub async fn entry(
        &self,
        backend: &Backend,
        id: &str,
        timeout: Duration,
    ) -> Result<Option<Bytes>, Silence> {
        let path = format!("/history/{}", utf8_percent_encode(id, NON_ALPHANUMERIC));
        let response = self.twice(backend, Method::GET, &path, None, timeout).await?;
        let body = whole(expect_ok(response)?, MAX_ENTRY).await?;
        let history = Json::of(&body).filter(|json| json.is_object()).ok_or(Silence::Useless)?;
        let entry = history.get(id).filter(|entry| entry.is_object());
        Ok(entry.map(|entry| body.slice_ref(entry.0)))
    }

    /// The prompts in a backend's queue.
    pub async fn queue(&self, backend: &Backend, timeout: Duration) -> Result<QueueItems, Silence> {
        let mut counter = QueueCount::with_items();
        let response = self.twice(backend, Method::GET, "/queue", None, timeout).await?;
        read(expect_ok(response)?, MAX_QUEUE, |piece| counter.feed(piece).is_ok()).await?;
        let (_, items) = counter.finish_with_items().map_err(|_| Silence::Useless)?;
        Ok(items)
    }

    async fn place(
        &self,
        backend: &Backend,
        id: &str,
        timeout: Duration,
    ) -> Result<Place, Silence> {
        let items = self.queue(backend, timeout).await?;
        let has = |ids: &[String]| ids.iter().any(|other| other == id);
        if has(&items.running) {
            Ok(Place::Running)
        } else if has(&items.pending) {
            Ok(Place::Pending)
        } else if items.complete {
            Ok(Place::Elsewhere)
        } else {
            Err(Silence::Useless)
        }
    }

    async fn tell(
        &self,
        backend: &Backend,
        path: &str,
        body: &serde_json::Value,
        timeout: Duration,
    ) -> Result<(), Silence> {
        let body = Bytes::from(body.to_string());
        let response = self.twice(backend, Method::POST, path, Some(body), timeout).await?;
        expect_ok(response).map(drop)
    }
}

fn expect_ok(response: Response) -> Result<Response, Silence> {
    if response.status().is_success() { Ok(response) } else { Err(Silence::Useless) }
}
