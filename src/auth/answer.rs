//! A whole answer of few bytes that is no refusal of ours: a redirect, or what the one that was
//! asked about a request says.

use bytes::Bytes;
use http::StatusCode;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers, without the framing.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// Sends a client elsewhere.
    pub fn redirect(location: &str) -> Self {
        let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        Self {
            status: StatusCode::FOUND,
            headers: vec![header("location", location), header("cache-control", "no-store")],
            body: Bytes::new(),
        }
    }

    /// The whole answer as HTTP/1.1 on a connection that closes after it.
    pub fn to_http1(&self) -> Vec<u8> {
        let reason = self.status.canonical_reason().unwrap_or("Answer");
        let mut response = format!("HTTP/1.1 {} {reason}\r\n", self.status.as_u16()).into_bytes();
        for (name, value) in &self.headers {
            response.extend_from_slice(name.as_bytes());
            response.extend_from_slice(b": ");
            response.extend_from_slice(value);
            response.extend_from_slice(b"\r\n");
        }
        let length = self.body.len();
        let framing = format!("content-length: {length}\r\nconnection: close\r\n\r\n");
        response.extend_from_slice(framing.as_bytes());
        response.extend_from_slice(&self.body);
        response
    }
}
