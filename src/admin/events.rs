//! `GET /lb/events`: what changes, as server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `backend` | a backend as `GET /lb/backends/{name}` gives it |
//! | `backend_removed` | `{name}` |
//! | `task` | a task as `GET /lb/tasks/{id}` gives it |
//! | `stats` | as `GET /lb/stats` |
//! | `change` | a backend's change of state, `{at, backend, from, to, detail}` |
//! | `sample` | every ten seconds: `{finished_per_minute, wait_p50, wait_p95}` |
//!
//! A stream starts with every backend, then the stats, so that whoever connects again knows
//! everything. At most [`MAX_CLIENTS`] listen at once. One who falls [`BACKLOG`] events behind is
//! cut and may connect again; one who does not read at all is cut by
//! [`impatient`](super::impatient).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use super::Admin;
use super::document::Refusal;
use super::views::{BackendView, Stats};
use crate::rejection::{Kind, Rejection};

/// Clients at once.
pub const MAX_CLIENTS: usize = 200;
/// Events a client may be behind; room for a change of every backend there can be.
pub const BACKLOG: usize = 4096;
/// A comment goes out when nothing else did for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One event.
#[derive(Debug)]
pub struct Message {
    name: &'static str,
    data: String,
}

impl Message {
    fn new(name: &'static str, data: &impl Serialize) -> Self {
        Self { name, data: serde_json::to_string(data).unwrap_or_default() }
    }

    fn event(&self) -> Event {
        Event::default().event(self.name).data(&self.data)
    }
}

/// Hands events to everybody who listens.
pub struct Hub {
    out: broadcast::Sender<Arc<Message>>,
    seats: Arc<Semaphore>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { out: broadcast::Sender::new(BACKLOG), seats: Arc::new(Semaphore::new(MAX_CLIENTS)) }
    }
}

impl Hub {
    /// Whether somebody listens.
    pub fn is_heard(&self) -> bool {
        self.out.receiver_count() > 0
    }

    /// Tells everybody who listens.
    pub fn tell(&self, name: &'static str, data: &impl Serialize) {
        if self.is_heard() {
            let _ = self.out.send(Arc::new(Message::new(name, data)));
        }
    }

    fn seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.seats).try_acquire_owned().ok()
    }
}

/// What changes, as server-sent events: `backend`, `task`, `stats` and more
#[utoipa::path(get, path = "/lb/events", tag = "gateway", responses(
    (status = 200, description = "The events", body = String, content_type = "text/event-stream"),
    (status = 503, description = "Too many listen already", body = Refusal)))]
pub(super) async fn stream(State(admin): State<Arc<Admin>>) -> Response {
    let Some(seat) = admin.hub.seat() else { return full() };
    // Subscribed before the snapshot is taken: a change between the two comes twice, not never.
    let live = follow(admin.hub.out.subscribe(), seat);
    let mut stopping = admin.gateway.stopping.subscribe();
    let stop = async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let events = stream::iter(snapshot(&admin)).chain(live).take_until(stop);
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("alive"))
        .into_response();
    // nginx would otherwise collect events before it passes them on.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn snapshot(admin: &Admin) -> Vec<Result<Event, Infallible>> {
    let view = admin.gateway.fleet.view();
    let backends = view.backends.iter().map(|b| BackendView::of(&admin.gateway, b));
    let backends = backends.map(|view| Message::new("backend", &view));
    let stats = Message::new("stats", &Stats::of(&admin.gateway));
    backends.chain([stats]).map(|message| Ok(message.event())).collect()
}

/// The events from now on, until the listener is too far behind.
fn follow(
    receiver: broadcast::Receiver<Arc<Message>>,
    seat: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold((receiver, seat), |(mut receiver, seat)| async move {
        let message = receiver.recv().await.ok()?;
        Some((Ok(message.event()), (receiver, seat)))
    })
}

fn full() -> Response {
    let message = format!("{MAX_CLIENTS} clients follow the events already");
    let mut response = Rejection::new(Kind::RateLimited, message).retry_after(5).into_response();
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_too_far_behind_is_cut_and_the_others_hear_on() {
        let hub = Hub::default();
        let slow = follow(hub.out.subscribe(), hub.seat().unwrap());
        for number in 0..=BACKLOG {
            hub.tell("stats", &number);
        }
        assert_eq!(slow.count().await, 0);
        let next = follow(hub.out.subscribe(), hub.seat().unwrap());
        hub.tell("stats", &1);
        assert!(Box::pin(next).next().await.is_some());
    }

    #[tokio::test]
    async fn seats_are_bounded_and_given_back() {
        let hub = Hub::default();
        let mut taken: Vec<_> =
            (0..MAX_CLIENTS).map(|_| follow(hub.out.subscribe(), hub.seat().unwrap())).collect();
        assert!(hub.seat().is_none());
        assert_eq!(full().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(full().headers().contains_key("retry-after"));
        taken.pop();
        assert!(hub.seat().is_some());
    }
}
