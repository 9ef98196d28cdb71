//! Alerts: webhooks that are told when something breaks, and when it is over.
//!
//! What is watched ([`board`]) must be wrong for 10 s before it is told and well for 30 s before
//! that is ([`condition`]), so that a flapping backend tells little. Each URL of `alerts.webhooks`
//! gets a `POST` ([`deliver`]) with a JSON object ([`notice`]):
//!
//! | key | value |
//! |---|---|
//! | `version` | 1; keys may be added to a version, none goes or changes its meaning |
//! | `id` | the alert's, the same when it fires and when it is over |
//! | `event` | `backend_down`, `backend_up`, `no_healthy_backend`, `queue_above`, `backend_suspect`, `backend_ejected` |
//! | `status` | `firing`, or `resolved` (`backend_up` is the end of `backend_down`) |
//! | `backend` | its name, or null |
//! | `message` | one line for people |
//! | `started_at`, `ended_at` | RFC 3339 in UTC; `ended_at` is null while it fires |
//! | `gateway` | which gateway tells |
//! | `details` | `{state, healthy, total, queued, queue_above}` when the message was written |
//!
//! A message may come twice (its answer got lost) with the same `id` and `status`. Alerts are
//! forgotten when the gateway stops: what is still wrong after a restart is told again.
//!
//! With a `secret`, a receiver verifies that the message is ours and new: it computes the
//! HMAC-SHA256, keyed by the secret, of `X-Comfygate-Timestamp`, a full stop and the body as
//! received; compares `sha256=` and its hex with `X-Comfygate-Signature` in constant time; and
//! refuses timestamps (seconds since 1970) more than five minutes away from its own clock. Each
//! attempt is signed anew.

pub mod board;
pub mod condition;
pub mod deliver;
pub mod notice;

use std::sync::Arc;

use jiff::Timestamp;
use log::error;

use crate::clock::Moment;
use crate::gateway::Gateway;
use crate::logging::TARGET;
use crate::metrics::scrape::queued;
use board::{Board, Seen, Sight};
use deliver::{Courier, Patience};
use notice::{Notice, Teller};

pub use condition::Hysteresis;

/// Watches a gateway's farm and tells, until the gateway stops.
pub async fn watch(gateway: Arc<Gateway>, hysteresis: Hysteresis) {
    let mut courier = match Courier::new(Patience::default()) {
        Ok(courier) => courier,
        Err(error) => return error!(target: TARGET, "alerts cannot be sent: {error}"),
    };
    let process = uuid::Uuid::new_v4().to_string();
    let mut board = Board::new(hysteresis);
    let mut stopping = gateway.stopping.subscribe();
    loop {
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => return,
            () = tokio::time::sleep(hysteresis.pause()) => {}
        }
        courier.serve(&gateway.config.load().alerts.webhooks);
        let sight = sight(&gateway);
        for turned in board.look(&sight, Moment::now(), Timestamp::now()) {
            let gateway = &name(&gateway);
            let teller = Teller { gateway, process: &process };
            courier.send(&Notice::new(&turned, &sight, teller));
        }
    }
}

fn sight(gateway: &Gateway) -> Sight {
    let view = gateway.fleet.view();
    let backends = view.backends.iter().map(|backend| {
        let standing = backend.live.standing();
        Seen {
            name: backend.name().to_owned(),
            state: standing.label(),
            healthy: standing.is_healthy(),
        }
    });
    Sight {
        backends: backends.collect(),
        queued: queued(gateway, &view.backends),
        queue_above: gateway.config.load().alerts.queue_above,
    }
}

/// How messages call a gateway: by its public name, else by the machine's, and its port.
fn name(gateway: &Gateway) -> String {
    let server = &gateway.config.load().server;
    let machine = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = server.public_names.first().cloned().or_else(machine);
    format!("{}:{}", name.as_deref().map_or("comfygate", str::trim), server.port)
}
