//! What the front door knows of a request before anyone else sees it, and what of it goes on to
//! the backend.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use http::HeaderValue;

use crate::affinity::Seconds;
use crate::auth::grant::Grant;
use crate::backend::{Backend, BackendId};
use crate::identity::address::Forwarded;
use crate::identity::mark::Mark;
use crate::identity::{Caller, ClientKey};
use crate::pool::route::Route;

/// What is known of a request.
#[derive(Debug)]
pub struct Envelope {
    /// Who asks.
    pub caller: Caller,
    /// What placements are keyed by.
    pub key: ClientKey,
    /// Where the connection comes from.
    pub peer: SocketAddr,
    /// The client's address.
    pub address: IpAddr,
    /// What to tell the backend about the way here.
    pub forwarded: Forwarded,
    /// What the client's browser is told about coming back by https.
    pub hsts: Option<HeaderValue>,
    /// Sent upstream and written to the log.
    pub request_id: String,
    /// When its head was complete.
    pub started: Instant,
    /// The same for placements.
    pub now: Seconds,
    /// The tab's name in the path, taken off already.
    pub tab: Option<String>,
    /// The backend that the path chooses.
    pub by_hand: Option<BackendId>,
    /// By what it was let in.
    pub grant: Grant,
    /// Cookies to be set: of a login, of a session.
    pub set_cookies: Vec<String>,
    /// The client's `Cookie` lines without ours; `None`: as they are.
    pub cookies: Option<Vec<HeaderValue>>,
    /// It queues a prompt of its client's own backend (sticky mode).
    pub is_prompt: bool,
    /// Who answers it in pool mode; `None` in sticky mode, where the client's backend does.
    pub route: Option<Route>,
    /// The client's zone.
    pub zone: Option<String>,
    /// The kind of work it asks for.
    pub mark: Option<Mark>,
    /// It goes to a registered service that does this, not to a ComfyUI server.
    pub service: Option<String>,
}

/// Headers of the client that never reach a backend: what the gateway says itself, and what would
/// make `ComfyUI` refuse a request that passed our own cross-site check.
pub const DROPPED: [&str; 10] = [
    "origin",
    "sec-fetch-site",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-real-ip",
    "forwarded",
    "x-request-id",
    "comfy-user-proxy",
    "x-comfygate-backend",
];

impl Envelope {
    /// Headers that every request to a backend carries, replacing what the client sent under the
    /// same names. Those of the configuration come last and win.
    pub fn outgoing(&self, backend: &Backend) -> Vec<(String, HeaderValue)> {
        let text = |value: &str| HeaderValue::from_str(value).ok();
        let mut headers = Vec::with_capacity(8);
        let mut add = |name: &str, value: Option<HeaderValue>| {
            if let Some(value) = value {
                headers.push((name.to_owned(), value));
            }
        };
        add("host", text(&backend.spec.endpoint.authority()));
        add("x-forwarded-for", text(&self.forwarded.chain));
        add("x-forwarded-proto", text(self.forwarded.proto));
        add("x-forwarded-host", self.forwarded.host.clone());
        add("x-request-id", text(&self.request_id));
        for (name, value) in &backend.spec.headers {
            add(&name.to_ascii_lowercase(), text(value.reveal()));
        }
        headers
    }
}
