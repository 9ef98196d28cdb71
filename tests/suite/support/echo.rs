//! A backend whose WebSocket does what it is told, by axum.
//!
//! It speaks the subprotocols `comfy` and `other`, echoes what it gets, and obeys the texts
//! `close CODE REASON`, and `flood`: it then sends as fast as anybody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

/// Size of a flood's messages and of a download's pieces.
pub(crate) const PIECE: usize = 64 << 10;

/// What happened on the backend's side.
#[derive(Default)]
pub(crate) struct Witness {
    /// Handshakes' headers.
    pub(crate) handshakes: Mutex<Vec<HeaderMap>>,
    /// Close frames that came: code and reason.
    pub(crate) closes: Mutex<Vec<(u16, String)>>,
    /// Bytes that a flood got rid of.
    pub(crate) flooded: AtomicU64,
}

/// The running backend.
pub(crate) struct Echo {
    url: String,
    pub(crate) witness: Arc<Witness>,
    task: JoinHandle<()>,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let witness = Arc::new(Witness::default());
        let idle = || async { r#"{"queue_running": [], "queue_pending": []}"# };
        let router = Router::new()
            .route("/api/queue", get(idle))
            .route("/ws", any(upgrade))
            .route("/upload", post(swallow))
            .route("/download/{pieces}", get(download))
            .fallback(get(|| async { "{}" }))
            .with_state(Arc::clone(&witness));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, witness, task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn upgrade(
    State(witness): State<Arc<Witness>>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    witness.handshakes.lock().push(headers);
    upgrade.protocols(["comfy", "other"]).on_upgrade(move |socket| obey(socket, witness))
}

async fn obey(mut socket: WebSocket, witness: Arc<Witness>) {
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Text(text) if text.starts_with("close ") => {
                let mut words = text.splitn(3, ' ').skip(1);
                let code = words.next().unwrap().parse().unwrap();
                let reason = words.next().unwrap_or("").into();
                let _ = socket.send(Message::Close(Some(CloseFrame { code, reason }))).await;
            }
            Message::Text(text) if text == "flood" => {
                let piece = Bytes::from(vec![7; PIECE]);
                while socket.send(Message::Binary(piece.clone())).await.is_ok() {
                    witness.flooded.fetch_add(PIECE as u64, Relaxed);
                }
            }
            Message::Close(frame) => {
                let frame = frame.map(|frame| (frame.code, frame.reason.to_string()));
                witness.closes.lock().push(frame.unwrap_or((1005, String::new())));
            }
            Message::Text(_) | Message::Binary(_) => {
                let _ = socket.send(message).await;
            }
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
}

/// Counts a body and forgets it.
async fn swallow(body: Body) -> String {
    let mut body = body.into_data_stream();
    let mut size = 0;
    while let Some(Ok(piece)) = body.next().await {
        size += piece.len();
    }
    size.to_string()
}

/// Sends a body of unknown length.
async fn download(axum::extract::Path(pieces): axum::extract::Path<usize>) -> Body {
    let piece = Bytes::from(vec![7; PIECE]);
    Body::from_stream(stream::iter((0..pieces).map(move |_| std::io::Result::Ok(piece.clone()))))
}
