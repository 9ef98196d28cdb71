//! A client's sockets, one after another under one `clientId`, and what each of them heard.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::step::Profile;
use crate::support::{PATIENCE, socket};

/// Something heard; previews without their pictures, `progress_state` without its nodes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Note {
    Event {
        name: String,
        data: Value,
    },
    /// A binary message: its id, and the metadata of one of type 4.
    Binary {
        id: u32,
        metadata: Value,
    },
}

impl Note {
    /// The prompt that it names.
    pub(crate) fn prompt(&self) -> Option<&str> {
        match self {
            Self::Event { data, .. } | Self::Binary { metadata: data, .. } => {
                data["prompt_id"].as_str()
            }
        }
    }

    pub(crate) fn is(&self, kind: &str) -> bool {
        matches!(self, Self::Event { name, .. } if name == kind)
    }

    /// `executing` with a null node.
    pub(crate) fn is_end(&self) -> bool {
        matches!(self, Self::Event { name, data } if name == "executing" && data["node"].is_null())
    }
}

/// How a socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// With a close frame.
    Polite,
    /// Without one; `true` by a reset.
    Abrupt(bool),
}

/// One socket's life.
#[derive(Debug, Clone, Default)]
pub(crate) struct Session {
    /// Milliseconds since 1970 when it was greeted and when its client began to end it.
    pub(crate) opened: u64,
    pub(crate) closed: Option<(u64, Manner)>,
    /// What it heard but `status`.
    pub(crate) notes: Vec<Note>,
    /// The sid of the first message, if that was a `status`.
    pub(crate) greeting: Option<String>,
    /// The last depth told.
    pub(crate) depth: Option<u64>,
    /// Whether the server ended it.
    pub(crate) lost: bool,
    /// How many messages came.
    pub(crate) messages: usize,
}

/// A client's sockets.
pub(crate) struct Ear {
    address: SocketAddr,
    profile: Profile,
    /// The `clientId`, once it is known.
    pub(crate) sid: Option<String>,
    sessions: Arc<Mutex<Vec<Session>>>,
    current: Option<(oneshot::Sender<Manner>, JoinHandle<()>, usize)>,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

impl Ear {
    pub(crate) fn new(address: SocketAddr, profile: Profile) -> Self {
        let sid = profile.name.clone();
        Self { address, profile, sid, sessions: Arc::default(), current: None }
    }

    /// What each socket has heard so far, in the order in which they were opened.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        self.sessions.lock().clone()
    }

    /// Opens a socket and waits for its greeting. One that is open stays so.
    pub(crate) async fn open(&mut self) {
        let query = self.sid.as_ref().map(|sid| format!("?clientId={sid}")).unwrap_or_default();
        let origin = format!("http://{}", self.address);
        let host = self.address.to_string();
        let mut headers = vec![("Host", host.as_str()), ("X-Forwarded-For", &self.profile.address)];
        if self.profile.page {
            headers.push(("Origin", &origin));
        }
        let target = format!("/ws{query}");
        let (mut socket, _) = socket::open(self.address, &target, &headers).await.unwrap();
        if self.profile.flags {
            let flags =
                json!({"type": "feature_flags", "data": {"supports_preview_metadata": true}});
            socket.send(Message::text(flags.to_string())).await.unwrap();
        }
        let index = {
            let mut sessions = self.sessions.lock();
            sessions.push(Session::default());
            sessions.len() - 1
        };
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(listen(socket, self.sessions.clone(), index, ended));
        // A socket that is replaced goes on until it is ended by its own hand.
        self.current = Some((end, task, index));
        let patience = Instant::now() + PATIENCE;
        while self.sessions.lock()[index].messages == 0 {
            assert!(Instant::now() < patience, "socket {index} of {:?} is not greeted", self.sid);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut sessions = self.sessions.lock();
        sessions[index].opened = now_ms();
        if self.sid.is_none() {
            self.sid.clone_from(&sessions[index].greeting);
        }
    }

    /// Ends the socket.
    pub(crate) async fn end(&mut self, manner: Manner) {
        let Some(current) = self.current.take() else { return };
        self.end_one(current, manner).await;
    }

    /// Opens another socket under the id and then breaks the first one.
    pub(crate) async fn replace(&mut self) {
        let former = self.current.take();
        self.open().await;
        if let Some(former) = former {
            self.end_one(former, Manner::Abrupt(false)).await;
        }
    }

    async fn end_one(
        &self,
        current: (oneshot::Sender<Manner>, JoinHandle<()>, usize),
        how: Manner,
    ) {
        let (end, task, index) = current;
        self.sessions.lock()[index].closed = Some((now_ms(), how));
        let _ = end.send(how);
        task.await.unwrap();
    }
}

async fn listen(
    mut socket: socket::Socket,
    sessions: Arc<Mutex<Vec<Session>>>,
    index: usize,
    mut ended: oneshot::Receiver<Manner>,
) {
    loop {
        let message = tokio::select! {
            biased;
            how = &mut ended => {
                match how {
                    Ok(Manner::Polite) => break,
                    Ok(Manner::Abrupt(true)) => socket.get_ref().set_zero_linger().unwrap(),
                    _ => {}
                }
                return;
            }
            message = socket.next() => message,
        };
        match message {
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                sessions.lock()[index].lost = true;
                return;
            }
            Some(Ok(message)) => sessions.lock()[index].hear(&message),
        }
    }
    // Errors mean that the other side has gone already.
    let _ = socket.close(None).await;
    let drain = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ = tokio::time::timeout(PATIENCE, drain).await;
}

impl Session {
    fn hear(&mut self, message: &Message) {
        match message {
            Message::Text(text) => self.hear_text(text.as_str()),
            Message::Binary(bytes) => self.notes.push(binary(bytes)),
            _ => return,
        }
        self.messages += 1;
    }

    fn hear_text(&mut self, text: &str) {
        let mut event: Value = serde_json::from_str(text).unwrap();
        let name = event["type"].as_str().unwrap().to_owned();
        let mut data = event["data"].take();
        match name.as_str() {
            "status" => {
                if self.messages == 0 {
                    self.greeting = data["sid"].as_str().map(str::to_owned);
                }
                self.depth = data["status"]["exec_info"]["queue_remaining"].as_u64();
                return;
            }
            // The gateway's own; a ComfyUI knows no such event.
            "comfygate_eta" => return,
            "progress_state" => data = json!({"prompt_id": data["prompt_id"]}),
            _ => {}
        }
        self.notes.push(Note::Event { name, data });
    }
}

fn binary(bytes: &[u8]) -> Note {
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let id = number(0);
    let metadata = match id {
        4 => serde_json::from_slice(&bytes[8..8 + number(4) as usize]).unwrap(),
        _ => Value::Null,
    };
    Note::Binary { id, metadata }
}
