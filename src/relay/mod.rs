//! Carries a WebSocket between a client and its backend, once both handshakes are done.
//!
//! [`relay`] passes bytes both ways unchanged and in order: frames, pings, close codes and
//! compressed payloads are never decoded. It only follows where frames end ([`frames`]), so that it
//! can speak to the client itself when it must:
//!
//! | what happens | what the client gets | what the backend gets |
//! |---|---|---|
//! | a side sends a Close | passed on, and the answer too; then both connections end | likewise |
//! | no answer within [`linger`](RelayOptions::linger) | its own code back, if it sent the Close | end |
//! | the backend's connection ends | Close 1012 | – |
//! | the client's connection ends | what the backend still sends | Close 1001, end |
//! | `stop`: backend down, disabled, removed | Close 1012 | Close 1001, end |
//! | `stop`: gateway shutting down | Close 1001 | Close 1001, end |
//! | a frame of impossible length | Close 1002 | Close 1002, end |
//! | a client's frame over [`max_client_frame`](RelayOptions::max_client_frame) | Close 1009 | Close 1009, end |
//!
//! A Close of ours stands between two frames. If the backend's frame is half sent, a living backend
//! has [`frame_grace`](RelayOptions::frame_grace) to finish it; when it does not, the client's
//! connection ends without a Close, since nothing can follow half a frame.
//!
//! There is no timeout on an open relay: an idle one lives as long as its connections. It holds no
//! buffer while idle and at most 64 KiB per direction when a side does not read, which stalls the
//! other side and nobody else. Generic over the streams; [`handshake`] has what comes before.

mod end;
pub mod frames;
pub mod handshake;
mod machine;
mod pump;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub use end::{EndCause, RelayEnd, Side, StopReason, Traffic};
use machine::Relay;

/// The bounds of a relay's end. The defaults are what the gateway uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayOptions {
    /// The longest a closing handshake may take, and the longest a client that does not read is
    /// waited for when the relay ends.
    pub linger: Duration,
    /// How long the client has to answer a Close of ours.
    pub answer_wait: Duration,
    /// How long a backend has to finish the frame it is in when the relay is to end.
    pub frame_grace: Duration,
    /// The longest frame a client may send. `None`: the backend sees to that (`ComfyUI` takes 4 MiB).
    pub max_client_frame: Option<u64>,
}

impl Default for RelayOptions {
    fn default() -> Self {
        Self {
            linger: Duration::from_secs(5),
            answer_wait: Duration::from_secs(1),
            frame_grace: Duration::from_millis(500),
            max_client_frame: None,
        }
    }
}

/// Bytes that were read past the heads of the handshakes; the relay takes them as read first.
#[derive(Debug, Clone, Default)]
pub struct Prefix {
    /// Behind the client's request.
    pub client: Bytes,
    /// Behind the backend's response.
    pub backend: Bytes,
}

/// Relays until both sides are done or `stop` says why not to go on; see the module's text.
///
/// Both streams are shut down and dropped at the end. `stop` may be a future that never resolves.
/// The future is small (thousands live at once) and may be dropped at any time, which cuts both
/// connections. It needs a Tokio runtime with time enabled.
pub fn relay<C, B, S>(
    client: C,
    backend: B,
    prefix: Prefix,
    stop: S,
    options: RelayOptions,
) -> impl Future<Output = RelayEnd>
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
    S: Future<Output = StopReason>,
{
    // Built outside the async block, which would otherwise keep the streams twice.
    let mut machine = Relay::new(client, backend, prefix, options);
    async move {
        let mut stop = pin!(stop);
        poll_fn(|cx| machine.poll(cx, stop.as_mut())).await
    }
}
