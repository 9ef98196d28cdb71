//! What a webhook receives, and how it is signed.

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use serde::Serialize;
use sha2::Sha256;

use super::board::{Sight, Subject, Turned};
use crate::config::Secret;

/// Version of the message's shape. It changes only when a key goes or changes its meaning.
const VERSION: u32 = 1;

/// A message, as it is written to JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice {
    version: u32,
    id: String,
    event: &'static str,
    status: &'static str,
    backend: Option<String>,
    message: String,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
    gateway: String,
    details: Details,
}

/// Figures of the moment at which the message was written.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Details {
    state: Option<&'static str>,
    healthy: usize,
    total: usize,
    queued: u64,
    queue_above: u64,
}

/// Who tells: what every message of a process shares.
#[derive(Debug, Clone, Copy)]
pub struct Teller<'a> {
    /// Name of the gateway.
    pub gateway: &'a str,
    /// What the ids of this process begin with.
    pub process: &'a str,
}

impl Notice {
    /// The message for a change.
    pub fn new(turned: &Turned, sight: &Sight, teller: Teller<'_>) -> Self {
        let backend = match &turned.subject {
            Subject::Down(name) | Subject::Suspect(name) | Subject::Ejected(name) => {
                Some(name.as_str())
            }
            Subject::NoHealthy | Subject::Queue => None,
        };
        let state = backend.and_then(|name| sight.backend(name)).map(|seen| seen.state);
        Self {
            version: VERSION,
            id: format!("{}-{}", teller.process, turned.number),
            event: event(turned, sight),
            status: if turned.ended.is_some() { "resolved" } else { "firing" },
            backend: backend.map(str::to_owned),
            message: message(turned, sight),
            started_at: turned.began,
            ended_at: turned.ended,
            gateway: teller.gateway.to_owned(),
            details: Details {
                state,
                healthy: sight.healthy(),
                total: sight.backends.len(),
                queued: sight.queued,
                queue_above: sight.queue_above,
            },
        }
    }

    /// What it says, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The request's body.
    pub fn body(&self) -> Vec<u8> {
        // Strings, numbers and timestamps do not fail to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Only a backend that is back is `backend_up`; one that was removed or disabled ends as it began.
fn event(turned: &Turned, sight: &Sight) -> &'static str {
    match &turned.subject {
        Subject::Down(name) => {
            let back = sight.backend(name).is_some_and(|seen| seen.healthy);
            if turned.ended.is_some() && back { "backend_up" } else { "backend_down" }
        }
        Subject::Suspect(_) => "backend_suspect",
        Subject::Ejected(_) => "backend_ejected",
        Subject::NoHealthy => "no_healthy_backend",
        Subject::Queue => "queue_above",
    }
}

fn message(turned: &Turned, sight: &Sight) -> String {
    let Sight { queued, queue_above, .. } = sight;
    match (&turned.subject, turned.ended.is_some()) {
        (Subject::Down(name), false) => format!("backend {name} is down"),
        (Subject::Suspect(name), false) => {
            format!("backend {name} is suspect: its running prompt shows no life")
        }
        (Subject::Ejected(name), false) => {
            format!("backend {name} is ejected: it fails requests")
        }
        (Subject::Down(name) | Subject::Suspect(name) | Subject::Ejected(name), true) => {
            match sight.backend(name) {
                None => format!("backend {name} is no longer part of the farm"),
                Some(seen) => format!("backend {name} is {}", seen.state),
            }
        }
        (Subject::NoHealthy, false) => "no backend is healthy".to_owned(),
        (Subject::NoHealthy, true) => "a backend is healthy again".to_owned(),
        (Subject::Queue, false) => {
            format!("{queued} prompts wait, more than the {queue_above} of alerts.queue_above")
        }
        (Subject::Queue, true) => {
            format!("{queued} prompts wait, no more than the {queue_above} of alerts.queue_above")
        }
    }
}

/// The value of `X-Comfygate-Signature`: `sha256=` and the HMAC-SHA256, in hex, of the value of
/// `X-Comfygate-Timestamp`, a full stop, and the body.
pub fn signature(secret: &Secret, timestamp: &str, body: &[u8]) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes()).ok()?;
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    Some(format!("sha256={}", hex::encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::alerts::board::Seen;

    fn sight(state: &'static str) -> Sight {
        let seen = Seen { name: "b".into(), state, healthy: state == "up" };
        Sight { backends: vec![seen], queued: 3, queue_above: 100 }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_735_689_600 + second).unwrap()
    }

    fn notice(ended: Option<Timestamp>, sight: &Sight) -> serde_json::Value {
        let turned = Turned { subject: Subject::Down("b".into()), number: 7, began: at(0), ended };
        let teller = Teller { gateway: "gw:8100", process: "p" };
        serde_json::from_slice(&Notice::new(&turned, sight, teller).body()).unwrap()
    }

    #[test]
    fn the_shape_is_as_documented() {
        let expected = json!({
            "version": 1, "id": "p-7", "event": "backend_up", "status": "resolved",
            "backend": "b", "message": "backend b is up",
            "started_at": "2025-01-01T00:00:00Z", "ended_at": "2025-01-01T00:00:30Z",
            "gateway": "gw:8100",
            "details": {"state": "up", "healthy": 1, "total": 1, "queued": 3, "queue_above": 100},
        });
        assert_eq!(notice(Some(at(30)), &sight("up")), expected);
    }

    #[test]
    fn only_a_backend_that_is_back_is_up() {
        let told = |ended, sight: &Sight| {
            let notice = notice(ended, sight);
            (notice["event"].clone(), notice["status"].clone(), notice["ended_at"].is_null())
        };
        assert_eq!(told(None, &sight("down")), (json!("backend_down"), json!("firing"), true));
        let over = (json!("backend_down"), json!("resolved"), false);
        assert_eq!(told(Some(at(1)), &sight("disabled")), over);
        assert_eq!(told(Some(at(1)), &Sight::default()), over);
    }

    /// Computed with `printf '1735689660.{}' | openssl dgst -sha256 -hmac key`.
    #[test]
    fn the_signature_is_what_openssl_computes() {
        let signature = signature(&Secret::new("key"), "1735689660", b"{}").unwrap();
        assert_eq!(
            signature,
            "sha256=2ac77181e8bdafae9b964734f130a46397903848729190598c6353a603eba25a"
        );
    }
}
