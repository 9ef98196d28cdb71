//! `auth.forward`: somebody else is asked whether a request may pass.
//!
//! The subrequest is a GET without a body and with the headers of the request, as Traefik's
//! `ForwardAuth` and nginx's `auth_request` send it: `X-Forwarded-Method`, `-Proto`, `-Host`, `-Uri` and
//! `-For` tell what is asked for (`X-Original-Method` and `X-Original-URL` too, which nginx's users
//! configure). Its answer decides:
//!
//! - 2xx lets the request in, as the user that `user_header` names; cookies it sets are passed on;
//! - a redirect, 400, 401, 403 and 429 are passed back, so that a login page can be one;
//! - anything else, no answer in time or one that makes no sense: 503. Nobody comes in by accident.
//!
//! A 2xx that sets no cookie holds for `cache` for the same request with the same credentials.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::redirect::Policy;
use tokio::sync::Semaphore;

use super::answer::Answer;
use super::memory::{Digest, Memory};
use crate::clock::Moment;
use crate::config::Forward;
use crate::identity::address::Forwarded;
use crate::identity::session::SigningKey;
use crate::identity::user;
use crate::rejection::{Kind, Rejection};

/// Good answers remembered.
const MAX_ANSWERS: usize = 4096;
/// Subrequests at once.
const AT_ONCE: usize = 256;
/// Bytes of an answer's body that are passed back.
const MAX_BODY: usize = 64 << 10;
/// Cookies of a good answer that are passed on.
const MAX_COOKIES: usize = 8;

/// Headers of a request that do not go along: what is about its connection or its body, and what
/// is said anew.
const KEPT_BACK: [&str; 20] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-proto",
    "x-forwarded-uri",
    "x-original-method",
    "x-original-url",
    "x-real-ip",
];
/// Headers of an answer that are passed back.
const PASSED_BACK: [&str; 5] =
    ["location", "set-cookie", "www-authenticate", "content-type", "retry-after"];
/// Headers by which callers are known: with the rest of the question they are what an answer is for.
const CREDENTIALS: [&str; 3] = ["cookie", "authorization", "x-api-key"];

/// A request as it is asked about.
#[derive(Debug, Clone)]
pub struct Subrequest {
    asked: Arc<Forward>,
    method: Method,
    target: String,
    forwarded: Forwarded,
    client: IpAddr,
    headers: HeaderMap,
}

/// What the one who was asked says.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// The request may pass.
    Yes {
        /// Whose it is.
        user: Option<String>,
        /// Cookies to be set.
        cookies: Vec<String>,
    },
    /// It may not: this is the answer.
    No(Box<Answer>),
    /// Nothing that could be relied on.
    None(Rejection),
}

impl Subrequest {
    /// The question about a request of this client with these header lines.
    pub fn new<'h>(
        asked: &Arc<Forward>,
        method: &Method,
        target: &str,
        (forwarded, client): (Forwarded, IpAddr),
        lines: impl Iterator<Item = (&'h str, &'h [u8])>,
    ) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value))
                && !KEPT_BACK.contains(&name.as_str())
                && !name.as_str().starts_with("sec-websocket-")
            {
                headers.append(name, value);
            }
        }
        let asked = Arc::clone(asked);
        Self {
            asked,
            method: method.clone(),
            target: target.to_owned(),
            forwarded,
            client,
            headers,
        }
    }

    /// What stands for the question.
    fn digest(&self, secret: &SigningKey) -> Digest {
        let host = self.forwarded.host.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        let mut parts: Vec<&[u8]> = vec![
            self.asked.url.reveal().as_bytes(),
            self.method.as_str().as_bytes(),
            self.target.as_bytes(),
            self.forwarded.chain.as_bytes(),
            self.forwarded.proto.as_bytes(),
            host,
        ];
        for name in CREDENTIALS {
            parts.push(name.as_bytes());
            parts.extend(self.headers.get_all(name).iter().map(HeaderValue::as_bytes));
        }
        secret.seal(b"forward", &parts)
    }

    fn headers(mut self) -> HeaderMap {
        let mut say = |name: &'static str, value: Option<HeaderValue>| {
            if let Some(value) = value {
                self.headers.insert(name, value);
            }
        };
        let text = |text: &str| HeaderValue::from_str(text).ok();
        let host = self.forwarded.host.clone();
        let url = host
            .as_ref()
            .and_then(|host| host.to_str().ok())
            .map(|host| format!("{}://{host}{}", self.forwarded.proto, self.target));
        // Not the chain's first entry, which whoever is behind a trusted proxy may make up.
        say("x-real-ip", text(&self.client.to_string()));
        say("x-forwarded-for", text(&self.forwarded.chain));
        say("x-forwarded-host", host);
        say("x-forwarded-method", text(self.method.as_str()));
        say("x-forwarded-proto", text(self.forwarded.proto));
        say("x-forwarded-uri", text(&self.target));
        say("x-original-method", text(self.method.as_str()));
        say("x-original-url", url.as_deref().and_then(text));
        for (name, secret) in &self.asked.headers {
            if let (Ok(name), Some(value)) = (HeaderName::try_from(name), text(secret.reveal())) {
                self.headers.insert(name, value);
            }
        }
        self.headers
    }
}

