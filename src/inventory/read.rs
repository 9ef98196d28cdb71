//! Asks a backend, within bounds of time and size.

use std::io::{self, BufReader, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Capabilities, System};
use crate::backend::Backend;
use crate::upstream::clients::Clients;

/// Bytes of a reply to `/system_stats` at most.
const MAX_STATS: usize = 1 << 20;
/// Bytes of a reply to `/object_info` at most.
const MAX_OBJECT_INFO: usize = 64 << 20;
/// Time for `/system_stats`.
const STATS_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for `/object_info`, for which a backend walks through its model folders.
const OBJECT_INFO_TIMEOUT: Duration = Duration::from_mins(1);
/// Chunks of a reply that wait for the parser.
const WAITING_CHUNKS: usize = 4;

/// Reads inventories over HTTP.
pub(super) struct Reader {
    clients: Clients,
}

impl Reader {
    pub(super) fn new() -> anyhow::Result<Self> {
        let clients = Clients::new(|| Client::builder().pool_max_idle_per_host(0))?;
        Ok(Self { clients })
    }

    /// Version and devices.
    pub(super) async fn system(
        &self,
        backend: &Backend,
        headers: HeaderMap,
    ) -> Result<System, String> {
        let response = self.get(backend, "/system_stats", headers, STATS_TIMEOUT).await?;
        let body = whole(response, MAX_STATS).await?;
        let stats: Value = serde_json::from_reader(PlainJson::new(body.as_slice()))
            .map_err(|error| error.to_string())?;
        Ok(System::of(&stats))
    }

    /// Nodes and models, parsed on another thread while the reply comes in.
    pub(super) async fn capabilities(
        &self,
        backend: &Backend,
        headers: HeaderMap,
    ) -> Result<Capabilities, String> {
        let response = self.get(backend, "/object_info", headers, OBJECT_INFO_TIMEOUT).await?;
        let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
        let parsed = tokio::task::spawn_blocking(move || {
            let chunks = Chunks { receiver, current: Bytes::new() };
            Capabilities::read(BufReader::new(PlainJson::new(chunks)))
        });
        let fed = feed(response, &sender).await;
        drop(sender);
        let parsed = parsed.await.map_err(|error| error.to_string())?;
        fed?;
        parsed.map_err(|error| error.to_string())
    }

    async fn get(
        &self,
        backend: &Backend,
        path: &str,
        headers: HeaderMap,
        limit: Duration,
    ) -> Result<Response, String> {
        let request = self.clients.request(backend, Method::GET, path);
        let request = request.headers(headers).timeout(limit);
        let response = request.send().await.map_err(|error| cause(&error))?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(format!("it answers {status}")),
        }
    }
}

