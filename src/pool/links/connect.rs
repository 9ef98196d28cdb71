//! Opening a WebSocket to a backend.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::backend::Backend;
use crate::config::{self, Secret};
use crate::probe::poll::header_pairs;
use crate::upstream::socket;
pub(super) use crate::upstream::socket::Socket;

/// A message at most: previews, and results of `SaveImageWebsocket`, are images in full size.
const MAX_MESSAGE: usize = 256 << 20;
/// There are two sockets to each backend and one for each page: small buffers, which grow.
const READ_BUFFER: usize = 16 << 10;

const IN_A_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How sockets are opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How long opening one may take.
    pub timeout: Duration,
    /// Headers sent with each handshake, before the backend's own.
    pub headers: Vec<(String, Secret)>,
}

impl From<&config::HealthCheck> for Options {
    fn from(health_check: &config::HealthCheck) -> Self {
        Self { timeout: health_check.timeout, headers: health_check.headers.clone() }
    }
}

/// Opens a socket under a sid.
pub(super) async fn connect(backend: &Backend, sid: &str, options: &Options) -> Option<Socket> {
    let request = request(backend, sid, options)?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(READ_BUFFER);
    timeout(options.timeout, socket::open(backend, request, limits)).await.ok()?
}

fn request(backend: &Backend, sid: &str, options: &Options) -> Option<Request> {
    let sid = utf8_percent_encode(sid, IN_A_QUERY);
    let mut request = socket::request(backend, &format!("/ws?clientId={sid}"))?;
    for (name, value) in header_pairs(&options.headers).chain(header_pairs(&backend.spec.headers)) {
        request.headers_mut().insert(name, value);
    }
    Some(request)
}