/// Asks, and remembers good answers for a moment.
#[derive(Debug)]
pub struct Asker {
    client: reqwest::Client,
    answers: Memory<Option<String>>,
    asking: Semaphore,
}

impl Default for Asker {
    fn default() -> Self {
        let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build();
        Self {
            client: client.unwrap_or_default(),
            answers: Memory::new(MAX_ANSWERS),
            asking: Semaphore::new(AT_ONCE),
        }
    }
}

impl Asker {
    /// The answer that still holds.
    pub fn remembers(&self, question: &Subrequest, secret: &SigningKey) -> Option<Option<String>> {
        self.answers.get(&question.digest(secret), Moment::now())
    }

    /// Forgets all answers.
    pub fn forget(&self) {
        self.answers.clear();
    }

    /// Asks.
    pub async fn ask(&self, question: Subrequest, secret: &SigningKey) -> Word {
        let Ok(_asking) = self.asking.try_acquire() else { return no_word() };
        let (asked, digest) = (Arc::clone(&question.asked), question.digest(secret));
        let request = self
            .client
            .get(asked.url.reveal())
            .headers(question.headers())
            .timeout(asked.timeout)
            .send();
        let Ok(response) = request.await else { return no_word() };
        let word = word_of(response, &asked).await;
        if let Word::Yes { user, cookies } = &word
            && cookies.is_empty()
            && !asked.cache.is_zero()
        {
            let now = Moment::now();
            self.answers.keep(digest, user.clone(), now.plus(asked.cache), now);
        }
        word
    }
}

/// What a response means.
async fn word_of(response: reqwest::Response, asked: &Forward) -> Word {
    let (status, headers) = (response.status(), response.headers());
    if status.is_success() {
        let values = headers.get_all(&asked.user_header).iter().map(HeaderValue::as_bytes);
        let Ok(user) = user::read(values) else { return no_word() };
        let cookies = headers.get_all(header::SET_COOKIE).iter().take(MAX_COOKIES);
        let cookies = cookies.filter_map(|cookie| cookie.to_str().ok().map(str::to_owned));
        return Word::Yes { user, cookies: cookies.collect() };
    }
    let passes = status.is_redirection() && headers.contains_key(header::LOCATION)
        || matches!(
            status,
            StatusCode::BAD_REQUEST
                | StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::TOO_MANY_REQUESTS
        );
    if !passes {
        return no_word();
    }
    let passed = PASSED_BACK.iter().flat_map(|name| {
        headers.get_all(*name).iter().map(|value| ((*name).to_owned(), value.as_bytes().to_vec()))
    });
    let no_store = ("cache-control".to_owned(), b"no-store".to_vec());
    let headers = passed.chain([no_store]).collect();
    match body_of(response).await {
        Some(body) => Word::No(Box::new(Answer { status, headers, body })),
        None => no_word(),
    }
}

/// The body, unless it is too long or breaks off.
async fn body_of(mut response: reqwest::Response) -> Option<Bytes> {
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.ok()? {
        if body.len() + piece.len() > MAX_BODY {
            return None;
        }
        body.extend_from_slice(&piece);
    }
    Some(body.freeze())
}

fn no_word() -> Word {
    let message = "whether you may come in cannot be found out at the moment";
    Word::None(Rejection::new(Kind::NoBackend, message).retry_after(1))
}
