//! The push: one WebSocket per backend that listens to its `status` events, so that a change of
//! queue depth is known within milliseconds. Polling goes on as the safety net; a socket that is
//! lost asks for a poll at once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Deserialize;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};

use super::Prober;
use super::poll::header_pairs;
use crate::backend::{Backend, BackendId};
use crate::clock::Moment;
use crate::config::Secret;
use crate::fleet::Fleet;
use crate::health::Health;
use crate::upstream::socket::{self, Socket};

/// Pause before a lost socket is opened again, doubled with each failure up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Broadcast images can be large; anything above this ends the socket.
const MAX_MESSAGE: usize = 64 << 20;

/// Listens to a backend whenever it is up, until it is removed.
pub(super) async fn listen_for_ever(fleet: Arc<Fleet>, id: BackendId, prober: Arc<Prober>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(backend) = fleet.view().get(id).cloned() else { return };
        let mut standing = backend.live.watch();
        let came_up = standing.wait_for(|s| s.removed || s.health == Health::Up).await;
        if came_up.map_or(true, |standing| standing.removed) {
            return;
        }
        let (wanted, timeout, headers) = prober.push_options();
        if wanted {
            let connected = tokio::time::timeout(timeout, connect(&backend, &headers)).await;
            if let Ok(Some(socket)) = connected {
                pause = FIRST_PAUSE;
                let down = standing.wait_for(|s| s.removed || s.health == Health::Down);
                tokio::select! {
                    () = listen(socket, &backend, &fleet) => {
                        backend.live.broke();
                        backend.live.poke.notify_one();
                    }
                    _ = down => {}
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn connect(backend: &Backend, probe_headers: &[(String, Secret)]) -> Option<Socket> {
    // A sid of our own, new each time: ComfyUI drops a new socket's registration when an old
    // one under the same sid ends.
    let sid = uuid::Uuid::new_v4().simple();
    let mut request = socket::request(backend, &format!("/ws?clientId=comfygate-{sid}"))?;
    for (name, value) in header_pairs(probe_headers).chain(header_pairs(&backend.spec.headers)) {
        request.headers_mut().insert(name, value);
    }
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    socket::open(backend, request, config).await
}

async fn listen(mut socket: Socket, backend: &Backend, fleet: &Fleet) {
    while let Some(Ok(message)) = socket.next().await {
        let now = Moment::now();
        backend.live.event(now);
        if let Message::Text(text) = message
            && let Some(remaining) = queue_remaining(text.as_str())
        {
            backend.live.depth.pushed(remaining, now);
            backend.live.saw_depth(remaining, now);
            backend.live.moved.notify_one();
            fleet.touch();
        }
    }
}

/// The depth that a text frame tells, if it is a status event.
fn queue_remaining(text: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Event {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        exec_info: ExecInfo,
    }
    #[derive(Deserialize)]
    struct ExecInfo {
        queue_remaining: u32,
    }
    serde_json::from_str::<Event>(text).ok().map(|e| e.data.status.exec_info.queue_remaining)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_status_events_tell_a_depth() {
        let status = r#"{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 3}}, "sid": "A"}}"#;
        assert_eq!(queue_remaining(status), Some(3));
        for other in [
            "",
            "[]",
            r#"{"type": "executing", "data": {"node": null}}"#,
            r#"{"data": {"status": {"exec_info": {"queue_remaining": -1}}}}"#,
        ] {
            assert_eq!(queue_remaining(other), None, "{other}");
        }
    }
}
