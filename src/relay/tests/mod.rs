//! Tests of the relay as a whole: over in-memory pipes on a paused clock, then over real sockets.

mod ending;
mod flow;
mod sockets;

use std::future::{Future, pending};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::frames::{FrameCursor, close_frame};
use super::*;

/// More than any bound of the relay; on the paused clock it costs nothing.
const LONG: Duration = Duration::from_hours(1);

/// A relay at work, with the far ends of its two streams and the means to stop it.
struct Rig {
    client: DuplexStream,
    backend: DuplexStream,
    stop: oneshot::Sender<StopReason>,
    relay: JoinHandle<RelayEnd>,
    start: Instant,
}

impl Rig {
    /// Pipes that hold `pipe` bytes each way.
    fn new(pipe: usize) -> Self {
        Self::with(pipe, Prefix::default(), RelayOptions::default())
    }

    fn with(pipe: usize, prefix: Prefix, options: RelayOptions) -> Self {
        let (client, near_client) = duplex(pipe);
        let (backend, near_backend) = duplex(pipe);
        let (stop, stopped) = oneshot::channel();
        let relay = relay(near_client, near_backend, prefix, or_never(stopped), options);
        Self { client, backend, stop, relay: tokio::spawn(relay), start: Instant::now() }
    }

    async fn end(self) -> RelayEnd {
        timeout(LONG, self.relay).await.expect("the relay never ends").unwrap()
    }
}

/// What the sender says, or nothing ever if it is dropped.
async fn or_never(stopped: oneshot::Receiver<StopReason>) -> StopReason {
    match stopped.await {
        Ok(reason) => reason,
        Err(_) => pending().await,
    }
}

/// A frame without a mask.
fn plain(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=65535 => {
            frame.push(126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A Close as a client sends it, by a mask of zeros.
fn client_close(code: u16) -> Vec<u8> {
    let [high, low] = code.to_be_bytes();
    vec![0x88, 0x82, 0, 0, 0, 0, high, low]
}

/// Sends `bytes` whole.
async fn send(stream: &mut DuplexStream, bytes: &[u8]) {
    timeout(LONG, stream.write_all(bytes)).await.expect("nobody reads").unwrap();
}

/// Receives as many bytes as are expected, and checks them.
async fn expect(stream: &mut DuplexStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    timeout(LONG, stream.read_exact(&mut read)).await.expect("too little comes").unwrap();
    assert!(read == bytes, "other bytes than were sent");
}

/// Receives until the end.
async fn rest(stream: &mut DuplexStream) -> Vec<u8> {
    let mut read = Vec::new();
    timeout(LONG, stream.read_to_end(&mut read)).await.expect("the stream never ends").unwrap();
    read
}

/// The one Close in `bytes`, which must hold whole frames only.
fn close_in(bytes: &[u8]) -> Option<u16> {
    let mut cursor = FrameCursor::new(None);
    cursor.feed(bytes).unwrap();
    assert!(cursor.at_boundary(), "half a frame");
    cursor.close_code()
}

/// A future's result and how long it took on the paused clock.
async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let result = timeout(LONG, future).await.expect("never");
    (result, start.elapsed())
}
