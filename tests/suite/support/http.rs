//! HTTP by hand: what is sent is sent as it stands, what comes back is taken apart.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A response whose parts are known.
    pub(crate) fn new(status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> Self {
        Self { status, headers, body }
    }

    /// The first header of a name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The backend that answered.
    pub(crate) fn backend(&self) -> &str {
        self.header("x-comfygate-backend").unwrap_or("")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Asserts that it is a refusal in `ComfyUI`'s error shape.
    pub(crate) fn assert_refusal(&self, status: u16, kind: &str) {
        assert_eq!(self.status, status, "{}", self.text());
        let body = self.json();
        assert_eq!(body["error"]["type"], kind);
        assert!(body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
        assert!(body["error"]["details"].is_string() && body["error"]["extra_info"].is_object());
        assert!(body["node_errors"].is_object());
        assert_eq!(self.header("x-comfygate-backend"), None, "no backend made this");
    }
}

/// A GET, with more header lines.
pub(crate) fn get(target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    head("GET", target, headers).into_bytes()
}

/// A POST of JSON.
pub(crate) fn post(target: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len().to_string();
    let headers = [("Content-Type", "application/json"), ("Content-Length", length.as_str())];
    head("POST", target, &headers).into_bytes().into_iter().chain(body.into_bytes()).collect()
}

/// A request's head.
pub(crate) fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str("Host: gate.example\r\n");
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// Sends bytes on a connection of its own and reads one response.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> Reply {
    try_exchange(address, bytes).await.expect("a response")
}

/// The same where it may fail.
pub(crate) async fn try_exchange(address: SocketAddr, bytes: &[u8]) -> io::Result<Reply> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        read_reply(&mut stream).await
    };
    timeout(PATIENCE, exchange).await.expect("a response in time")
}

/// Reads one response and not a byte more than it has.
pub(crate) async fn read_reply<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Reply> {
    let (status, headers) = read_head(stream).await?;
    let mut reply = Reply { status, headers, body: Vec::new() };
    if status == 204 || status == 304 {
        return Ok(reply);
    }
    let length = reply.header("content-length").map(|length| length.parse::<u64>().unwrap());
    if let Some(length) = length {
        reply.body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut reply.body).await?;
    } else if reply.header("transfer-encoding") == Some("chunked") {
        loop {
            let line = read_until(stream, b"\r\n").await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await?;
            if size == 0 {
                break;
            }
            reply.body.extend_from_slice(&chunk[..size]);
        }
    } else if status != 101 {
        stream.read_to_end(&mut reply.body).await?;
    }
    Ok(reply)
}

/// Reads the head of a response: status and headers.
pub(crate) async fn read_head<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> io::Result<(u16, Vec<(String, String)>)> {
    let text = read_until(stream, b"\r\n\r\n").await?;
    let mut lines = text.trim_end().lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no status: {text}")))?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    Ok((status, headers.map(|(n, v)| (n.to_lowercase(), v.trim().to_owned())).collect()))
}

/// Reads up to an ending, byte by byte.
pub(crate) async fn read_until<S: AsyncRead + Unpin>(
    stream: &mut S,
    ending: &[u8],
) -> io::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(ending) {
        bytes.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