async fn whole(mut response: Response, limit: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(too_long(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Hands a reply to its parser; one that has given up says why itself.
async fn feed(mut response: Response, parser: &mpsc::Sender<Bytes>) -> Result<(), String> {
    let mut size = 0;
    while let Some(chunk) = response.chunk().await.map_err(|error| cause(&error))? {
        size += chunk.len();
        if size > MAX_OBJECT_INFO {
            return Err(too_long(MAX_OBJECT_INFO));
        }
        if parser.send(chunk).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn too_long(limit: usize) -> String {
    format!("its reply is longer than {limit} bytes")
}

fn cause(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

/// The chunks of a reply, for a parser that reads and blocks.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

/// Python writes `NaN`, `Infinity` and `-Infinity` where a node's limits are such numbers. They
/// are replaced by a zero and spaces, in place: nobody here looks at numbers that are not finite.
pub(crate) struct PlainJson<R> {
    inner: R,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Outside,
    InString,
    Escaped,
    InWord,
}

impl<R> PlainJson<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, place: Place::Outside }
    }
}

impl<R: Read> Read for PlainJson<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        for byte in &mut buffer[..length] {
            (*byte, self.place) = plain(*byte, self.place);
        }
        Ok(length)
    }
}

/// What a byte becomes, and where the next one stands.
fn plain(byte: u8, place: Place) -> (u8, Place) {
    match (place, byte) {
        (Place::InString, b'\\') => (byte, Place::Escaped),
        (Place::InString, b'"') => (byte, Place::Outside),
        (Place::InString | Place::Escaped, _) => (byte, Place::InString),
        (Place::InWord, b'a'..=b'z' | b'A'..=b'Z') => (b' ', Place::InWord),
        (_, b'"') => (byte, Place::InString),
        (_, b'N' | b'I') => (b'0', Place::InWord),
        _ => (byte, Place::Outside),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::backend::{BackendId, Live, Wanted};
    use crate::config;
    use crate::pace::Learnt;

    #[test]
    fn pythons_numbers_are_read_and_strings_stay() {
        let text = br#"{"NaN": [NaN, -Infinity, Infinity, 1, true, null], "s": "NaN \" NaN \\"}"#;
        let read: Value = serde_json::from_reader(PlainJson::new(text.as_slice())).unwrap();
        assert_eq!(read["NaN"][3], 1);
        assert_eq!(read["NaN"][0], 0);
        assert_eq!(read["s"], "NaN \" NaN \\");
        assert_eq!(read["NaN"].as_array().unwrap().len(), 6);
    }

    /// A backend that answers with these texts.
    async fn backend(stats: String, object_info: &'static str) -> Backend {
        let answer = |text: String| axum::routing::get(move || std::future::ready(text));
        let router = axum::Router::new()
            .route("/system_stats", answer(stats))
            .route("/object_info", answer(object_info.to_owned()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Backend {
            id: BackendId(0),
            spec: config::backend_of(&json!({"name": "a", "url": url})).unwrap(),
            live: Arc::new(Live::new(Wanted::Enabled, Learnt::default())),
        }
    }

    #[tokio::test]
    async fn replies_are_read_within_bounds() {
        let reader = Reader::new().unwrap();
        let none = HeaderMap::new;
        let stats = r#"{"system": {"comfyui_version": "1"}, "devices": [{"vram_total": NaN}]}"#;
        let fine = backend(stats.into(), r#"{"A": {"input": {}, "max": Infinity}}"#).await;
        assert_eq!(reader.system(&fine, none()).await.unwrap().version.as_deref(), Some("1"));
        let found = reader.capabilities(&fine, none()).await.unwrap();
        assert!(found.nodes.contains("A"), "{found:?}");

        let odd = backend(format!("{stats}{}", " ".repeat(MAX_STATS)), r#"{"A": {"#).await;
        let refused = reader.system(&odd, none()).await.unwrap_err();
        assert!(refused.contains("longer than 1048576 bytes"), "{refused}");
        assert!(reader.capabilities(&odd, none()).await.unwrap_err().contains("EOF"));

        let mut elsewhere = fine.clone();
        elsewhere.spec.endpoint.base = "/nothing".into();
        let refused = reader.capabilities(&elsewhere, none()).await.unwrap_err();
        assert!(refused.contains("404"), "{refused}");
    }

    #[tokio::test]
    async fn a_reply_is_parsed_across_chunks() {
        let (sender, receiver) = mpsc::channel(2);
        let parsed = tokio::task::spawn_blocking(move || {
            let chunks = Chunks { receiver, current: Bytes::new() };
            Capabilities::read(BufReader::with_capacity(7, PlainJson::new(chunks)))
        });
        let reply = json!({"Node": {"input": {"required": {"m": [["m.pt"]]}}}}).to_string();
        let reply = reply.replace("}}}}", ", \"max\": NaN}}}}");
        for chunk in reply.as_bytes().chunks(3) {
            sender.send(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        drop(sender);
        let found = parsed.await.unwrap().unwrap();
        assert!(found.nodes.contains("Node") && found.models.contains("m.pt"), "{found:?}");
    }
}
