//! The one place that turns a refusal into a response: JSON in ComfyUI's own error shape.
//!
//! `{"error":{"type","message","details","extra_info":{}},"node_errors":{}}`, with `Retry-After`
//! where waiting helps, and no word about the inside of the network.

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

/// What kind of refusal it is; `type` in the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense as HTTP.
    BadRequest,
    /// A value in it is wrong.
    InvalidValue,
    /// A prompt's id is no canonical UUID.
    InvalidPromptId,
    /// No valid credentials.
    Unauthorized,
    /// Not allowed.
    Forbidden,
    /// Nothing there.
    NotFound,
    /// Not with this method.
    MethodNotAllowed,
    /// The client was too slow.
    Timeout,
    /// It contradicts what is.
    Conflict,
    /// The body is over the limit.
    BodyTooLarge,
    /// Too many at once.
    RateLimited,
    /// As many prompts wait as may.
    QueueFull,
    /// The head is over the limit.
    HeadersTooLarge,
    /// The backend failed.
    UpstreamFailed,
    /// There is no backend to ask.
    NoBackend,
    /// What must be kept cannot be written.
    StorageUnavailable,
    /// The backend was too slow.
    UpstreamTimeout,
}

impl Kind {
    /// Every kind, in the order of the enum. While the last one stays last, a kind that is
    /// missing here does not compile.
    pub const ALL: [Self; Self::UpstreamTimeout as usize + 1] = [
        Self::BadRequest,
        Self::InvalidValue,
        Self::InvalidPromptId,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::Conflict,
        Self::BodyTooLarge,
        Self::RateLimited,
        Self::QueueFull,
        Self::HeadersTooLarge,
        Self::UpstreamFailed,
        Self::NoBackend,
        Self::StorageUnavailable,
        Self::UpstreamTimeout,
    ];

    /// The name in the reply, in logs and in metrics.
    pub fn name(self) -> &'static str {
        self.parts().0
    }

    /// The response's status.
    pub fn status(self) -> StatusCode {
        self.parts().1
    }

    fn parts(self) -> (&'static str, StatusCode) {
        match self {
            Self::BadRequest => ("bad_request", StatusCode::BAD_REQUEST),
            Self::InvalidValue => ("invalid_value", StatusCode::BAD_REQUEST),
            Self::InvalidPromptId => ("invalid_prompt_id", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND),
            Self::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
            Self::Timeout => ("timeout", StatusCode::REQUEST_TIMEOUT),
            Self::Conflict => ("conflict", StatusCode::CONFLICT),
            Self::BodyTooLarge => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE),
            Self::RateLimited => ("rate_limited", StatusCode::TOO_MANY_REQUESTS),
            Self::QueueFull => ("queue_full", StatusCode::TOO_MANY_REQUESTS),
            Self::HeadersTooLarge => {
                ("headers_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            Self::UpstreamFailed => ("upstream_failed", StatusCode::BAD_GATEWAY),
            Self::NoBackend => ("no_backend", StatusCode::SERVICE_UNAVAILABLE),
            Self::StorageUnavailable => ("storage_unavailable", StatusCode::SERVICE_UNAVAILABLE),
            Self::UpstreamTimeout => ("upstream_timeout", StatusCode::GATEWAY_TIMEOUT),
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What kind.
    pub kind: Kind,
    /// What is wrong, in one line.
    pub message: String,
    /// What to do about it, possibly empty.
    pub details: String,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u32>,
    /// The methods that are served, for a wrong one.
    pub allow: Option<&'static str>,
    /// How credentials may be shown where they are missing.
    pub challenge: &'static str,
}

/// The refusal of a request to a backend that holds as many as it may.
pub fn full() -> Rejection {
    Rejection::new(Kind::NoBackend, "the ComfyUI server has as many connections as it may")
        .retry_after(1)
}

impl Rejection {
    /// A refusal without details.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            details: String::new(),
            retry_after: None,
            allow: None,
            challenge: "Bearer",
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn cure(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Adds when to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds the methods that are served.
    #[must_use]
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// Says how credentials may be shown.
    #[must_use]
    pub fn challenge(mut self, scheme: &'static str) -> Self {
        self.challenge = scheme;
        self
    }

    /// The response's body.
    pub fn body(&self) -> Bytes {
        let body = json!({
            "error": {
                "type": self.kind.name(),
                "message": self.message,
                "details": self.details,
                "extra_info": {},
            },
            "node_errors": {},
        });
        Bytes::from(body.to_string())
    }

    /// The response's headers, the framing included.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("content-type", "application/json; charset=utf-8".to_owned()),
            ("content-length", self.body().len().to_string()),
            ("cache-control", "no-store".to_owned()),
        ];
        if let Some(seconds) = self.retry_after {
            headers.push(("retry-after", seconds.to_string()));
        }
        if let Some(methods) = self.allow {
            headers.push(("allow", methods.to_owned()));
        }
        if self.kind == Kind::Unauthorized {
            headers.push(("www-authenticate", self.challenge.to_owned()));
        }
        headers
    }

    /// The whole response as HTTP/1.1 on a connection that closes after it.
    pub fn to_http1(&self) -> Vec<u8> {
        let status = self.kind.status();
        let reason = status.canonical_reason().unwrap_or("Error");
        let mut response = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16());
        for (name, value) in self.headers() {
            response += &format!("{name}: {value}\r\n");
        }
        response.push_str("connection: close\r\n\r\n");
        let mut response = response.into_bytes();
        response.extend_from_slice(&self.body());
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_stand_in_the_order_of_the_enum() {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place, "{kind:?}");
        }
    }

    #[test]
    fn a_refusal_has_comfyuis_error_shape() {
        let refusal = Rejection::new(Kind::NoBackend, "no \"backend\"").retry_after(2);
        let body: serde_json::Value = serde_json::from_slice(&refusal.body()).unwrap();
        assert_eq!(
            body,
            json!({"error": {"type": "no_backend", "message": "no \"backend\"", "details": "",
                "extra_info": {}}, "node_errors": {}})
        );
        let text = String::from_utf8(refusal.to_http1()).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains("\r\nretry-after: 2\r\n"));
    }
}
